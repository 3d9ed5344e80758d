"""The functions that user code imports from `kserve.utils.utils`."""

import uuid

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
