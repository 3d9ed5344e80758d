"""The requests of a `TensorModel` as one call of it: which may join, how rows are put together."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kserve.errors import RowCountError
from kserve.model import InferenceVerb, PredictOptions, TensorModel
from kserve.protocol.infer_type import InferRequest
from kserve.signature import MAX_EAGER_BYTES, Signature, Tensors


@dataclass(slots=True)
class TensorCall:
    """One request, checked.

    Attributes:
        signature: What the request is checked against.
        tensors: As the signature has them; large ones not yet converted.
        options: What else it asks for.
        verb: Whether it wants predictions or explanations.
        key: Calls of equal keys may join; None runs alone.
        n_rows: Its rows, at least 1.
        is_large: A tensor may still have to be converted.
        kind: Tells calls of one cost per element from those of another.
        size: Its elements, at least 1. Where an axis beside the rows may be of any length, or
            nothing is known of the axes, the rows tell nothing of the cost.
    """

    signature: Signature
    tensors: Tensors
    options: PredictOptions
    verb: InferenceVerb
    key: Hashable
    n_rows: int
    size: int
    is_large: bool
    kind: Hashable


class TensorBatches:
    """Checks the requests of one model and runs them together.

    Args:
        model: The model.
    """

    def __init__(self, model: TensorModel) -> None:
        self._model = model
        self._signature: Signature | None = None
        self._has_rows = False

    def check(
        self, request: InferRequest, verb: InferenceVerb = InferenceVerb.PREDICT
    ) -> TensorCall:
        """Check a request against the signature that it chooses.

        Raises:
            InvalidInput: It does not fit.
            NotImplementedError: The model cannot explain.
        """
        model = self._model
        model.check_verb(verb)
        signature = model.signature_of(request.parameters)
        if signature is not self._signature:
            self._signature = signature
            self._has_rows = model.batching and has_rows(signature)
        options = model.check_options(request)
        tensors = signature.conform(request)
        size, is_large, inputs = 0, False, []
        for name, array in tensors.items():
            size += array.size
            is_large = is_large or array.nbytes > MAX_EAGER_BYTES
            inputs.append((name, _kind(array), array.shape[1:]))
        n_rows = _n_rows(tensors)
        key = None
        is_plain = not signature.optional_inputs or len(tensors) <= len(signature.inputs)
        if self._has_rows and is_plain and n_rows > 0:
            key = (verb, tuple(inputs), options.outputs, _parameters_key(options))
        kind = verb if verb is not InferenceVerb.PREDICT else model.cost_kind(options)
        return TensorCall(
            signature, tensors, options, verb, key, n_rows or 1, size or 1, is_large, kind
        )

    def run(self, calls: list[TensorCall]) -> list[Tensors]:
        """Call the model once for calls of equal keys, or for one; blocks.

        Returns:
            The outputs of each.

        Raises:
            InvalidInput: The model refused the values.
            RowCountError: An output has not as many rows as the inputs.
            Exception: Whatever else the model raises.
        """
        first = calls[0]
        tensors = first.tensors if len(calls) == 1 else _join(calls)
        if first.is_large:
            tensors = first.signature.convert(tensors)
        outputs = self._model.call(tensors, first.options, first.verb)
        if first.key is None:
            return [outputs]
        counts = [call.n_rows for call in calls]
        _check_rows(outputs, sum(counts))
        return [outputs] if len(calls) == 1 else _split(outputs, counts)


def has_rows(signature: Signature) -> bool:
    """Say whether axis 0 of everything that a model takes and gives is the rows."""
    specs = (*signature.inputs, *signature.outputs, *signature.optional_outputs)
    is_known = bool(signature.has_rows and signature.inputs and signature.outputs)
    return is_known and all(spec.shape[:1] == (-1,) for spec in specs)


def _n_rows(tensors: Tensors) -> int:
    """Give the length of the axis 0 that all tensors share; 0 where there is none."""
    if len(tensors) == 1:
        (shape,) = [array.shape for array in tensors.values()]
        return int(shape[0]) if shape else 0
    lengths = {array.shape[:1] for array in tensors.values()}
    if len(lengths) != 1 or lengths == {()}:
        return 0
    ((n_rows,),) = lengths
    return int(n_rows)


def _kind(array: NDArray[Any]) -> Hashable:
    # Texts are `str` from JSON and `bytes` in binary form; what a model makes of one by one may
    # not be what it makes of a mixture.
    if array.dtype.kind == "O" and array.size:
        return type(array.flat[0]).__name__
    return array.dtype


def _parameters_key(options: PredictOptions) -> Hashable:
    if not options.parameters:
        return ()
    # 1, 1.0 and True are equal, and not the same to a model; a list has no hash.
    return tuple([(name, repr(value)) for name, value in sorted(options.parameters.items())])


def _join(calls: list[TensorCall]) -> Tensors:
    return {
        name: np.concatenate([call.tensors[name] for call in calls]) for name in calls[0].tensors
    }


def _check_rows(outputs: Tensors, n_rows: int) -> None:
    for name, array in outputs.items():
        if array.shape[:1] != (n_rows,):
            raise RowCountError(
                f"output {name!r}: expected {n_rows} rows, as many as the inputs have, got shape "
                f"{list(array.shape)}"
            )


def _split(outputs: Tensors, counts: list[int]) -> list[Tensors]:
    pieces = []
    start = 0
    for count in counts:
        end = start + count
        pieces.append({name: array[start:end] for name, array in outputs.items()})
        start = end
    return pieces
