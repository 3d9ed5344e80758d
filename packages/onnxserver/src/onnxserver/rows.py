"""Whether axis 0 is rows that requests may put together: what the graph says, and a trial.

A name that axis 0 of all inputs and outputs shares says that they have equally many entries, not
that these have nothing to do with one another: the steps of a recurrent net share a name, too. And
exporters often name the axes of the inputs alone. So two rows are run apart and together.

- One name for all: they are rows, unless the trial shows that one depends on the other.
- Axis 0 of any length, but without a name, or with another one in an output: rows only if the
  trial shows that none depends on another.
- Anything else: none.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kserve.logging import logger
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.signature import Signature, Tensors, TensorSpec
from onnxserver.graph import Graph
from onnxserver.model_file import ModelFile

# Other axes of any length are this long in the trial; what refuses one may take the next.
_LENGTHS: Final = (8, 1, 64)

# What two ways to compute the same may differ by, as a share of the largest value: kernels differ
# in the last bits with the number of rows, in FP16 in the third digit.
_TOLERANCE: Final = 1e-2

# They scale by the largest value of a whole call.
_MIXING_OPERATORS: Final = frozenset(
    ("DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul")
)


def find_rows(graph: Graph, file: ModelFile) -> tuple[bool, str]:
    """Say whether requests may run together, and why.

    Args:
        graph: What is called.
        file: Tells its operators.
    """
    if reason := _reason_against(graph, file):
        return False, reason
    is_certain = len(graph.axis_0_names) == 1 and None not in graph.axis_0_names
    is_shown = try_rows(graph.signature, graph.run)
    if is_shown is None and is_certain:
        return True, "axis 0 has one name, and no trial succeeded"
    if is_shown is None:
        return False, "axis 0 has no common name, and no trial succeeded"
    if not is_shown:
        return False, "in a trial of two rows, one depended on the other"
    return True, "in a trial of two rows, none depended on the other"


def try_rows(signature: Signature, run: Callable[[Tensors], Tensors]) -> bool | None:
    """Run two rows apart and together; None if the graph takes none of the invented ones.

    Args:
        signature: Axis 0 of its inputs is of any length.
        run: Calls the graph.
    """
    for length in _LENGTHS:
        first, second = (
            {spec.name: _invent(spec, length, sign) for spec in signature.inputs}
            for sign in (1.0, -0.7)
        )
        try:
            apart = (run(first), run(second))
        except Exception as exc:  # whatever it is: nobody has asked for these values
            logger.debug("A trial with axes of length %d failed: %s", length, exc)
            continue
        both = {name: np.concatenate([first[name], second[name]]) for name in first}
        try:
            return _are_rows(apart, run(both))
        except Exception as exc:
            logger.debug("A trial with two rows failed: %s", exc)
            return False
    return None


def _reason_against(graph: Graph, file: ModelFile) -> str:
    mixing = sorted(_MIXING_OPERATORS & file.op_types)
    if mixing:
        return f"{mixing[0]} scales by all rows of a call"
    if not graph.signature.inputs:
        return "it has no input"
    for output in graph.outputs:
        if output.is_open:
            return f"output {output.name!r} is no tensor"
    if len(graph.input_axis_0_names - {None}) > 1:
        return f"axis 0 of the inputs has several names: {_sorted(graph.input_axis_0_names)}"
    for spec in (*graph.signature.inputs, *graph.signature.outputs):
        is_output_of_any_shape = not spec.is_ranked and spec not in graph.signature.inputs
        if not is_output_of_any_shape and (not spec.is_ranked or spec.shape[:1] != (-1,)):
            return f"axis 0 of {spec.name!r} is not of any length"
    return ""


def _sorted(names: Iterable[str | None]) -> str:
    return ", ".join(sorted(filter(None, names)))


def _invent(spec: TensorSpec, length: int, sign: float) -> NDArray[Any]:
    """Invent one row: numbers of both signs, indices of 0 and 1, which few graphs do not know."""
    dtype = NUMPY_DTYPES[spec.datatype]
    shape = (1, *(length if axis == -1 else axis for axis in spec.shape[1:]))
    random = np.random.default_rng(len(spec.name))
    if dtype.kind == "f":
        return (sign * random.standard_normal(shape)).astype(dtype)
    bits = random.integers(0, 2, shape)
    if sign < 0:
        bits = 1 - bits
    return bits.astype(dtype) if dtype.kind != "O" else np.where(bits, "b", "a").astype(dtype)


def _are_rows(apart: tuple[Tensors, Tensors], together: Tensors) -> bool:
    """Say whether outputs of two rows are those of each alone."""
    if not all(output.keys() == together.keys() for output in apart):
        return False
    for name, array in together.items():
        first, second = apart[0][name], apart[1][name]
        if not first.shape[:1] == second.shape[:1] == (1,) or first.shape[1:] != second.shape[1:]:
            return False
        expected = np.concatenate([first, second])
        if expected.shape != array.shape or not _are_close(array, expected):
            return False
    return True


def _are_close(array: NDArray[Any], expected: NDArray[Any]) -> bool:
    if array.dtype.kind != "f":
        return bool(np.array_equal(array, expected))
    finite = np.abs(expected[np.isfinite(expected)], dtype=np.float64)
    scale = float(finite.max(initial=0.0))
    wide = array.astype(np.float64), expected.astype(np.float64)
    return bool(np.allclose(*wide, rtol=0, atol=_TOLERANCE * scale, equal_nan=True))
