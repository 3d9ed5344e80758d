"""Models with an encoder, such as T5 and BART: it reads the prompt, a decoder gives the answer.

Sequences take turns, a forward each. The encoder runs once for each prompt, in the step in which
its decoder begins.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import DynamicCache, EncoderDecoderCache

from hfserver.generation.executors.base import Chunk, Executor


@dataclass(slots=True, eq=False)
class EncoderState:
    """A sequence of the decoder.

    Attributes:
        prompt_ids: The encoder's tokens.
        encoded: What the encoder made of them; None before it ran.
        cache: Keys and values of the decoder and of what it reads of the encoder.
        length: Tokens of the decoder that it holds.
    """

    prompt_ids: Sequence[int]
    encoded: Any = None
    cache: Any = None
    length: int = 0


class EncoderDecoderExecutor(Executor):
    """Runs models with an encoder, one sequence after the other."""

    name: ClassVar[str] = "encoder_decoder"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        parameters = inspect.signature(model.get_encoder().forward).parameters
        self._encoder_takes_mask = "attention_mask" in parameters
        self._encoder_bytes, self._decoder_bytes = self._measure()

    def _measure(self) -> tuple[int, int]:
        """Find the bytes for each token of the encoder and of the decoder."""
        state = self.open(2, [0])
        self.run([Chunk(state, [0])])
        encoder = _bytes(state.cache.cross_attention_cache) + state.encoded[0].nbytes
        return encoder, _bytes(state.cache.self_attention_cache)

    def kv_bytes(self, n_tokens: int, n_prompt_tokens: int) -> int:
        """Give the bytes of both parts of its cache, and of what the encoder gave."""
        return n_prompt_tokens * self._encoder_bytes + n_tokens * self._decoder_bytes

    def open(self, n_tokens: int, prompt_ids: Sequence[int]) -> EncoderState:
        """Give a state whose encoder has not run."""
        return EncoderState(prompt_ids)

    def fork(self, state: EncoderState) -> EncoderState:
        """Copy the cache; what the encoder gave is shared."""
        return EncoderState(
            state.prompt_ids, state.encoded, copy.deepcopy(state.cache), state.length
        )

    def close(self, state: EncoderState) -> None:
        """Drop the cache."""
        state.cache = state.encoded = None

    def recover(self, state: EncoderState, n_tokens: int) -> int:
        """A failed forward may have changed the cache, which begins anew."""
        state.cache, state.length = None, 0
        return 0

    def run(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        """Compute the sequences one after the other."""
        return [self._run_one(chunk) for chunk in chunks]

    def _run_one(self, chunk: Chunk) -> torch.Tensor:
        state: EncoderState = chunk.state
        prompt = self._ids(state.prompt_ids)
        mask = torch.ones_like(prompt)
        if state.encoded is None:
            options = {"attention_mask": mask} if self._encoder_takes_mask else {}
            self.n_forwards += 1
            state.encoded = self.model.get_encoder()(input_ids=prompt, **options)
        if state.cache is None:
            config = self.model.config
            state.cache = EncoderDecoderCache(
                DynamicCache(config=config), DynamicCache(config=config)
            )
        self.n_forwards += 1
        logits: torch.Tensor = self.model(
            encoder_outputs=state.encoded,
            attention_mask=mask,
            decoder_input_ids=self._ids(chunk.token_ids),
            past_key_values=state.cache,
            use_cache=True,
        ).logits[0]
        state.length += len(chunk.token_ids)
        return logits[len(logits) - chunk.n_logits :].float()


def _bytes(cache: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
