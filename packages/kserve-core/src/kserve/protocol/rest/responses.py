"""Responses of the routes beside the infer ones."""

from typing import Any

import orjson
from starlette.responses import Response


class JSONResponse(Response):
    """A JSON body, without spaces."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Give the body."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
