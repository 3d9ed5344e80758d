"""The ways to compute the next tokens of many sequences with one model."""
