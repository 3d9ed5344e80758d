"""Modules that exist for the import paths of KServe's SDK."""
