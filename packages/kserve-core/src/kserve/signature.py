"""What a model takes and gives, and the check of a request against it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kserve.errors import InvalidInput
from kserve.listing import listing, quoted
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.protocol.infer_type import InferRequest

Tensors = dict[str, NDArray[Any]]

# What is converted when it comes. Of 64 requests of 1,000 x 100 FP32 that were all converted at
# once, each took three times as long as one alone: what the CPU had in reach was gone.
MAX_EAGER_BYTES: Final = 32 << 10

# One name, so that requests that call it otherwise run together.
TABLE_NAME: Final = "input-0"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that a model takes or gives.

    Attributes:
        name: The tensor's name.
        datatype: One of the protocol's datatypes.
        shape: Its axes; -1 is an axis of any length.
        exact: False where the artifact does not tell the datatype and `datatype` is a guess:
            values are then passed on as they came.
        is_ranked: False where the artifact does not tell the axes, not even how many: `shape` is
            then what the metadata says, and any shape is passed on.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    exact: bool = True
    is_ranked: bool = True

    def __post_init__(self) -> None:
        """Take a list as the shape, too: shapes are compared with tuples."""
        object.__setattr__(self, "shape", tuple(self.shape))

    def metadata(self) -> dict[str, Any]:
        """Give the entry of the model's metadata."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a model.

    Attributes:
        inputs: What it takes; empty where the artifact does not tell, then nothing is checked.
        outputs: What it gives unless the request names other outputs.
        optional_outputs: What it gives only on request.
        optional_inputs: What a request may give beside the inputs, each by its name; they are no
            rows, and a request that gives one runs alone.
        is_table: The inputs are the columns of one table, each of shape (n_rows,). One tensor of
            shape (n_rows, n_columns) then stands for all of them, in their order.
        may_be_empty: A request may have no inputs at all: the model needs none.
        has_rows: An axis 0 of -1 is the rows, of which all inputs have as many. False where axes
            of any length have nothing to do with one another.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    optional_outputs: tuple[TensorSpec, ...] = ()
    optional_inputs: tuple[TensorSpec, ...] = ()
    is_table: bool = False
    may_be_empty: bool = False
    has_rows: bool = True

    def metadata(self) -> dict[str, Any]:
        """Give the entry of the metadata of a model that has several."""
        return {
            "inputs": [spec.metadata() for spec in self.inputs],
            "outputs": [spec.metadata() for spec in self.outputs],
        }

    def check(self, request: InferRequest) -> Tensors:
        """Give the request's tensors as the model takes them; see `conform`.

        Raises:
            InvalidInput: As `conform`.
        """
        return self.convert(self.conform(request))

    def conform(self, request: InferRequest) -> Tensors:
        """Give the request's tensors by the names of the signature, in its order and datatypes.

        A model of one input accepts it under any name. A tensor that stands for a whole table
        is `TABLE_NAME`, whatever its name was. Conversion is by datatype, never by value: any
        number into any float, integers and booleans into wider integers.

        Large arrays are only checked: while they wait they stay views of the request, and
        `convert` makes of them what the model takes when it is about to be called.

        Raises:
            InvalidInput: A missing or unknown input, a wrong shape or datatype, or inputs of
            different numbers of rows where the signature says that axis 0 may be of any length.
        """
        given = {tensor.name: tensor.as_view() for tensor in request.inputs}
        if self.optional_inputs:
            return self._check_with_optional(given)
        if not self.inputs:
            return {name: _convert(array, None, name) for name, array in given.items()}
        return self._check_inputs(given)

    def convert(self, tensors: Tensors) -> Tensors:
        """Give tensors that `conform` gave in the signature's datatypes, and aligned."""
        targets = {spec.name: _target(spec) for spec in (*self.inputs, *self.optional_inputs)}
        if self.is_table:
            exact = [spec for spec in self.inputs if spec.exact]
            targets.setdefault(TABLE_NAME, _target(exact[0]) if exact else None)
        return {name: _cast(array, targets.get(name)) for name, array in tensors.items()}

    def check_outputs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Give the names of requested outputs back, all of which the model has.

        Raises:
            InvalidInput: The model has no output of a name.
        """
        requested = tuple(names)
        if not self.outputs:
            return requested
        known = [spec.name for spec in (*self.outputs, *self.optional_outputs)]
        for name in requested:
            if name not in known:
                raise InvalidInput(
                    f"Unexpected inference output {name!r}: the model has {quoted(known)}"
                )
        return requested

    def _check_with_optional(self, given: Tensors) -> Tensors:
        optional = {
            spec.name: _conform(given.pop(spec.name), spec, spec.name)
            for spec in self.optional_inputs
            if spec.name in given
        }
        if self.inputs:
            return self._check_inputs(given) | optional
        self._check_names(given)
        return optional

    def _check_inputs(self, given: Tensors) -> Tensors:
        if len(given) == 1 and self._is_matrix(next(iter(given.values()))):
            return self._check_matrix(given)
        if len(self.inputs) == 1:
            spec = self.inputs[0]
            if len(given) != 1:
                got = f"{len(given)}: {quoted(given)}" if given else "none"
                raise InvalidInput(f"expected one input, {spec.name!r}, got {got}")
            ((name, array),) = given.items()
            return {spec.name: _conform(array, spec, name)}
        if self.is_table and len(given) == 1:
            self._check_lone(given)
        self._check_names(given)
        tensors = {spec.name: _conform(given[spec.name], spec, spec.name) for spec in self.inputs}
        if self.has_rows:
            _check_rows([spec.name for spec in self.inputs if spec.shape[:1] == (-1,)], tensors)
        return tensors

    def _is_matrix(self, array: NDArray[Any]) -> bool:
        return self.is_table and array.ndim == 2 and (len(self.inputs) > 1 or array.shape[1] != 1)

    def _check_matrix(self, given: Tensors) -> Tensors:
        ((name, array),) = given.items()
        expected = (-1, len(self.inputs))
        if array.shape[1] != expected[1]:
            raise InvalidInput(_shape_text(name, expected, array))
        exact = [spec for spec in self.inputs if spec.exact]
        if len({spec.datatype for spec in exact}) > 1:
            raise InvalidInput(
                f"input {name!r}: the columns have different datatypes, send one tensor for each: "
                f"{quoted([spec.name for spec in self.inputs])}"
            )
        return {TABLE_NAME: _convert(array, exact[0] if exact else None, name)}

    def _check_lone(self, given: Tensors) -> None:
        ((name, array),) = given.items()
        if name not in [spec.name for spec in self.inputs]:
            raise InvalidInput(_shape_text(name, (-1, len(self.inputs)), array))

    def _check_names(self, given: Mapping[str, Any]) -> None:
        expected = [spec.name for spec in self.inputs]
        missing = [name for name in expected if name not in given]
        unknown = [name for name in given if name not in expected]
        if missing or unknown:
            parts = [f"missing {quoted(missing)}"] if missing else []
            parts += [f"unknown {quoted(unknown)}"] if unknown else []
            raise InvalidInput(f"expected {self._inputs_text(expected)}: {', '.join(parts)}")

    def _inputs_text(self, names: list[str]) -> str:
        """Name the inputs that a request may have."""
        text = f"inputs {quoted(names)}" if names else "no inputs"
        optional = [spec.name for spec in self.optional_inputs]
        return f"{text} and perhaps {quoted(optional)}" if optional else text


def _conform(array: NDArray[Any], spec: TensorSpec, name: str) -> NDArray[Any]:
    if not spec.is_ranked:
        return _convert(array, spec, name)
    if array.ndim == 2 and len(spec.shape) == 1 and array.shape[1] == 1:
        array = array.reshape(-1)
    if len(spec.shape) != array.ndim or any(
        expected not in (-1, got) for expected, got in zip(spec.shape, array.shape, strict=True)
    ):
        raise InvalidInput(_shape_text(name, spec.shape, array))
    return _convert(array, spec, name)


def _convert(array: NDArray[Any], spec: TensorSpec | None, name: str) -> NDArray[Any]:
    target = None if spec is None else _target(spec)
    if target is not None and array.dtype != target and not _can_cast(array.dtype, target):
        expected = spec and spec.datatype
        raise InvalidInput(f"input {name!r}: expected datatype {expected}, got {_datatype(array)}")
    return array if array.nbytes > MAX_EAGER_BYTES else _cast(array, target)


def _target(spec: TensorSpec) -> np.dtype[Any] | None:
    """Give the dtype that an input is converted to; None where the datatype is a guess."""
    return NUMPY_DTYPES[spec.datatype] if spec.exact else None


def _can_cast(dtype: np.dtype[Any], target: np.dtype[Any]) -> bool:
    if target.kind == "f":
        return dtype.kind in "fiub"
    return target.kind in "iu" and dtype.kind in "iub" and np.can_cast(dtype, target)


def _cast(array: NDArray[Any], target: np.dtype[Any] | None) -> NDArray[Any]:
    if target is not None and array.dtype != target:
        # Never by value: 1e300 is infinite in FP32, and no warning on stderr.
        with np.errstate(over="ignore"):
            return array.astype(target)
    return array if array.flags.aligned else array.copy()


def _check_rows(names: Iterable[str], tensors: Tensors) -> None:
    lengths = {name: len(tensors[name]) for name in names}
    if len(set(lengths.values())) > 1:
        counts = listing([f"{name!r} {length}" for name, length in lengths.items()])
        raise InvalidInput(f"the inputs differ in their number of rows: {counts}")


def _datatype(array: NDArray[Any]) -> str:
    return next(
        (name for name, dtype in NUMPY_DTYPES.items() if dtype == array.dtype), str(array.dtype)
    )


def _shape_text(name: str, expected: tuple[int, ...], array: NDArray[Any]) -> str:
    return f"input {name!r}: expected shape {list(expected)}, got {list(array.shape)}"
