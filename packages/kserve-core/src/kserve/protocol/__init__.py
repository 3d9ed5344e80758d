"""The wire protocols: tensor types, codecs, and the REST application."""
