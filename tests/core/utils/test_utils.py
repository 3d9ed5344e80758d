"""The functions that user code imports from `kserve.utils.utils`."""

import uuid
from typing import Any

import orjson
import pytest

from kserve import cpu, payload
from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING, PredictorProtocol
from kserve.utils import utils


def test_module_gives_the_functions_of_other_modules() -> None:
    assert utils.cpu_count is cpu.cpu_count
    assert utils.get_predict_input is payload.get_predict_input
    assert utils.get_predict_response is payload.get_predict_response


@pytest.mark.parametrize("word", ["y", "Yes", "t", "TRUE", "on", "1"])
def test_strtobool_reads_words_for_true(word: str) -> None:
    assert utils.strtobool(word) is True


@pytest.mark.parametrize("word", ["n", "No", "f", "FALSE", "off", "0"])
def test_strtobool_reads_words_for_false(word: str) -> None:
    assert utils.strtobool(word) is False


@pytest.mark.parametrize("word", ["", "2", "maybe"])
def test_strtobool_refuses_other_words(word: str) -> None:
    with pytest.raises(
        ValueError, match=f"expected a truth value such as true or false, got '{word}'"
    ):
        utils.strtobool(word)


@pytest.mark.parametrize(
    ("protocol", "is_v1", "is_v2"),
    [
        (PredictorProtocol.REST_V1, True, False),
        (PredictorProtocol.REST_V2, False, True),
        (PredictorProtocol.GRPC_V2, False, False),
        ("V1", True, False),
        ("v2", False, True),
        ("grpc-v2", False, False),
    ],
    ids=str,
)
def test_protocol_is_known_by_member_and_by_name(
    protocol: str | PredictorProtocol, is_v1: bool, is_v2: bool
) -> None:
    assert utils.is_v1(protocol) is is_v1
    assert utils.is_v2(protocol) is is_v2


def test_generated_ids_are_uuids_and_differ() -> None:
    first, second = utils.generate_uuid(), utils.generate_uuid()

    assert str(uuid.UUID(first)) == first
    assert first != second


def test_application_is_named_by_its_import_path() -> None:
    assert FASTAPI_APP_IMPORT_STRING == "kserve.model_server:app"


EVENT = {
    "specversion": "1.0",
    "id": "1",
    "source": "a",
    "type": "b",
    "x": "kept",
    "time": "2021-01-28T21:04:43Z",
}


@pytest.mark.parametrize("missing", [None, "time", "type", "source", "id", "specversion", "data"])
def test_a_structured_event_is_known_by_its_members(missing: str | None) -> None:
    body = {name: value for name, value in {**EVENT, "data": 1}.items() if name != missing}

    assert utils.is_structured_cloudevent(body) is (missing is None)


def test_a_response_becomes_a_binary_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CE_TYPE", "t")
    monkeypatch.setenv("CE_MERGE", "true")

    headers, body = utils.create_response_cloudevent("m", {"predictions": [[1, 2]]}, EVENT, True)

    assert body == b'{"predictions": [[1, 2]]}'
    assert headers | {"ce-id": "", "ce-time": ""} == {
        "ce-specversion": "1.0",
        "ce-id": "",
        "ce-source": "io.kserve.inference.m",
        "ce-type": "t",
        "ce-time": "",
        "ce-x": "kept",
    }


@pytest.mark.parametrize(
    ("response", "data"),
    [
        pytest.param({"predictions": [1]}, {"data": {"predictions": [1]}}, id="JSON"),
        pytest.param(
            b"\xff",
            {"datacontenttype": "application/octet-stream", "data_base64": "/w=="},
            id="bytes",
        ),
    ],
)
def test_a_response_becomes_a_structured_event(
    response: Any, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CE_MERGE", raising=False)

    headers, body = utils.create_response_cloudevent("m", response, EVENT)

    event = orjson.loads(body)
    assert headers == {"content-type": "application/cloudevents+json"}
    assert event | {"id": "", "time": ""} == {
        "specversion": "1.0",
        "id": "",
        "source": "io.kserve.inference.m",
        "type": "io.kserve.inference.response",
        "time": "",
        **data,
    }
