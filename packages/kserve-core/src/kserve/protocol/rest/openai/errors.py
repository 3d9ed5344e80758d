"""Errors of the OpenAI routes, as OpenAI writes them."""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from kserve.protocol.rest.openai.types.responses import Error, ErrorResponse

__all__ = ["OpenAIError", "create_error_response", "invalid_request", "unsupported_api"]

# The kind that OpenAI gives to what is wrong with a request.
INVALID_REQUEST: Final = "invalid_request_error"


class OpenAIError(Exception):
    """What a handler raises to answer with an error of its own.

    Args:
        response: The body, or the text of an error of the server's: status 500, type `OpenAIError`.
        http_headers: What goes into the headers of the response, such as `retry-after`.

    Attributes:
        http_status: The status that the body is for.
        is_ours: Whether a status from 500 is a failure of this server's, whose traceback belongs
            into the log; not of another one behind it.
    """

    is_ours = True

    def __init__(
        self,
        response: str | ErrorResponse,
        http_headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if isinstance(response, str):
            response = create_error_response(response, "OpenAIError", status_code=500)
        super().__init__(response.error.message)
        self.response = response
        self.http_headers = http_headers

    @property
    def http_status(self) -> int:
        """The status that the body is for."""
        return self.response.http_status


def create_error_response(
    message: str,
    err_type: str = "BadRequestError",
    param: str | None = "",
    status_code: HTTPStatus | int = HTTPStatus.BAD_REQUEST,
    code: str | None = None,
) -> ErrorResponse:
    """Make the body of an error.

    Args:
        message: For people.
        err_type: The kind.
        param: The field of the request that is at fault.
        status_code: The status that it goes with.
        code: For programs; None is the status as a text, as in KServe's SDK.
    """
    status = int(status_code)
    error = Error(message=message, type=err_type, param=param, code=code or str(status))
    response = ErrorResponse(error=error)
    # Not a field: what is written is `error` alone.
    vars(response)["_http_status"] = status
    return response


def invalid_request(
    message: str, param: str | None = None, code: str | None = None, status_code: int = 400
) -> OpenAIError:
    """Give the error that says what is wrong with a request.

    Args:
        message: What was expected and what came.
        param: The field that is at fault, such as `messages[0].role`.
        code: For programs, such as `context_length_exceeded`.
        status_code: The status.
    """
    response = ErrorResponse(
        error=Error(message=message, type=INVALID_REQUEST, param=param, code=code)
    )
    vars(response)["_http_status"] = status_code
    return OpenAIError(response)


def unsupported_api(model_name: str, api: str) -> OpenAIError:
    """Give the error of a model that is asked for what its kind does not do.

    Args:
        model_name: The model.
        api: What it was asked for, such as `Embeddings`.
    """
    return invalid_request(
        f"Model {model_name} does not support {api} API", "model", "unsupported_api"
    )
