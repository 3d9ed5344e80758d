"""Loggers, their configuration, and the text and JSON line formats.

Nothing is configured at import: `configure_logging` is called by the server.
"""

import asyncio
import logging
import logging.config
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO, cast

import orjson

from kserve.listing import shortened

KSERVE_LOGGER_NAME: Final = "kserve"
KSERVE_TRACE_LOGGER_NAME: Final = "kserve.trace"

logger = logging.getLogger(KSERVE_LOGGER_NAME)
trace_logger = logging.getLogger(KSERVE_TRACE_LOGGER_NAME)

# The id of the request that the current task or thread works for; empty outside one.
request_id_var: ContextVar[str] = ContextVar("kserve_request_id", default="")

# Where a record of a request would say that it was made.
_REQUEST_HEAD: Final = f"INFO {KSERVE_TRACE_LOGGER_NAME} [logging.py:log_request] request"

KSERVE_LOG_CONFIG: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "kserve": {"()": "kserve.logging.TextFormatter"},
        "kserve_json": {"()": "kserve.logging.JSONFormatter"},
    },
    "handlers": {
        "kserve": {
            "class": "kserve.logging.LineHandler",
            "formatter": "kserve",
            "stream": "ext://sys.stderr",
        },
    },
    "loggers": {
        "kserve": {"handlers": ["kserve"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["kserve"], "level": "WARNING", "propagate": False},
    },
}


# The arguments of `log_request`.
_Request = tuple[str, str, str, int | str, float]


class _Pid:
    """The id of this process: asking for it is a call of the system."""

    def __init__(self) -> None:
        self.number = os.getpid()
        os.register_at_fork(after_in_child=self._note)

    def _note(self) -> None:
        self.number = os.getpid()


_PID: Final = _Pid()


class TextFormatter(logging.Formatter):
    """One line: time, process, level, logger, place, request id, message, fields."""

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(process)d %(levelname)s %(name)s [%(filename)s:%(lineno)d] %(message)s"
        )

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Append what `extra={"fields": {...}}` and the current request add to the message."""
        return " ".join([super().formatMessage(record), *_texts(_fields(record))])

    @staticmethod
    def request_lines(requests: Iterable[_Request]) -> Iterator[str]:
        """Give the lines of requests without records; as `format` would."""
        time = datetime.now().isoformat(" ", "milliseconds")
        head = f"{time} {_PID.number} {_REQUEST_HEAD} request_id="
        for request_id, model, protocol, status, seconds in requests:
            yield (
                f"{head}{request_id} model={_quote(shortened(model))} protocol={protocol} "
                f"status={status} duration_ms={round(seconds * 1000, 3)}"
            )


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the record as one line of JSON."""
        entry: dict[str, Any] = {
            "time": _iso_time(datetime.fromtimestamp(record.created)),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:
            # An integer beyond 64 bits, or a file name that is not UTF-8.
            plain = {str(key): _plain(value) for key, value in entry.items()}
            return orjson.dumps(plain).decode()

    @staticmethod
    def request_lines(requests: Iterable[_Request]) -> Iterator[str]:
        """Give the lines of requests without records; as `format` would."""
        head = {
            "time": _iso_time(datetime.now()),
            "level": "INFO",
            "logger": KSERVE_TRACE_LOGGER_NAME,
            "message": "request",
        }
        for request in requests:
            yield orjson.dumps(head | _request_fields(*request)).decode()


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes records to a stream, and the lines of the requests of one turn of the loop at once.

    A record of each request, formatted and written by itself, takes a fifth of the time of a small
    request.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        # Filled by the event loop's thread, emptied by any.
        self._requests: deque[_Request] = deque()

    def write_request(self, request: _Request) -> None:
        """Write the line of a request, at the latest at the end of the event loop's turn."""
        if not self._requests:
            asyncio.get_running_loop().call_soon(self.flush)
        self._requests.append(request)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, after the lines that are older."""
        self._write_lines()
        super().emit(record)

    def flush(self) -> None:
        """Write what has not been written."""
        self._write_lines()
        with suppress(OSError, ValueError):
            super().flush()

    def _write_lines(self) -> None:
        requests = []
        while self._requests:
            requests.append(self._requests.popleft())
        if requests:
            formatter = cast(TextFormatter | JSONFormatter, self.formatter)
            # A stream that was closed, or whose reader went away, must end no request.
            with suppress(OSError, ValueError):
                self.stream.write("\n".join([*formatter.request_lines(requests), ""]))


def log_request(
    request_id: str, model_name: str, protocol: str, status: int | str, seconds: float
) -> None:
    """Write the one line of an inference request; from the event loop.

    Args:
        request_id: Its id.
        model_name: The model that it asked for.
        protocol: `v1`, `v2`, `openai` or `grpc`.
        status: The status code; over gRPC its name.
        seconds: From the request to the answer.
    """
    if not trace_logger.isEnabledFor(logging.INFO):
        return
    handler = _line_handler()
    if handler is not None:
        handler.write_request((request_id, model_name, protocol, status, seconds))
        return
    fields = _request_fields(request_id, model_name, protocol, status, seconds)
    trace_logger.info("request", extra={"fields": fields})


def _request_fields(
    request_id: str, model_name: str, protocol: str, status: int | str, seconds: float
) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "model": shortened(model_name),
        "protocol": protocol,
        "status": status,
        "duration_ms": round(seconds * 1000, 3),
    }


def _line_handler() -> LineHandler | None:
    """Give the handler of all lines if it is the server's own, and nobody else wants records."""
    if trace_logger.handlers or trace_logger.filters or not trace_logger.propagate:
        return None
    if logger.propagate or len(logger.handlers) != 1:
        return None
    (handler,) = logger.handlers
    is_ours = type(handler) is LineHandler and type(handler.formatter) in _FORMATTERS
    if is_ours and not handler.filters and handler.level <= logging.INFO:
        return cast(LineHandler, handler)
    return None


_FORMATTERS: Final = (TextFormatter, JSONFormatter)


def _plain(value: Any) -> str:
    return str(value).encode("ascii", "backslashreplace").decode()


def _iso_time(time: datetime) -> str:
    return time.astimezone().isoformat(timespec="milliseconds")


def _texts(fields: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_quote(value)}" for key, value in fields.items()]


def _quote(value: Any) -> str:
    """Give a field's text; quoted where it could end the line or pass for another field."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    given = getattr(record, "fields", None)
    fields: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    request_id = request_id_var.get()
    if request_id:
        fields.setdefault("request_id", request_id)
    return fields


def configure_logging(
    log_config: dict[str, Any] | str | None = None, *, log_format: str = "text"
) -> None:
    """Configure the loggers of the server.

    Args:
        log_config: A `logging.config` dictionary, or a file: `.json`, `.yaml` or `.yml` holding
            one, any other suffix in `logging.config.fileConfig` form. None keeps what is
            configured already, and else logs to stderr at the level that the environment variable
            KSERVE_LOGLEVEL names (INFO).
        log_format: `text` or `json`; the form of a line where `log_config` is None.

    Raises:
        ValueError: The configuration is not valid.
        OSError: The file cannot be read.
        ImportError: The file is YAML and PyYAML is not installed.
    """
    if isinstance(log_config, dict):
        logging.config.dictConfig(log_config)
    elif log_config is not None:
        _configure_from_file(log_config)
    elif not logger.hasHandlers():
        logging.config.dictConfig(_default_config(log_format))


def _default_config(log_format: str) -> dict[str, Any]:
    level = os.environ.get("KSERVE_LOGLEVEL", "INFO").upper()
    handler = {
        **KSERVE_LOG_CONFIG["handlers"]["kserve"],
        "formatter": "kserve_json" if log_format == "json" else "kserve",
    }
    loggers = KSERVE_LOG_CONFIG["loggers"]
    return {
        **KSERVE_LOG_CONFIG,
        "handlers": {"kserve": handler},
        "loggers": {**loggers, "kserve": {**loggers["kserve"], "level": level}},
    }


def _configure_from_file(path: str) -> None:
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        logging.config.dictConfig(orjson.loads(Path(path).read_bytes()))
    elif suffix in {".yaml", ".yml"}:
        import yaml

        logging.config.dictConfig(yaml.safe_load(Path(path).read_text("utf-8")))
    else:
        logging.config.fileConfig(path, disable_existing_loggers=False)
