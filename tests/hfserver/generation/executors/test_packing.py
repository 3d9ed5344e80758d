"""Weights that are packed are those that were there."""

from typing import Any

import pytest
import torch
from torch import nn

from hfserver.generation.executors import packing, selection
from hfserver.generation.executors.packing import PackedLinear, PackedModel

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)

IDS = torch.tensor([[5, 6, 7, 8]])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "bloom"])
def test_model_gives_what_it_gave_and_holds_its_weights_once(family: str, toy_model: Any) -> None:
    model = toy_model(family)
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    expected = logits(model)

    packed = PackedModel(model)

    assert packed
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert all(linear.weight is None for linear in linears)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_layers_can_be_put_back(toy_model: Any) -> None:
    model = toy_model("llama")
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    PackedModel(model).undo()

    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("has_memory", [False, True])
def test_weight_that_an_embedding_shares_is_copied_where_there_is_memory(
    has_memory: bool, toy_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "memory_left", lambda device: (1 << 30) * has_memory)
    model = toy_model("llama", tie_word_embeddings=True)
    expected = logits(model)

    PackedModel(model)

    assert isinstance(model.lm_head, PackedLinear) is has_memory
    assert isinstance(model.model.layers[0].mlp.up_proj, PackedLinear)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_only_plain_layers_of_types_that_a_cpu_multiplies_are_packed(toy_model: Any) -> None:
    class Other(nn.Linear):  # type: ignore[misc]
        pass

    half = toy_model("llama").half()
    model = toy_model("llama")
    model.lm_head = Other(64, 211, bias=False)

    PackedModel(model)

    assert not PackedModel(half)
    assert isinstance(model.lm_head, Other)


@pytest.mark.parametrize("error", [None, RuntimeError("no such layout")])
def test_model_that_is_another_one_when_packed_is_not_packed(
    error: Exception | None,
    toy_model: Any,
    plain_generate: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(self: PackedLinear, rows: torch.Tensor) -> torch.Tensor:
        if error is not None:
            raise error
        return rows.new_zeros((*rows.shape[:-1], self.out_features))

    monkeypatch.setattr(PackedLinear, "forward", forward)
    model = toy_model("llama")
    expected = plain_generate(model, [5, 6, 7], 5)

    executor: Any = selection.choose_executor(model)

    assert executor.name == "ragged"
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    executor.restore()
    assert plain_generate(model, [5, 6, 7], 5) == expected
