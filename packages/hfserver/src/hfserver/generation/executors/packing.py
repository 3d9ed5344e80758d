"""Weights in the order in which a CPU's multiplication reads them.

Before torch multiplies, it puts a weight in order, which takes most of the time where rows are few:
in a step of some sequences. oneDNN can be given it in order, as torch's own compiler does. A
step of 8 sequences takes about two thirds of the time then, and a long prompt four fifths.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn

from hfserver.generation.memory import memory_left
from hfserver.loading import has_bfloat16
from kserve.logging import logger

# How many rows the order is made for; others are as right, and hardly slower.
_N_ROWS: Final = 16

# Of the memory that is left, what a copy of a weight may take that others use too.
_COPY_SHARE: Final = 1 / 8


class PackedLinear(nn.Module):  # type: ignore[misc]
    """Takes the place of a linear layer.

    Args:
        linear: The layer; its weight may be freed.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _N_ROWS)
        self.bias = linear.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply.

        Args:
            rows: Shape (..., in_features).

        Returns:
            Shape (..., out_features).
        """
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self.weight, self.bias, "none", [], ""
        )
        return result


class PackedModel:
    """Packs the linear layers of a model; does nothing where that cannot be done.

    Args:
        model: Of transformers, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self._replaced: list[tuple[nn.Module, str, nn.Linear]] = []
        if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return
        n_uses = _count_uses(model)
        may_copy = memory_left(model.device) * _COPY_SHARE
        for parent, name, linear in list(_linears(model)):
            is_shared = n_uses[id(linear.weight)] > 1
            if is_shared and linear.weight.nbytes > may_copy:
                continue
            setattr(parent, name, PackedLinear(linear))
            if not is_shared:
                linear.weight = None
            self._replaced.append((parent, name, linear))
        logger.debug("%d linear layers are packed", len(self._replaced))

    def __bool__(self) -> bool:
        """Whether any layer is packed."""
        return bool(self._replaced)

    def undo(self) -> None:
        """Put the layers back."""
        for parent, name, linear in self._replaced:
            if linear.weight is None:
                weight = getattr(parent, name).weight.to_dense()
                linear.weight = nn.Parameter(weight, requires_grad=False)
            setattr(parent, name, linear)
        self._replaced = []


def _count_uses(model: nn.Module) -> Counter[int]:
    """Count in how many places each parameter is, by its id: a head may share an embedding's."""
    return Counter(
        id(parameter)
        for parent in model.modules()
        for child in parent.children()
        for parameter in child.parameters(recurse=False)
    )


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Give the linear layers, each with the module that holds it and its name there."""
    dtypes = {torch.float32, *([torch.bfloat16] if has_bfloat16() else [])}
    for parent in model.modules():
        for name, child in parent.named_children():
            # Not what only derives from it: such have another forward.
            if type(child) is nn.Linear and child.weight.dtype in dtypes:
                yield parent, name, child
