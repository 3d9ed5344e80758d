"""Names that the data plane and user code share."""
