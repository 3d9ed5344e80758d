"""REST: the ASGI application and its routes."""
