"""gRPC V2: the server, the RPCs, and the messages; nothing here is imported by `import kserve`."""
