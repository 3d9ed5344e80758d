"""The parser for large arrays gives what orjson gives, or leaves the body to it."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve.errors import InvalidInput
from kserve.protocol.codec import number_blocks, v1_json, v2_json
from kserve.protocol.codec.number_blocks import NumberBlock
from kserve.protocol.infer_type import InferRequest
from kserve.signature import TensorSpec

PROPERTY = settings(derandomize=True, max_examples=100, deadline=None)

INTEGERS = ["0", "7", "-3", "255", "300", "9007199254740993", "-9223372036854775808"]
NUMBERS = [*INTEGERS, "-0", "-0.0", "1.0", "1.5", "-2e-3", "1E2", "0.1", "1e-400", "3.5e38"]
ODD = [
    "18446744073709551615",
    "18446744073709551616",
    "123456789012345678901234567890",
    "1e400",
    "01",
    "1.",
    "-",
    "true",
    "null",
    "NaN",
    '"a]["',
    '"\\u0001"',
    "[]",
    "{}",
    "",
]

# Makes a block of a short list; shapes stay shorter.
PADDING = " " * 16


def outcome(decode: Callable[[], InferRequest]) -> Any:
    try:
        request = decode()
    except InvalidInput as error:
        return error.reason
    return request.parameters, [
        (each.name, each.shape, each.datatype, str(each.as_numpy().dtype),
         repr(each.as_numpy().tolist()), repr(each.data), each.as_numpy().flags.writeable)
        for each in request.inputs
    ]  # fmt: skip


def outcomes(decode: Callable[[], InferRequest]) -> tuple[Any, Any]:
    """Decode with blocks of `PADDING` and more bytes, and without blocks."""
    with mock.patch.multiple(number_blocks, MIN_BLOCK_BYTES=len(PADDING), _BYTES_PER_LOOK=1):
        by_blocks = outcome(decode)
    with mock.patch.object(number_blocks, "parse", return_value=None):
        return by_blocks, outcome(decode)


@st.composite
def lists(draw: st.DrawFn) -> str:
    """Lists of numbers, rectangular or nearly so, with now and then something else in them."""
    numbers = draw(st.sampled_from([INTEGERS, NUMBERS]))
    depth = draw(st.integers(1, 3))
    shape = draw(st.lists(st.integers(0, 3), min_size=depth, max_size=depth))
    spoiling = draw(st.sampled_from([0, 0, 0, 1, 2]))
    comma = draw(st.sampled_from([",", ", ", " ,\n"]))
    n_values = int(np.prod(shape))
    values = draw(st.lists(st.sampled_from(numbers), min_size=n_values, max_size=n_values))
    for _ in range(spoiling if values else 0):
        values[draw(st.integers(0, n_values - 1))] = draw(st.sampled_from(ODD))
    text = _nested(iter(values), shape, comma)
    text = "[" + PADDING + text[1:]
    if draw(st.sampled_from([False, False, False, True])):
        position = draw(st.integers(0, len(text)))
        text = text[:position] + draw(st.sampled_from(["[", "]", ",", "]["])) + text[position:]
    return text


@st.composite
def ragged_lists(draw: st.DrawFn) -> str:
    """Two levels of numbers, with rows of any length and numbers or deeper lists among them."""
    number = st.sampled_from(NUMBERS)
    row = st.lists(st.one_of(number, number, number, st.just("[1]")), max_size=3)
    rows = draw(st.lists(st.one_of(row, row, row, number), min_size=1, max_size=4))
    texts = [each if isinstance(each, str) else f"[{','.join(each)}]" for each in rows]
    return f"[{PADDING}{','.join(texts)}]"


def _nested(values: Any, shape: list[int], comma: str) -> str:
    if not shape:
        return str(next(values))
    return f"[{comma.join(_nested(values, shape[1:], comma) for _ in range(shape[0]))}]"


@given(
    data=lists() | ragged_lists(),
    other=lists(),
    template=st.sampled_from(
        [
            '{"instances":%s}',
            '{"inputs":%s}',
            '{"inputs":{"a":%s,"b":%s}}',
            '{"inputs":{"a":%s,"a":%s}}',
            '{"instances":%s,"instances":%s}',
            '{"instances":[{"a":%s,"b":1},{"a":%s,"b":2}]}',
            '{"instances":[%s,%s]}',
            '{"instances":%s,"parameters":{"p":%s}}',
            '{"instances":%s,"other":%s}',
            '{"instances":%s} %s',
            '{%s:1,"instances":%s}',
            '{"instances":"%s"}',
            '{"a":"%s","instances":%s}',
            "%s",
            '\ufeff{"instances":%s}',
        ]
    ),
    specs=st.sampled_from(
        [
            (),
            (TensorSpec("a", "FP32", (-1,)),),
            (TensorSpec("a", "INT64", (-1,)),),
            (TensorSpec("a", "UINT8", (-1,)),),
            (TensorSpec("a", "UINT64", (-1,)), TensorSpec("b", "FP64", (-1,))),
            (TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "FP32", (-1,))),
            (TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "FP64", (-1,))),
            (TensorSpec("a", "FP64", (-1,), exact=False), TensorSpec("b", "FP64", (-1,))),
        ]
    ),
    is_table=st.booleans(),
)
@PROPERTY
def test_both_ways_agree_on_v1(
    data: str, other: str, template: str, specs: tuple[TensorSpec, ...], is_table: bool
) -> None:
    body = (template % ((data, other)[: template.count("%s")])).encode()

    by_blocks, plain = outcomes(lambda: v1_json.decode_tensors(body, "m", specs, is_table=is_table))

    assert by_blocks == plain


@given(
    data=lists() | ragged_lists(),
    other=lists(),
    shape=st.sampled_from(["[4]", "[2,2]", "[3]", "[0]", "[1]", "[2,3]"]),
    datatype=st.sampled_from(
        ["BOOL", "INT8", "INT64", "UINT8", "UINT64", "FP16", "FP32", "FP64", "BYTES"]
    ),
    template=st.sampled_from(
        [
            '{"inputs":[{"name":"x","shape":%(s)s,"datatype":"%(t)s","data":%(a)s}]}',
            '{"inputs":[{"data":%(a)s,"data":%(b)s,"name":"x","shape":%(s)s,"datatype":"%(t)s"}]}',
            '{"inputs":[{"name":"x","shape":%(a)s,"datatype":"%(t)s","data":%(b)s}]}',
            '{"inputs":[{"name":"x","shape":%(s)s,"datatype":"%(t)s","data":%(a)s,"z":%(b)s}]}',
            '{"inputs":[{"name":"%(b)s","shape":%(s)s,"datatype":"%(t)s","data":%(a)s}]}',
        ]
    ),
)
@PROPERTY
def test_both_ways_agree_on_v2(
    data: str, other: str, shape: str, datatype: str, template: str
) -> None:
    body = (template % {"a": data, "b": other, "s": shape, "t": datatype}).encode()

    by_blocks, plain = outcomes(lambda: v2_json.decode(body, "m"))

    assert by_blocks == plain


@given(
    array=st.sampled_from(["INT64", "UINT64", "FP64"]).flatmap(
        lambda datatype: st.tuples(
            st.just(datatype),
            st.lists(
                {
                    "INT64": st.integers(-(2**63), 2**63 - 1),
                    "UINT64": st.integers(0, 2**64 - 1),
                    "FP64": st.floats(allow_nan=False, allow_infinity=False),
                }[datatype],
                min_size=1,
                max_size=20,
            ),
        )
    )
)
@PROPERTY
def test_a_block_holds_exactly_the_numbers_sent(array: tuple[str, list[Any]]) -> None:
    datatype, values = array

    block = NumberBlock(orjson.dumps(values)).to_array(datatype)

    assert [repr(value) for value in block.tolist()] == [repr(value) for value in values]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("[[1,2],[3],[4,5,6]]", id="ragged, as many numbers as a rectangle"),
        pytest.param("[[1,2],[3,4],5,6]", id="numbers beside rows"),
        pytest.param("[5,6,[1,2],[3,4]]", id="rows beside numbers"),
        pytest.param("[[1,[2]],[3,4]]", id="a list in a row"),
        pytest.param("[[[1],2],[3,4]]", id="a list at the front of a row"),
        pytest.param("[[1],[],[2]]", id="an empty row"),
        pytest.param("[[],[1,2]]", id="an empty first row"),
        pytest.param("[[[]],[[]]]", id="nothing but lists"),
        pytest.param("[1,[]]", id="an empty list at the end"),
        pytest.param("[[1,2],[3,4]],[5]", id="two arrays"),
        pytest.param("[9007199254740993,1.0]", id="an integer that a float cannot hold"),
        pytest.param("[1.0,2.0]", id="whole floats"),
        pytest.param("[-0,-0.0]", id="negative zero"),
        pytest.param("[1,true]", id="a boolean"),
        pytest.param("[1,null]", id="null"),
        pytest.param('[1,"][2"]', id="brackets in a string"),
        pytest.param("[18446744073709551615,1]", id="an integer beyond INT64"),
        pytest.param("[18446744073709551616,1]", id="an integer beyond UINT64"),
        pytest.param("[1,300]", id="an integer beyond INT8"),
        pytest.param("[1,3.5e38]", id="a float beyond FP32"),
        pytest.param("[1.2.3,4]", id="no number"),
    ],
)
@pytest.mark.parametrize("datatype", ["INT8", "INT64", "UINT64", "FP32", "FP64", "BOOL", "BYTES"])
@pytest.mark.parametrize(
    "template",
    [
        '{"instances":%s}',
        '{"instances":%s,"instances":[5]}',
        '{"instances":[5],"instances":%s}',
        '{"instances":[5],"ignored":%s}',
        '{"\\u0069nstances":%s,"instances":[5]}',
        '{"instances":[[1],%s]}',
        '{"instances":[{"a":%s}]}',
        '{"instances":[{"a":[["x"],%s,["y"]]}]}',
        '{"a":%s,"a":1,"instances":["\\u00010"]}',
        '{"instances":"%s"}',
    ],
)
def test_both_ways_agree_on_traps(data: str, datatype: str, template: str) -> None:
    body = (template % f"[{PADDING}{data[1:]}").encode()
    spec = TensorSpec("a", datatype, (-1,))

    by_blocks, plain = outcomes(lambda: v1_json.decode_tensors(body, "m", (spec,)))

    assert by_blocks == plain


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        pytest.param(b'{"instances":', b"}", id="V1 rows"),
        pytest.param(b'{"inputs":{"a":', b',"b":["x"]}}', id="V1 columns"),
        pytest.param(
            b'{"inputs":[{"name":"x","shape":[80,20],"datatype":"FP64","data":', b"}]}", id="V2"
        ),
        pytest.param(b'{"parameters":{"a":[1]},"instances":', b" }\n", id="spaced"),
    ],
)
def test_large_arrays_do_become_blocks(head: bytes, tail: bytes) -> None:
    rows = np.arange(1600).reshape(80, 20) / 8
    body = head + orjson.dumps(rows.tolist()) + tail

    value = number_blocks.parse(body)

    blocks: list[NumberBlock] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, NumberBlock):
            blocks.append(item)
        elif isinstance(item, dict | list):
            pending += item.values() if isinstance(item, dict) else item
    (block,) = blocks
    assert block.shape == (80, 20)
    assert block.to_array("FP64").tolist() == rows.ravel().tolist()


def test_does_not_take_small_bodies() -> None:
    assert number_blocks.parse(b'{"instances":[[1,2,3,4]]}') is None


class CountingBytes(bytes):
    """Counts the searches in it and the bytes they pass over."""

    def __init__(self, _: bytes) -> None:
        self.n_searches = 0
        self.n_passed = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        found = super().find(sub, start, end)
        self._count(found - start if found >= 0 else len(self) - start)
        return found

    def rfind(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        found = super().rfind(sub, start, end)
        self._count(end - max(found, start))
        return found

    def _count(self, n_passed: int) -> None:
        self.n_searches += 1
        self.n_passed += n_passed


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"[" * 20_000, id="brackets without end"),
        pytest.param((b"[" * 1_000 + b"]" + b"1" * 20_000) * 5, id="far from the last bracket"),
        pytest.param(b'{"instances":[' + b"[{}]," * 20_000 + b"1]}", id="empty objects"),
        pytest.param(b'{"instances":["' + b"[1,2]," * 9 + b'"' + b',"[a"' * 9_000, id="strings"),
    ],
)
def test_looks_for_blocks_only_as_long_as_that_pays(text: bytes) -> None:
    body = CountingBytes(text)

    value = number_blocks.parse(body)

    assert value is None
    assert 0 < body.n_searches <= len(text) / 100
    assert body.n_passed <= len(text) * 10


def test_a_block_longer_than_simdjson_can_say_is_left_to_orjson() -> None:
    block = NumberBlock(b"[1,2,3,4]")
    block.shape = (3,)

    with pytest.raises(InvalidInput, match="too long"):
        block.to_array("INT64")


def test_a_block_says_which_number_does_not_fit() -> None:
    body = b'{"instances":[%b1e300]}' % (b"1.25," * 2000)

    with pytest.raises(InvalidInput) as caught:
        v1_json.decode_tensors(body, "m", (TensorSpec("x", "FP32", (-1,)),))

    assert caught.value.reason == "input 'x': the value at [2000] is 1e+300, which is no FP32"
