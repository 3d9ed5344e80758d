"""What V1 and V2 requests hold."""

from typing import Any

import numpy as np
import pytest

from hfserver.inputs import Wishes, read_v1, read_v2
from kserve.errors import InvalidInput
from kserve.protocol.infer_type import InferInput, InferRequest


def v2(*inputs: InferInput, **parameters: Any) -> InferRequest:
    return InferRequest("m", list(inputs), parameters=parameters)


def column(name: str, values: list[Any], shape: list[int] | None = None) -> InferInput:
    return InferInput(name, shape or [len(values)], "BYTES", values)


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        pytest.param([], [], id="none"),
        pytest.param(["a", "b c"], ["a", "b c"], id="texts"),
        pytest.param([["a", "b"], ["c"]], [("a", "b"), "c"], id="lists"),
        pytest.param(
            [{"text": "a"}, {"text": "a", "text_pair": "b"}, {"text": "a", "text_pair": None}],
            ["a", ("a", "b"), "a"],
            id="objects",
        ),
    ],
)
@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_reads_the_rows_of_v1(rows: list[Any], texts: list[Any], key: str) -> None:
    assert read_v1({key: rows}) == (texts, Wishes())


def test_reads_a_v1_body_of_a_type_that_says_no_json() -> None:
    assert read_v1(b'{"instances": ["a"]}')[0] == ["a"]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        pytest.param({}, 'Expected "instances" or "inputs"', id="no rows"),
        pytest.param(["a"], 'Expected "instances" or "inputs"', id="no object"),
        pytest.param(b"a", "Unrecognized request format", id="no JSON"),
        pytest.param({"instances": "a"}, 'Expected "instances" to be a list', id="a text"),
        pytest.param(
            {"instances": ["a", 1]},
            r"instances\[1\]: expected a text, a list of two texts, or .*, got 1",
            id="a number",
        ),
        pytest.param({"instances": [["a", "b", "c"]]}, r"instances\[0\]", id="three texts"),
        pytest.param({"instances": [{"text": "a", "x": 1}]}, r"instances\[0\]", id="a key"),
        pytest.param({"instances": [{"text": 1}]}, r"instances\[0\]", id="no text in an object"),
        pytest.param({"instances": [], "parameters": []}, "to be an object", id="parameters"),
    ],
)
def test_refuses_other_payloads_of_v1(payload: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_v1(payload)


@pytest.mark.parametrize(
    ("request_", "texts"),
    [
        pytest.param(v2(column("x", ["a", "é"])), ["a", "é"], id="any name"),
        pytest.param(v2(column("x", ["a", "b"], [2, 1])), ["a", "b"], id="a column"),
        pytest.param(v2(column("x", [b"a", "é".encode()])), ["a", "é"], id="bytes"),
        pytest.param(v2(column("x", [], [0])), [], id="none"),
        pytest.param(
            v2(column("x", ["a", "b", "c", "d"], [2, 2])), [("a", "b"), ("c", "d")], id="pairs"
        ),
        pytest.param(
            v2(column("text_pair", ["b", "d"]), column("text", ["a", "c"])),
            [("a", "b"), ("c", "d")],
            id="two inputs",
        ),
    ],
)
def test_reads_the_tensors_of_v2(request_: InferRequest, texts: list[Any]) -> None:
    assert read_v2(request_) == (texts, Wishes())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        pytest.param(v2(), "expected one input, or two named .*, got none", id="none"),
        pytest.param(
            v2(column("a", ["x"]), column("b", ["x"])), "got 2: 'a', 'b'", id="other names"
        ),
        pytest.param(
            v2(InferInput("x", [1], "FP32", np.ones(1, np.float32))),
            "input 'x': expected datatype BYTES, got FP32",
            id="numbers",
        ),
        pytest.param(
            v2(column("x", ["a"] * 3, [1, 3])),
            r"expected shape \[-1\], .* got \[1, 3\]",
            id="shape",
        ),
        pytest.param(v2(column("x", [b"\xff"])), "expected texts in UTF-8", id="no UTF-8"),
        pytest.param(
            v2(column("text", ["a"]), column("text_pair", ["a", "b"])),
            "differ in their number of rows: 'text' 1, 'text_pair' 2",
            id="lengths",
        ),
        pytest.param(
            v2(column("text", ["a"] * 2, [1, 2]), column("text_pair", ["a"])),
            r"input 'text': expected shape \[-1\], got \[1, 2\]",
            id="a pair in a column",
        ),
    ],
)
def test_refuses_other_tensors_of_v2(request_: InferRequest, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_v2(request_)


def test_reads_parameters_as_json_has_them() -> None:
    parameters = {
        "top_k": 3,
        "targets": ["a", "b"],
        "return_probabilities": False,
        "function_to_apply": "sigmoid",
        "aggregation_strategy": "max",
        "truncation": "none",
        "dimensions": 8,
        "normalize": False,
        "prompt_name": "query",
        "binary_data_output": True,
    }

    assert read_v1({"instances": [], "parameters": parameters})[1] == Wishes(
        rich_results=True,
        return_probabilities=False,
        top_k=3,
        function="sigmoid",
        strategy="max",
        targets=("a", "b"),
        truncation="none",
        dimensions=8,
        normalize=False,
        prompt_name="query",
    )


def test_reads_parameters_that_are_texts() -> None:
    wishes = Wishes.read(
        {"top_k": "-1", "rich_results": "False", "targets": '["a", "b"]', "normalize": "1"}
    )

    assert wishes == Wishes(rich_results=False, top_k=-1, targets=("a", "b"), normalize=True)
    assert Wishes.read({"targets": "[word"}).targets == ("[word",)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("top_k", 0, "an integer, 1 or more, or -1 for all, got 0"),
        ("top_k", True, "an integer, 1 or more, or -1 for all, got True"),
        ("top_k", "many", "an integer, 1 or more, or -1 for all, got 'many'"),
        ("dimensions", -1, "an integer, 1 or more, got -1"),
        ("rich_results", "maybe", "true or false, got 'maybe'"),
        ("truncation", "middle", "one of 'none', 'left', 'right', got 'middle'"),
        ("targets", [1], r"a list of texts, got \[1\]"),
        ("prompt_name", 1, "a text, got 1"),
    ],
)
def test_refuses_parameters_that_mean_nothing(name: str, value: Any, expected: str) -> None:
    with pytest.raises(InvalidInput, match=f"parameter '{name}': expected {expected}"):
        Wishes.read({name: value})
