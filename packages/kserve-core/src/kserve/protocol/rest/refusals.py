"""Refusals of requests for a model that is full, decided before anything is made for them.

A server that has ten times as much to do as it can spends most of its time on saying no: what one
refusal costs decides how many answers are left.
"""

import weakref
from collections.abc import Callable
from typing import Final

import orjson

from kserve.endpoint import Endpoint
from kserve.logging import log_request

# Targets are the client's, and a model has few: two protocols, with and without a version.
_MAX_TARGETS: Final = 1024

# A longer one has a query that is of no use to us.
_MAX_TARGET_BYTES: Final = 1024

_STATUS: Final = 429


class QuickRefusal:
    """The refusal of one request target while its model is full.

    Args:
        endpoint: What the target leads to; not kept alive by this.
        protocol: `v1` or `v2`.
        is_current: Whether a request would still be led there.
        log_requests: Whether each one leaves a line in the log.
    """

    __slots__ = (
        *("_body", "_endpoint", "_fields", "_is_current", "_log_requests", "_metrics"),
        *("_model_name", "_protocol"),
    )

    def __init__(
        self,
        endpoint: Endpoint,
        protocol: str,
        is_current: Callable[[Endpoint], bool],
        log_requests: bool,
    ) -> None:
        refusal = endpoint.admission.refusal()
        self._endpoint = weakref.ref(endpoint)
        self._is_current = is_current
        self._log_requests = log_requests
        self._metrics = endpoint.metrics
        self._model_name = endpoint.name
        self._protocol = protocol
        self._body = orjson.dumps({"error": str(refusal)})
        self._fields = b"".join(
            b"%b: %b\r\n" % pair
            for pair in (
                (b"content-type", b"application/json"),
                (b"retry-after", b"%d" % refusal.retry_after_s),
                (b"content-length", b"%d" % len(self._body)),
            )
        )

    @property
    def is_over(self) -> bool:
        """Whether the endpoint is gone."""
        return self._endpoint() is None

    def refuses(self) -> bool:
        """Say whether a request would be refused now if it went the whole way."""
        endpoint = self._endpoint()
        return endpoint is not None and endpoint.admission.is_full and self._is_current(endpoint)

    def answer(self, request_id: str, first_fields: bytes, closes: bool) -> bytes:
        """Give the bytes of the response after its status line.

        Args:
            request_id: Of the client, or made for it.
            first_fields: Header lines that every response has.
            closes: Whether the connection ends with it.
        """
        closing = b"connection: close\r\n" if closes else b""
        return b"%b%bx-request-id: %b\r\n%b\r\n%b" % (
            *(first_fields, self._fields, request_id.encode(), closing),
            self._body,
        )

    def note(self, request_id: str, duration_s: float) -> None:
        """Count one and log its line, as for every answer."""
        self._metrics.count_answer(self._protocol, _STATUS)
        if self._log_requests:
            log_request(request_id, self._model_name, self._protocol, _STATUS, duration_s)


class QuickRefusals:
    """The targets of requests that were refused once because their model was full.

    Args:
        log_requests: Whether each refusal leaves a line in the log.

    Attributes:
        by_target: The refusals; empty as long as no model has been full.
    """

    __slots__ = ("_log_requests", "by_target")

    def __init__(self, *, log_requests: bool = True) -> None:
        self.by_target: dict[bytes, QuickRefusal] = {}
        self._log_requests = log_requests

    def add(
        self,
        target: bytes,
        endpoint: Endpoint,
        protocol: str,
        is_current: Callable[[Endpoint], bool],
    ) -> None:
        """Refuse further requests of a target quickly; as `QuickRefusal`."""
        if len(target) > _MAX_TARGET_BYTES:
            return
        if len(self.by_target) >= _MAX_TARGETS:
            del self.by_target[next(iter(self.by_target))]
        self.by_target[target] = QuickRefusal(endpoint, protocol, is_current, self._log_requests)

    def find(self, target: bytes) -> QuickRefusal | None:
        """Give the refusal of a request for a target; None where it has to be looked at."""
        refusal = self.by_target.get(target)
        if refusal is None or refusal.refuses():
            return refusal
        if refusal.is_over:
            del self.by_target[target]
        return None
