"""The forms of tables that pandas writes, as bodies of V1."""

from typing import Any

import orjson
import pytest

from kserve.errors import InvalidInput
from kserve.protocol.codec import v1_json
from kserve.signature import TensorSpec

COLUMNS = (TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "BYTES", (-1,), exact=False))
ROWS = {"a": [1.5, 2.0], "b": ["x", "y"]}


def decode(body: dict[str, Any]) -> dict[str, Any]:
    request = v1_json.decode_tensors(orjson.dumps(body), "m", COLUMNS, is_table=True)
    return {each.name: each.as_numpy().tolist() for each in request.inputs}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            {"instances": [{"a": {"0": 1.5}, "b": {"0": "x"}}, {"a": {"0": 2}, "b": {"0": "y"}}]},
            id="tables of one row",
        ),
        pytest.param(
            {"inputs": [{"b": {"5": "x", "7": "y"}, "a": {"7": 2, "5": 1.5}}]},
            id="a table of several rows, in the order of its first column",
        ),
        pytest.param(
            {"inputs": {"a": {"0": 1.5, "1": 2}, "b": {"1": "y", "0": "x"}}},
            id="columns by label",
        ),
        pytest.param(
            {"instances": [[{"a": 1.5, "b": "x"}], [{"b": "y", "a": 2}]]}, id="lists of objects"
        ),
        pytest.param(
            {"instances": [[{"a": 1.5, "b": "x"}, {"b": "y", "a": 2}], []]},
            id="lists of objects of different lengths",
        ),
    ],
)
def test_reads_the_tables_of_pandas(body: dict[str, Any]) -> None:
    assert decode(body) == ROWS


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(
            {"inputs": {"a": {"0": 1.5}, "b": {"1": "x"}}},
            "the columns: expected the row labels of 'a' in 'b', too",
            id="other labels",
        ),
        pytest.param(
            {"inputs": {"a": {"0": 1.5}, "b": ["x"]}},
            "the columns: expected the row labels of 'a' in 'b', too",
            id="a list beside labels",
        ),
        pytest.param(
            {"inputs": {"a": [1.5], "b": {"0": "x"}}},
            "input 'b': expected a list of values",
            id="labels beside a list",
        ),
        pytest.param(
            {"instances": [{"a": {"0": 1.5}, "b": {"0": "x"}}, {"a": {"0": 1.5}, "b": {}}]},
            "the columns of row 1: expected the row labels of 'a' in 'b', too",
            id="a missing label",
        ),
        pytest.param(
            {"instances": [{"a": {"0": 1.5}}, {"a": 1}]},
            "the columns of row 1: expected the row labels of 'a' in 'a', too",
            id="a value beside tables",
        ),
        pytest.param(
            {"instances": [{"a": {"0": 1.5}}, 3]},
            "row 1 is no object, row 0 is one",
            id="no table beside a table",
        ),
        pytest.param(
            {"instances": [{"a": {"0": 1.5}}, {}]},
            "row 1: expected columns, got an empty object",
            id="an empty table",
        ),
        pytest.param(
            {"instances": [[{"a": 1}], {"a": 1}]},
            "row 1 is no list of objects, row 0 is one",
            id="an object beside lists",
        ),
    ],
)
def test_names_what_is_wrong_with_a_table(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(body)

    assert str(caught.value) == reason
