"""Outputs of a graph as named tensors.

A tensor is a tensor. A sequence of maps, as classifiers give it that were converted from
scikit-learn, is a column for each key. A sequence of tensors is one output for each of them, and an
optional is there or not.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.signature import Tensors, TensorSpec

# ONNX Runtime's names to the protocol's. What is not here (bfloat16, float8, int4, complex and
# their kind) has no datatype there.
_DATATYPES: Final = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
}

_OPTIONAL: Final = re.compile(r"optional\((.+)\)")
_TENSOR: Final = re.compile(r"tensor\((\w+)\)")
_SEQUENCE: Final = re.compile(r"seq\(tensor\((\w+)\)\)")
_MAP: Final = re.compile(r"(?:seq\()?map\(\w+,(?:tensor\()?(\w+)\)+")

# What the metadata says where nothing is known; a sequence's tensors may differ in their shapes.
_UNKNOWN_SHAPE: Final = (-1,)

Labels = Sequence[int | str]


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a graph.

    Attributes:
        name: Its name in the graph.
        specs: The tensors that it always is.
        group: Stands for all its tensors where they are several, or not known before; a request
            asks for them by its name.
        unpack: Makes the tensors of its value; None where the value is the tensor.
    """

    name: str
    specs: tuple[TensorSpec, ...]
    group: TensorSpec | None = None
    unpack: Callable[[Any], Tensors] | None = None

    @property
    def is_open(self) -> bool:
        """Whether only its value tells which tensors it is."""
        return not self.specs

    def tensors(self, value: Any, wanted: Sequence[str] = ()) -> Tensors:
        """Give the tensors of a value: those that are wanted, or all."""
        found = {self.name: value} if self.unpack is None else self.unpack(value)
        if not wanted or self.is_open or self.group is None:
            return found
        chosen = {name: found[name] for name in wanted if name in found}
        if self.group.name in wanted:
            chosen[self.group.name] = np.stack(list(found.values()), axis=1)
        return chosen

    def members(self, given: Sequence[str]) -> list[str]:
        """Give the names of those of an answer's tensors that its own name stands for."""
        return [name for name in given if name == self.name or name.startswith(f"{self.name}-")]


def is_optional(type_name: str) -> bool:
    """Say whether a type is one that need not have a value."""
    return _OPTIONAL.fullmatch(type_name) is not None


def tensor_spec(
    name: str, type_name: str, shape: Sequence[Any], *, is_ranked: bool
) -> TensorSpec | None:
    """Describe a tensor, which may be optional; None for all that the protocol cannot carry.

    Args:
        name: Its name.
        type_name: ONNX Runtime's name of its type, such as "tensor(float)".
        shape: Its axes; what is no number, or a negative one, is of any length.
        is_ranked: Whether it has a shape at all.
    """
    match = _TENSOR.fullmatch(_required(type_name))
    datatype = _DATATYPES.get(match[1]) if match else None
    if datatype is None:
        return None
    if not is_ranked:
        return TensorSpec(name, datatype, _UNKNOWN_SHAPE, is_ranked=False)
    axes = [axis if isinstance(axis, int) and axis >= 0 else -1 for axis in shape]
    return TensorSpec(name, datatype, tuple(axes))


def describe_output(
    name: str, type_name: str, spec: TensorSpec | None, labels: Labels | None
) -> Output | None:
    """Describe an output; None if the protocol cannot carry it.

    Args:
        name: Its name.
        type_name: ONNX Runtime's name of its type.
        spec: Of a tensor, what it is.
        labels: Of maps, their keys, if they are known.
    """
    if spec is not None and is_optional(type_name):
        return Output(name, (), spec, partial(_present, name))
    if spec is not None:
        return Output(name, (spec,))
    kind = _required(type_name)
    if match := _SEQUENCE.fullmatch(kind):
        datatype = _DATATYPES.get(match[1])
        group = TensorSpec(name, datatype or "", _UNKNOWN_SHAPE)
        return Output(name, (), group, partial(_elements, name)) if datatype else None
    match = _MAP.fullmatch(kind)
    datatype = _DATATYPES.get(match[1]) if match else None
    return _columns_output(name, datatype, labels) if datatype else None


def _required(type_name: str) -> str:
    match = _OPTIONAL.fullmatch(type_name)
    return match[1] if match else type_name


def _columns_output(name: str, datatype: str, labels: Labels | None) -> Output:
    unpack = partial(_columns, name, NUMPY_DTYPES[datatype], labels)
    if labels is None:
        return Output(name, (), TensorSpec(name, datatype, (-1, -1)), unpack)
    specs = tuple(TensorSpec(f"{name}-{label}", datatype, (-1,)) for label in labels)
    return Output(name, specs, TensorSpec(name, datatype, (-1, len(labels))), unpack)


def _present(name: str, value: Any) -> Tensors:
    return {} if value is None else {name: value}


def _elements(name: str, value: Sequence[NDArray[Any]] | None) -> Tensors:
    return {f"{name}-{i}": np.asarray(element) for i, element in enumerate(value or ())}


def _columns(name: str, dtype: np.dtype[Any], labels: Labels | None, value: Any) -> Tensors:
    rows: Sequence[Mapping[Any, Any]] = [value] if isinstance(value, Mapping) else value or ()
    if labels is None:
        labels = list(rows[0]) if rows else []
    return {f"{name}-{label}": np.array([row[label] for row in rows], dtype) for label in labels}
