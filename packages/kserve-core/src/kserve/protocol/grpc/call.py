"""One inference request over gRPC: counting it, logging it, and the status of its failure."""

from time import perf_counter
from types import TracebackType
from typing import Any, Final, Self

from kserve.errors import describe
from kserve.logging import log_request, logger, request_id_var
from kserve.metrics import AnswerMetrics

PROTOCOL: Final = "grpc"

# Clients take 8 KiB of trailing metadata by default, and percent-encoding makes three bytes of one.
# Source: https://grpc.github.io/grpc/core/group__grpc__arg__keys.html, grpc.max_metadata_size
_MAX_DETAILS_BYTES: Final = 2048

_OK: Final = "OK"
_CANCELLED: Final = "CANCELLED"
_DEADLINE_EXCEEDED: Final = "DEADLINE_EXCEEDED"

# A client takes its call back when its own clock says that the time is over. Ours says so later:
# the timeout that we were told was rounded up, by up to a hundredth, and counts from when it came.
# Source: https://github.com/grpc/grpc, src/core/lib/transport/timeout_encoding.cc, FromMillis
_ROUNDED_UP: Final = 0.01
_ON_ITS_WAY_S: Final = 0.01


class Call:
    """What is counted and logged of one request, as a context manager around the work for it.

    Args:
        context: The context of the RPC.
        metrics: Where a request is counted whose model is not known.
        log: Whether the request leaves a line in the log.

    Attributes:
        metrics: Where the answer is counted: the model's, once it is known.
        model_name: As in the request; empty before that is read.
    """

    __slots__ = ("_context", "_log", "_started", "metrics", "model_name")

    def __init__(self, context: Any, metrics: AnswerMetrics, log: bool) -> None:
        self.metrics = metrics
        self.model_name = ""
        self._context = context
        self._log = log
        self._started = perf_counter()

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Count the answer and log its line; a failure of ours is logged with its traceback."""
        status = self._status(exc)
        self.metrics.count_answer(PROTOCOL, status)
        if isinstance(exc, Exception):
            log_failure(exc, status)
        if self._log and self.model_name:
            seconds = perf_counter() - self._started
            log_request(request_id_var.get(), self.model_name, PROTOCOL, status, seconds)

    def _status(self, exc: BaseException | None) -> str:
        if exc is None:
            return _OK
        if isinstance(exc, Exception):
            return describe(exc)[1]
        # The task of an RPC is cancelled when its client goes away, and when its deadline passes.
        left_s = self._context.time_remaining()
        if left_s is None:
            return _CANCELLED
        timeout_s = perf_counter() - self._started + left_s
        is_over = left_s <= _ON_ITS_WAY_S + _ROUNDED_UP * timeout_s
        return _DEADLINE_EXCEEDED if is_over else _CANCELLED


def log_failure(exc: Exception, status: str) -> None:
    """Log an exception if the status means that the server, or the model, is at fault."""
    if status == "INTERNAL":
        logger.error("Request failed", exc_info=exc)


def details(text: str) -> str:
    """Give a text as the message of a status, which has to fit into a client's metadata."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= _MAX_DETAILS_BYTES:
        return encoded.decode()
    return encoded[: _MAX_DETAILS_BYTES - 3].decode("utf-8", "ignore") + "..."
