"""The error tree, its page in the docs, and what a client gets of an exception."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve import errors
from kserve.errors import (
    InferenceError,
    InferenceServerError,
    InvalidInput,
    ModelLoadError,
    ModelMissingError,
    ModelNotFound,
    ModelNotReady,
    NoModelReady,
    ServerNotLive,
    ServerNotReady,
    StartError,
    UnsupportedProtocol,
    WorkersShouldBeLessThanMaxWorkersError,
    describe,
)
from kserve.model import BaseKServeModel

ERRORS_PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


def _tree(cls: type[InferenceServerError]) -> Iterator[type[InferenceServerError]]:
    if cls.__module__ == errors.__name__:
        yield cls
    for subclass in cls.__subclasses__():
        yield from _tree(subclass)


def _documented() -> dict[str, tuple[int, str]]:
    row = re.compile(r"^\| `(\w+)` \| (\d+) \| (\w+) \| [^|]+ \| [^|]+ \|$", re.MULTILINE)
    return {name: (int(http), grpc) for name, http, grpc in row.findall(ERRORS_PAGE.read_text())}


@pytest.mark.parametrize("cls", list(_tree(InferenceServerError)), ids=lambda cls: cls.__name__)
def test_every_error_is_documented_with_its_statuses(cls: type[InferenceServerError]) -> None:
    assert _documented()[cls.__name__] == (cls.http_status, cls.grpc_status)


def test_every_documented_error_exists() -> None:
    assert list(_documented()) == [cls.__name__ for cls in _tree(InferenceServerError)]


@pytest.mark.parametrize("cls", list(_tree(InferenceServerError)), ids=lambda cls: cls.__name__)
def test_every_error_is_drawn_in_the_docstring(cls: type[InferenceServerError]) -> None:
    assert re.search(rf"^[│├└─ ]*{cls.__name__}\b", errors.__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize(
    ("error", "described"),
    [
        pytest.param(
            InvalidInput("bad shape"), (400, "INVALID_ARGUMENT", "bad shape"), id="InvalidInput"
        ),
        pytest.param(
            ModelNotFound("m"),
            (404, "NOT_FOUND", "Model with name m does not exist."),
            id="ModelNotFound",
        ),
        pytest.param(
            ModelNotReady("m"),
            (503, "UNAVAILABLE", "Model with name m is not ready."),
            id="ModelNotReady",
        ),
        pytest.param(
            ModelNotReady("m", "It is loading."),
            (503, "UNAVAILABLE", "Model with name m is not ready. It is loading."),
            id="ModelNotReady with detail",
        ),
        pytest.param(
            ServerNotLive(), (503, "UNAVAILABLE", "Server is not live."), id="ServerNotLive"
        ),
        pytest.param(
            ServerNotLive("Why."),
            (503, "UNAVAILABLE", "Server is not live. Why."),
            id="ServerNotLive with detail",
        ),
        pytest.param(
            ServerNotReady(), (503, "UNAVAILABLE", "Server is not ready."), id="ServerNotReady"
        ),
        pytest.param(
            ServerNotReady("Why."),
            (503, "UNAVAILABLE", "Server is not ready. Why."),
            id="ServerNotReady with detail",
        ),
        pytest.param(
            UnsupportedProtocol("v9"),
            (501, "UNIMPLEMENTED", "Unsupported protocol v9."),
            id="UnsupportedProtocol",
        ),
        pytest.param(InferenceError("boom"), (500, "INTERNAL", "boom"), id="InferenceError"),
        pytest.param(
            InferenceError("boom", status="7", debug_details="secret"),
            (500, "INTERNAL", "[7] boom"),
            id="InferenceError with status",
        ),
        pytest.param(
            StartError("/secret"), (500, "INTERNAL", "Internal server error"), id="StartError"
        ),
        pytest.param(
            ModelLoadError("/secret"),
            (500, "INTERNAL", "Internal server error"),
            id="ModelLoadError",
        ),
        pytest.param(
            NotImplementedError("no explain"),
            (501, "UNIMPLEMENTED", "no explain"),
            id="NotImplementedError",
        ),
        pytest.param(
            NotImplementedError(),
            (501, "UNIMPLEMENTED", "Not implemented"),
            id="NotImplementedError without text",
        ),
        pytest.param(
            KeyError("secret"), (500, "INTERNAL", "Internal server error"), id="any other"
        ),
        pytest.param(
            ValueError("secret"), (500, "INTERNAL", "Internal server error"), id="ValueError"
        ),
    ],
)
def test_a_client_gets_status_and_text(error: Exception, described: tuple[int, str, str]) -> None:
    assert describe(error) == described


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(ModelMissingError("/models"), "/models", id="missing"),
        pytest.param(ModelMissingError(Path("/models")), "/models", id="missing, by a Path"),
        pytest.param(
            ModelMissingError("/models", "no model file"),
            "/models: no model file",
            id="missing, with detail",
        ),
        pytest.param(
            NoModelReady(["a", BaseKServeModel("b")]),
            "Models with name a, b are not ready.",
            id="none ready",
        ),
        pytest.param(
            NoModelReady(["a"], "KeyError: 'x'"),
            "Models with name a are not ready. KeyError: 'x'",
            id="none ready, with detail",
        ),
        pytest.param(
            WorkersShouldBeLessThanMaxWorkersError(1),
            "Workers value should be less than or equal to 1",
            id="workers",
        ),
    ],
)
def test_a_start_error_reads_as_one_line(error: StartError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("why"),
        ModelNotFound("m"),
        ModelNotReady("m", "why"),
        ServerNotLive("why"),
        ServerNotReady("why"),
        UnsupportedProtocol("v9"),
        InferenceError("why"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_reason_that_code_for_the_original_reads_is_there(error: InferenceServerError) -> None:
    assert getattr(error, "reason") == str(error)  # noqa: B009 - the base class has none


def test_the_causes_can_be_caught_as_the_builtin_errors_that_they_are() -> None:
    assert isinstance(InvalidInput("x"), ValueError)
    assert isinstance(InferenceError("x"), RuntimeError)
    assert isinstance(ModelLoadError("x"), RuntimeError)


def test_debug_details_are_a_note_for_the_log() -> None:
    error = InferenceError("boom", status="7", debug_details="weights: nan")

    assert (str(error), error.reason, error.status) == ("[7] boom", "boom", "7")
    assert error.__notes__ == [error.debug_details] == ["weights: nan"]
