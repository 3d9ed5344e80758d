"""A model of transformers in two: the encoder, and the head on top of it.

An encoder reads many texts in one row where its attention is ours. Most heads look at the first or
the last token of each row of a batch, so they get a batch of their own, made of what the encoder
gave.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions


class HeadedModel:
    """A model whose encoder and head run one after the other; for one thread.

    Args:
        model: A `PreTrainedModel`, with or without a head.

    Attributes:
        model: As given.
        device: Where it is.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device: torch.device = next(model.parameters()).device
        self._base = model.base_model
        self._encode = self._base.forward
        self._parameters = inspect.signature(self._encode).parameters
        self._given: torch.Tensor | None = None
        self._encoded: Any = None
        if self._base is not model:
            # What the head calls; a module calls what its instance has under this name.
            self._base.forward = self._forward

    @property
    def config(self) -> Any:
        """The configuration of what reads the text."""
        return self.model.config.get_text_config()

    @property
    def has_head(self) -> bool:
        """Whether there is more than the encoder."""
        return self._base is not self.model

    @property
    def takes_positions(self) -> bool:
        """Whether the encoder can be told the position of each token."""
        return "position_ids" in self._parameters

    @property
    def takes_token_types(self) -> bool:
        """Whether the encoder tells the texts of a pair apart."""
        # DeBERTa takes them, and has none of them.
        n_types = getattr(self.config, "type_vocab_size", 1)
        return "token_type_ids" in self._parameters and n_types > 0

    def hidden(
        self, input_ids: torch.Tensor, token_types: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        """Run the encoder.

        Args:
            input_ids: Shape (n_rows, n_tokens).
            token_types: Their types, where the model takes them; None is all 0.
            inputs: For its forward.

        Returns:
            The last hidden state, shape (n_rows, n_tokens, size).
        """
        output = self._encode(**self._inputs(input_ids, token_types), **inputs)
        hidden: torch.Tensor = output[0]
        return hidden

    def logits(
        self, hidden: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Run the head on what the encoder gave.

        Args:
            hidden: The hidden states, shape (n_rows, n_tokens, size).
            input_ids: Their tokens, shape (n_rows, n_tokens).
            attention_mask: 0 where there is none, shape (n_rows, n_tokens).
        """
        self._given = hidden
        try:
            output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        finally:
            self._given = None
        return self._logits_of(output)

    def plain(
        self, input_ids: torch.Tensor, token_types: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the whole model as transformers does, on one text.

        Args:
            input_ids: Shape (1, n_tokens).
            token_types: Their types; None is all 0.

        Returns:
            The last hidden state, shape (1, n_tokens, size), and the logits; the hidden state again
            where there is no head.
        """
        inputs = self._inputs(input_ids, token_types)
        output = self.model(attention_mask=torch.ones_like(input_ids), **inputs)
        if not self.has_head:
            return output[0], output[0]
        encoded, self._encoded = self._encoded, None
        return encoded[0], self._logits_of(output)

    def _inputs(self, input_ids: torch.Tensor, token_types: torch.Tensor | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": input_ids}
        if self.takes_token_types:
            inputs["token_type_ids"] = (
                torch.zeros_like(input_ids) if token_types is None else token_types
            )
        if "use_cache" in self._parameters:
            inputs["use_cache"] = False
        return inputs

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stand for the encoder where the head calls it."""
        if self._given is None:
            self._encoded = self._encode(*args, **kwargs)
            return self._encoded
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=self._given, pooler_output=self._pooled(self._given)
        )

    def _pooled(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Give what the encoder itself makes of the first token, which some heads take."""
        pooler = getattr(self._base, "pooler", None)
        if pooler is None:
            return None
        activation = getattr(self._base, "pooler_activation", None)
        if isinstance(pooler, nn.Linear) and activation is not None:
            # ALBERT's pooler is no module of its own.
            pooled: torch.Tensor = activation(pooler(hidden[:, 0]))
        else:
            pooled = pooler(hidden)
        return pooled

    @staticmethod
    def _logits_of(output: Any) -> torch.Tensor:
        logits: torch.Tensor = output.logits
        return logits
