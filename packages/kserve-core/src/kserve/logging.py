"""Loggers, their configuration, and the text and JSON line formats.

Nothing is configured at import: `configure_logging` is called by the server.
"""

import logging
import logging.config
import os
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

KSERVE_LOGGER_NAME: Final = "kserve"
KSERVE_TRACE_LOGGER_NAME: Final = "kserve.trace"

logger = logging.getLogger(KSERVE_LOGGER_NAME)
trace_logger = logging.getLogger(KSERVE_TRACE_LOGGER_NAME)

# The id of the request that the current task or thread works for; empty outside one.
request_id_var: ContextVar[str] = ContextVar("kserve_request_id", default="")

KSERVE_LOG_CONFIG: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "kserve": {"()": "kserve.logging.TextFormatter"},
        "kserve_json": {"()": "kserve.logging.JSONFormatter"},
    },
    "handlers": {
        "kserve": {
            "class": "logging.StreamHandler",
            "formatter": "kserve",
            "stream": "ext://sys.stderr",
        },
    },
    "loggers": {
        "kserve": {"handlers": ["kserve"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["kserve"], "level": "WARNING", "propagate": False},
    },
}


class TextFormatter(logging.Formatter):
    """One line: time, process, level, logger, place, request id, message, fields."""

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(process)d %(levelname)s %(name)s [%(filename)s:%(lineno)d] %(message)s"
        )

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Append what `extra={"fields": {...}}` and the current request add to the message."""
        line = super().formatMessage(record)
        return " ".join([line, *(f"{key}={_quote(v)}" for key, v in _fields(record).items())])


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the record as one line of JSON."""
        entry: dict[str, Any] = {
            "time": _iso_time(record),
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


def _plain(value: Any) -> str:
    return str(value).encode("ascii", "backslashreplace").decode()


def _iso_time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


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
