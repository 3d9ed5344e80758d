"""The configuration of the loggers and the form of a line."""

import asyncio
import io
import logging
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from kserve.logging import (
    JSONFormatter,
    TextFormatter,
    configure_logging,
    log_request,
    logger,
    request_id_var,
    trace_logger,
)

HANDLERS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"kserve": {"level": "CRITICAL"}},
}


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    """Give the loggers back as they were."""
    loggers = [logger, logging.getLogger("uvicorn")]
    before = [(log, log.level, list(log.handlers), log.propagate) for log in loggers]
    yield
    for log, level, handlers, propagate in before:
        log.setLevel(level)
        log.handlers, log.propagate = handlers, propagate


@pytest.fixture
def request_id() -> Iterator[str]:
    token = request_id_var.set("id-1")
    yield "id-1"
    request_id_var.reset(token)


def _configure_anew(log_format: str = "text") -> None:
    """Configure as in a program that has not: pytest's own handlers would count as configured."""
    logger.handlers, logger.propagate = [], False
    configure_logging(log_format=log_format)


def _record(message: str = "hello %s", **extra: Any) -> logging.LogRecord:
    record = logging.LogRecord("kserve", logging.INFO, "/x/model.py", 7, message, ("you",), None)
    record.created = 1_700_000_000.25
    record.msecs = 250.0
    vars(record).update(extra)
    return record


def test_a_text_line_ends_with_fields_and_the_request_id(request_id: str) -> None:
    line = TextFormatter().format(_record(fields={"model": "iris", "status": 200}))

    assert line.endswith(
        " INFO kserve [model.py:7] hello you model=iris status=200 request_id=id-1"
    )


def test_a_text_line_outside_a_request_has_no_fields() -> None:
    assert TextFormatter().format(_record()).endswith(" INFO kserve [model.py:7] hello you")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param("a\nERROR forged", r"'a\nERROR forged'", id="line break"),
        pytest.param("a status=200", "'a status=200'", id="space"),
        pytest.param("a\x1b[31m", r"'a\x1b[31m'", id="terminal escape"),
        pytest.param("é", "é", id="letter"),
    ],
)
def test_a_field_cannot_forge_a_line_or_another_field(value: str, shown: str) -> None:
    line = TextFormatter().format(_record(fields={"model": value}))

    assert line.endswith(f" hello you model={shown}")


def test_a_json_line_is_one_object(request_id: str) -> None:
    entry = orjson.loads(JSONFormatter().format(_record(fields={"status": 200})))

    time = datetime.fromisoformat(entry.pop("time"))
    assert time.timestamp() == 1_700_000_000.25
    assert time.tzinfo is not None
    assert entry == {
        "level": "INFO",
        "logger": "kserve",
        "message": "hello you",
        "status": 200,
        "request_id": "id-1",
    }


def test_a_json_line_holds_the_traceback() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = _record(exc_info=sys.exc_info())

    line = JSONFormatter().format(record)

    entry = orjson.loads(line)
    assert "\n" not in line
    assert entry["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert entry["exception"].splitlines()[-1] == "ValueError: why"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param(Path("/x"), "/x", id="any object"),
        pytest.param(1 << 70, str(1 << 70), id="integer beyond 64 bits"),
        pytest.param("a\udc80", r"a\udc80", id="text that is not UTF-8"),
    ],
)
def test_a_json_line_takes_any_field(value: object, shown: str) -> None:
    entry = orjson.loads(JSONFormatter().format(_record(fields={"it": value})))

    assert (entry["it"], entry["message"]) == (shown, "hello you")


def test_fields_of_another_librarys_making_are_no_fields() -> None:
    assert TextFormatter().format(_record(fields=["a"])).endswith(" hello you")


def test_a_field_wins_over_the_current_request_id(request_id: str) -> None:
    line = TextFormatter().format(_record(fields={"request_id": "own"}))

    assert line.endswith(" hello you request_id=own")


def test_logs_to_stderr_at_info_by_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KSERVE_LOGLEVEL", raising=False)
    _configure_anew()

    logger.debug("hidden")
    trace_logger.info("shown")
    logging.getLogger("uvicorn.error").info("hidden")
    logging.getLogger("uvicorn.error").warning("shown too")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split("] ", 1)[1] for line in captured.err.splitlines()] == ["shown", "shown too"]


def test_the_environment_names_the_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSERVE_LOGLEVEL", "error")
    _configure_anew()

    logger.warning("hidden")
    logger.error("shown")

    assert [line.split("] ", 1)[1] for line in capsys.readouterr().err.splitlines()] == ["shown"]


def test_json_lines_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    _configure_anew(log_format="json")

    logger.warning("shown")

    assert orjson.loads(capsys.readouterr().err)["message"] == "shown"


def test_what_the_program_has_configured_stays(capsys: pytest.CaptureFixture[str]) -> None:
    own = io.StringIO()
    logger.handlers = [logging.StreamHandler(own)]
    configure_logging()

    logger.warning("shown")

    assert (own.getvalue(), capsys.readouterr().err) == ("shown\n", "")


INI = """\
[loggers]
keys=root,kserve
[handlers]
keys=
[formatters]
keys=
[logger_root]
handlers=
[logger_kserve]
qualname=kserve
level=CRITICAL
handlers=
"""
YAML = """\
version: 1
disable_existing_loggers: false
loggers: {kserve: {level: CRITICAL}}
"""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("log.json", orjson.dumps(HANDLERS), id="json"),
        pytest.param("log.YAML", YAML.encode(), id="yaml"),
        pytest.param("log.yml", YAML.encode(), id="yml"),
        pytest.param("log.conf", INI.encode(), id="ini"),
    ],
)
def test_reads_a_configuration_file(name: str, content: bytes, tmp_path: Path) -> None:
    logger.setLevel(logging.INFO)
    (tmp_path / name).write_bytes(content)

    configure_logging(str(tmp_path / name))

    assert logger.level == logging.CRITICAL


def test_takes_a_configuration_as_a_dictionary() -> None:
    logger.setLevel(logging.INFO)

    configure_logging(HANDLERS)

    assert logger.level == logging.CRITICAL


def test_a_missing_configuration_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        configure_logging(str(tmp_path / "log.json"))


def _log_in_a_loop(*statuses: int) -> None:
    async def log() -> None:
        for status in statuses:
            log_request("id-1", "a model", "v2", status, 0.0015)

    asyncio.run(log())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_line_of_a_request_is_what_its_record_would_be(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _configure_anew(log_format)

    _log_in_a_loop(200)
    quick = capsys.readouterr().err
    trace_logger.addFilter(lambda record: True)
    _log_in_a_loop(200)
    trace_logger.filters.clear()

    # They differ in the time and in the line's number.
    in_common = re.compile(r"\d{4}-\S+( \d+:\S+)?|\[\S+\]")
    assert quick.count("\n") == 1
    assert in_common.sub("", quick) == in_common.sub("", capsys.readouterr().err)
    assert "duration_ms" in quick


def test_lines_of_requests_and_records_stay_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    _configure_anew("json")

    async def log() -> None:
        log_request("1", "m", "v1", 200, 0.0)
        logger.warning("between")
        log_request("2", "m", "v1", 404, 0.0)

    asyncio.run(log())

    lines = map(orjson.loads, capsys.readouterr().err.splitlines())
    seen = [(line["message"], line.get("request_id")) for line in lines]
    assert seen == [("request", "1"), ("between", None), ("request", "2")]


def test_the_lines_of_one_turn_are_one_write() -> None:
    writes = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    _configure_anew("json")
    (handler,) = logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(Stream())

    _log_in_a_loop(200, 400, 500)

    assert [[orjson.loads(line)["status"] for line in write.splitlines()] for write in writes] == [
        [200, 400, 500]
    ]


def test_a_closed_stream_ends_no_request() -> None:
    stream = io.StringIO()
    _configure_anew()
    (handler,) = logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    stream.close()

    _log_in_a_loop(200)


def test_requests_reach_a_handler_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    _configure_anew()
    own = io.StringIO()
    logger.addHandler(logging.StreamHandler(own))

    _log_in_a_loop(200)

    assert own.getvalue() == "request\n"
    assert capsys.readouterr().err.count("status=200") == 1


def test_a_level_above_info_hides_requests(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSERVE_LOGLEVEL", "warning")
    _configure_anew()

    _log_in_a_loop(200)

    assert capsys.readouterr().err == ""
