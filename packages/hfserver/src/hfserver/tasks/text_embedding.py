"""Embeddings of texts: as the engine pools them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hfserver.inputs import Wishes
from hfserver.tasks.results import OUTPUT, Kind, Result
from kserve.signature import Tensors, TensorSpec


class TextEmbedding:
    """Makes the answers.

    Args:
        n_dimensions: Of an embedding, where the request does not say.
    """

    def __init__(self, n_dimensions: int) -> None:
        self.n_dimensions = n_dimensions

    def outputs(self, kind: Kind) -> tuple[TensorSpec, ...]:
        """Give the output of V2: in FP64, as KServe's server has it, or in FP32."""
        if kind is Kind.RICH:
            return (TensorSpec("embedding", "FP32", (-1, self.n_dimensions)),)
        return (TensorSpec(OUTPUT, "FP64", (-1, self.n_dimensions)),)

    def row(self, result: Result, kind: Kind, wishes: Wishes) -> Any:
        """Give an embedding as a list."""
        return result.numbers.tolist()

    def tensors(self, results: Sequence[Result], kind: Kind, wishes: Wishes) -> Tensors:
        """Give the embeddings, shape [n, n_dimensions]."""
        (spec,) = self.outputs(kind)
        dtype = np.float32 if kind is Kind.RICH else np.float64
        if not results:
            n_dimensions = wishes.dimensions or self.n_dimensions
            return {spec.name: np.empty((0, n_dimensions), dtype=dtype)}
        return {spec.name: np.stack([result.numbers for result in results]).astype(dtype)}
