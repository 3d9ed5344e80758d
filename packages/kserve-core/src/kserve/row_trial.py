"""Whether axis 0 of a model's tensors is rows that requests may put together: a trial.

An axis of any length need not be rows: the steps of a sequence have such an axis, too, and a model
may scale by the mean of it. So two invented rows are run apart and together.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kserve.logging import logger
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.signature import Signature, Tensors, TensorSpec

# Other axes of any length are this long in the trial; what refuses one may take the next.
_LENGTHS: Final = (8, 1, 64)

# What two ways to compute the same may differ by, as a share of the largest value: kernels differ
# in the last bits with the number of rows, in FP16 in the third digit.
_TOLERANCE: Final = 1e-2


def fixed_axis(signature: Signature) -> str:
    """Say which axis 0 cannot be rows, as its length is fixed or it is not there; else nothing.

    An output of any shape may have rows.
    """
    for spec in (*signature.inputs, *signature.outputs):
        is_output_of_any_shape = not spec.is_ranked and spec not in signature.inputs
        if not is_output_of_any_shape and (not spec.is_ranked or spec.shape[:1] != (-1,)):
            return f"axis 0 of {spec.name!r} is not of any length"
    return ""


def try_rows(signature: Signature, run: Callable[[Tensors], Tensors]) -> bool | None:
    """Run two rows apart and together; None if the model takes none of the invented ones.

    Args:
        signature: Axis 0 of its inputs is of any length.
        run: Calls the model.
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
