"""Every error that the server answers with or stops on, with its status on each wire.

InferenceServerError                     500  INTERNAL
├── InvalidInput                         400  INVALID_ARGUMENT     the client's mistake
├── ModelNotFound                        404  NOT_FOUND            no model of that name
├── ModelNotReady                        503  UNAVAILABLE          known, but not loaded
├── ServerNotLive                        503  UNAVAILABLE
├── ServerNotReady                       503  UNAVAILABLE
├── RequestTooLarge                      413  RESOURCE_EXHAUSTED   more than a limit allows
├── TooManyRequests                      429  RESOURCE_EXHAUSTED   more at once than a limit allows
├── DeadlineExceeded                     504  DEADLINE_EXCEEDED    no answer in time
├── UnsupportedEncoding                  415  UNIMPLEMENTED        a compression we do not read
├── UnsupportedProtocol                  501  UNIMPLEMENTED
├── InferenceError                       500  INTERNAL             raised by a model, text is shown
│   └── RowCountError                                              not as many rows as it got
└── StartError                           500  INTERNAL             the server cannot start
    ├── ModelLoadError                                             an artifact cannot be loaded
    │   ├── ModelMissingError                                      there is no artifact
    │   └── UserCodeError                                          code of the user's raised
    ├── NoModelReady                                               no model given at start loaded
    └── WorkersShouldBeLessThanMaxWorkersError

`NotImplementedError` from a model's handler is 501; any other exception is a 500 that shows
nothing.
"""

import os
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from kserve.listing import shortened

# An absolute path in a text, with its last name in the group; `a/b` and `http://host/a` are none.
_PATH: Final = re.compile(r"(?<![\w.:/-])/(?:[^\s/:,;'\"]+/)*([^\s/:,;'\"]*)")


class InferenceServerError(Exception):
    """The base of every error here; `str()` of it is what the client reads.

    Attributes:
        http_status: The status over REST.
        grpc_status: The name of the status code over gRPC.
        is_public: Whether the client may read the text.
        http_headers: What goes into the headers of the answer over REST.
    """

    http_status: int = 500
    grpc_status: str = "INTERNAL"
    is_public: bool = True
    http_headers: Mapping[str, str] = MappingProxyType({})


class InvalidInput(InferenceServerError, ValueError):
    """The request is wrong; the reason says what was expected and what came."""

    http_status, grpc_status = 400, "INVALID_ARGUMENT"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ModelNotFound(InferenceServerError):
    """No model of this name is registered.

    Args:
        model_name: The name that was asked for.
        detail: In place of the sentence that says so: which version is not there.
    """

    http_status, grpc_status = 404, "NOT_FOUND"

    def __init__(self, model_name: str | None = None, detail: str | None = None) -> None:
        name = None if model_name is None else shortened(model_name)
        super().__init__(detail or f"Model with name {name} does not exist.")
        self.model_name = model_name
        self.reason = str(self)


class ModelNotReady(InferenceServerError):
    """The model is registered but not loaded."""

    http_status, grpc_status = 503, "UNAVAILABLE"

    def __init__(self, model_name: str, detail: str | None = None) -> None:
        reason = f"Model with name {model_name} is not ready."
        super().__init__(f"{reason} {detail}" if detail else reason)
        self.model_name = model_name
        self.error_msg = self.reason = str(self)


class ServerNotLive(InferenceServerError):
    """The server is not live."""

    http_status, grpc_status = 503, "UNAVAILABLE"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(f"Server is not live. {detail}" if detail else "Server is not live.")
        self.reason = str(self)


class ServerNotReady(InferenceServerError):
    """The server, or a model given at start, is not ready."""

    http_status, grpc_status = 503, "UNAVAILABLE"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(f"Server is not ready. {detail}" if detail else "Server is not ready.")
        self.reason = str(self)


class RequestTooLarge(InferenceServerError):
    """The request is larger than a limit allows; the text names the limit."""

    http_status, grpc_status = 413, "RESOURCE_EXHAUSTED"


class TooManyRequests(InferenceServerError):
    """The server has as much to do as it takes on; the request has not been begun.

    Args:
        reason: What there is too much of; names the limit.
        retry_after_s: After how many seconds the client should try again, 1 or more.
    """

    http_status, grpc_status = 429, "RESOURCE_EXHAUSTED"

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        # "delay-seconds", a whole number. Source: RFC 9110, 10.2.3.
        self.http_headers = {"retry-after": str(retry_after_s)}


class DeadlineExceeded(InferenceServerError):
    """The answer was not there in the time that the request had; it is not tried again."""

    http_status, grpc_status = 504, "DEADLINE_EXCEEDED"


class UnsupportedEncoding(InferenceServerError):
    """The body is compressed in a way that the server does not read.

    Args:
        encoding: The encoding that came.
        supported: Those that are read.
        header: Where it stands.
    """

    http_status, grpc_status = 415, "UNIMPLEMENTED"

    def __init__(
        self, encoding: str, supported: Iterable[str] = (), header: str = "Content-Encoding"
    ) -> None:
        listing = ", ".join(supported)
        super().__init__(f"{header}: expected one of {listing}, got {encoding!r}")
        # "servers [...] SHOULD include an Accept-Encoding header field [...] in the 415 response"
        # Source: RFC 9110, 12.5.3, https://www.rfc-editor.org/rfc/rfc9110#section-12.5.3
        self.http_headers = {"accept-encoding": listing}


class UnsupportedProtocol(InferenceServerError):
    """A predictor protocol that this server does not speak was asked for."""

    http_status, grpc_status = 501, "UNIMPLEMENTED"

    def __init__(self, protocol_version: str | None = None) -> None:
        super().__init__(f"Unsupported protocol {protocol_version}.")
        self.reason = str(self)


class InferenceError(InferenceServerError, RuntimeError):
    """A model failed and wants the client to read why.

    Args:
        reason: The text that the client reads.
        status: A status of the model's own, shown before the reason in brackets.
        debug_details: For the log, below the traceback; the client never sees it.
    """

    def __init__(
        self, reason: str, status: str | None = None, debug_details: str | None = None
    ) -> None:
        super().__init__(f"[{status}] {reason}" if status is not None else reason)
        self.reason = reason
        self.status = status
        self.debug_details = debug_details
        if debug_details is not None:
            self.add_note(debug_details)


class RowCountError(InferenceError):
    """A model gave another number of rows than it got; such a batch is not tried again."""


class StartError(InferenceServerError):
    """The server cannot start; `str()` of it is the one line of reason on stderr."""

    # The text holds paths.
    is_public = False


class ModelLoadError(StartError, RuntimeError):
    """An artifact is there and cannot be loaded; the text names it and says what to do."""


class ModelMissingError(ModelLoadError):
    """The model directory holds no artifact.

    Args:
        path: The directory that was searched.
        detail: What was found there and what was expected.
    """

    def __init__(self, path: str | os.PathLike[str], detail: str | None = None) -> None:
        self.path = os.fspath(path)
        super().__init__(f"{self.path}: {detail}" if detail else self.path)


class UserCodeError(ModelLoadError):
    """Code of the user's raised while a model was made or loaded.

    Args:
        reason: One line: where, and what was raised.
        error: What was raised; its traceback is what the log shows.
    """

    def __init__(self, reason: str, error: BaseException) -> None:
        super().__init__(reason)
        self.error = error


class NoModelReady(StartError):
    """None of the models given at start could be loaded.

    Args:
        models: The models, or their names.
        detail: Why, one line.
    """

    def __init__(self, models: Iterable[object], detail: str | None = None) -> None:
        self.models = list(models)
        names = [
            model if isinstance(model, str) else getattr(model, "name", model)
            for model in self.models
        ]
        listing = ", ".join(map(str, names))
        reason = f"Models with name {listing} are not ready."
        super().__init__(f"{reason} {detail}" if detail else reason)


class WorkersShouldBeLessThanMaxWorkersError(StartError):
    """A server that allows only so many workers was started with more."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(f"Workers value should be less than or equal to {max_workers}")


def describe(exc: BaseException) -> tuple[int, str, str]:
    """Give the HTTP status, the gRPC status and the text that a client gets for an exception."""
    if isinstance(exc, InferenceServerError) and exc.is_public:
        return exc.http_status, exc.grpc_status, str(exc)
    if isinstance(exc, NotImplementedError):
        return 501, "UNIMPLEMENTED", str(exc) or "Not implemented"
    return 500, "INTERNAL", "Internal server error"


def without_paths(text: str) -> str:
    """Give a text in which every absolute path is cut to its last name, for clients to read."""
    return _PATH.sub(r"\1", text)
