"""HTTP/2 as gRPC needs it of a server: frames, header blocks, streams, flow control.

Source: RFC 9113, https://www.rfc-editor.org/rfc/rfc9113
"""
