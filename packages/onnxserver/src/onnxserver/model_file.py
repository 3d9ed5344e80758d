"""What an ONNX file tells that a session does not: which shapes are there at all, class labels.

A session shows a scalar and a tensor of unknown axes alike, as a shape without axes. The file is
mapped, and weights are passed over unread.

Source: onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kserve.protocol.grpc.varint import decode_varint

# Of protobuf: how the content of a field is written.
_VARINT, _I64, _LENGTH_DELIMITED, _I32 = 0, 1, 2, 5

# Field numbers.
_MODEL_PRODUCER_NAME, _MODEL_PRODUCER_VERSION, _MODEL_GRAPH, _MODEL_OPSET_IMPORT = 2, 3, 7, 8
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 11, 12
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR, _TYPE_OPTIONAL = 1, 9
_TENSOR_SHAPE, _SHAPE_DIM, _DIM_VALUE = 2, 1, 1
_OPTIONAL_ELEMENT = 1
_NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INTS, _ATTRIBUTE_STRINGS = 1, 8, 9

_SIGN: Final = 1 << 63


@dataclass(slots=True)
class ModelFile:
    """What was read of a model's file.

    Attributes:
        producer: What wrote it, such as "skl2onnx 1.19"; empty if it does not tell.
        opsets: The version of each operator set that it uses; "" is ONNX' own.
        unranked: The names of inputs and outputs that are tensors without a shape.
        has_dynamic_inputs: Whether an input has an axis of any length, or no shape.
        op_types: The operators of the main graph.
        class_labels: The labels that a ZipMap makes keys of, by the name of its output.
    """

    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    unranked: set[str] = field(default_factory=set)
    has_dynamic_inputs: bool = False
    op_types: set[str] = field(default_factory=set)
    class_labels: dict[str, list[int] | list[str]] = field(default_factory=dict)


class MessageView:
    """A message: a part of the file."""

    __slots__ = ("data", "end", "start")

    def __init__(self, data: mmap.mmap | bytes, start: int, end: int) -> None:
        self.data = data
        self.start = start
        self.end = end

    def fields(self) -> Iterator[tuple[int, "int | MessageView"]]:
        """Give the number of each field, and its number or content.

        Raises:
            IndexError, ValueError: It is no such message.
        """
        for number, value, _ in self.spans():
            yield number, value

    def spans(self) -> Iterator[tuple[int, "int | MessageView", slice]]:
        """Give the same, and where each field lies; a floating-point number reads as 0.

        Raises:
            IndexError, ValueError: It is no such message.
        """
        data, position = self.data, self.start
        while position < self.end:
            start = position
            value: int | MessageView = 0
            tag, position = decode_varint(data, position)  # type: ignore[arg-type]
            wire_type = tag & 7
            if wire_type == _LENGTH_DELIMITED:
                length, position = decode_varint(data, position)  # type: ignore[arg-type]
                value = MessageView(data, position, position + length)
                position += length
            elif wire_type == _VARINT:
                value, position = decode_varint(data, position)  # type: ignore[arg-type]
                value -= (1 << 64) if value & _SIGN else 0
            elif wire_type in (_I64, _I32):
                position += 8 if wire_type == _I64 else 4
            else:
                raise ValueError(f"wire type {wire_type}")
            if position > self.end:
                raise ValueError("a field that ends behind its message")
            yield tag >> 3, value, slice(start, position)

    def messages(self, number: int) -> Iterator["MessageView"]:
        """Give the contents of every field of a number."""
        for found, value in self.fields():
            if found == number and isinstance(value, MessageView):
                yield value

    def text(self, number: int) -> str:
        """Give a field that is text; empty if it is not there."""
        return next((str(view) for view in self.messages(number)), "")

    def integers(self, number: int) -> list[int]:
        """Give a repeated field of integers, packed or not."""
        values: list[int] = []
        for found, value in self.fields():
            if found != number:
                continue
            if isinstance(value, MessageView):
                values += value.packed()
            else:
                values.append(value)
        return values

    def packed(self) -> Iterator[int]:
        """Give the integers that it consists of."""
        position = self.start
        while position < self.end:
            value, position = decode_varint(self.data, position)  # type: ignore[arg-type]
            yield value - (1 << 64) if value & _SIGN else value

    def __str__(self) -> str:
        return self.data[self.start : self.end].decode(errors="replace")


def read_model_file(path: Path) -> ModelFile:
    """Read what a file tells; as much as can be read where it is damaged or something else.

    Raises:
        OSError: The file cannot be read.
    """
    if not path.stat().st_size:
        return ModelFile()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return read_model(data)


def read_model(data: mmap.mmap | bytes) -> ModelFile:
    """Read what the bytes of a file tell; as `read_model_file`."""
    found = ModelFile()
    # Of damaged ones the session says what is wrong with them.
    with suppress(IndexError, ValueError):
        _read_model(MessageView(data, 0, len(data)), found)
    return found


def _read_model(model: MessageView, found: ModelFile) -> None:
    for opset in model.messages(_MODEL_OPSET_IMPORT):
        domain = opset.text(_OPSET_DOMAIN)
        found.opsets["" if domain == "ai.onnx" else domain] = sum(opset.integers(_OPSET_VERSION))
    names = (model.text(_MODEL_PRODUCER_NAME), model.text(_MODEL_PRODUCER_VERSION))
    found.producer = " ".join(filter(None, names))
    for graph in model.messages(_MODEL_GRAPH):
        _read_graph(graph, found)


def _read_graph(graph: MessageView, found: ModelFile) -> None:
    for number, value in graph.fields():
        if not isinstance(value, MessageView):
            continue
        if number == _GRAPH_NODE:
            _read_node(value, found)
        elif number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            shape = _shape(value)
            if shape is None:
                found.unranked.add(value.text(_VALUE_NAME))
            if number == _GRAPH_INPUT and (shape is None or None in shape):
                found.has_dynamic_inputs = True


def _shape(value: MessageView) -> list[int | None] | None:
    """Give the shape of a tensor, None for each axis of any length; None where there is none."""
    for kind in value.messages(_VALUE_TYPE):
        for optional in kind.messages(_TYPE_OPTIONAL):
            kind = next(optional.messages(_OPTIONAL_ELEMENT), kind)
        for tensor in kind.messages(_TYPE_TENSOR):
            for shape in tensor.messages(_TENSOR_SHAPE):
                return [_length(dim) for dim in shape.messages(_SHAPE_DIM)]
            return None
    return []


def _length(dim: MessageView) -> int | None:
    return next((value for value in dim.integers(_DIM_VALUE) if value >= 0), None)


def _read_node(node: MessageView, found: ModelFile) -> None:
    op_type = node.text(_NODE_OP_TYPE)
    found.op_types.add(op_type)
    if op_type != "ZipMap":
        return
    for attribute in node.messages(_NODE_ATTRIBUTE):
        name = attribute.text(_ATTRIBUTE_NAME)
        if name == "classlabels_int64s":
            found.class_labels[node.text(_NODE_OUTPUT)] = attribute.integers(_ATTRIBUTE_INTS)
        elif name == "classlabels_strings":
            labels = attribute.messages(_ATTRIBUTE_STRINGS)
            found.class_labels[node.text(_NODE_OUTPUT)] = list(map(str, labels))
