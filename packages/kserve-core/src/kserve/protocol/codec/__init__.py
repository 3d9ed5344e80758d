"""Codecs: bytes to `InferRequest` and `InferResponse` to bytes, with no I/O."""
