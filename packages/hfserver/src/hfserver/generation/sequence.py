"""One request in the engine, and the sequences that it grows."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hfserver.generation.detokenizer import Detokenizer, StopStrings
from hfserver.generation.interface import (
    Event,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)
from hfserver.generation.sampling import Sampler, token_logprobs
from hfserver.generation.settings import TokenRules

# Decodes tokens as one text, with or without special ones.
DecodeText = Callable[[Sequence[int], bool], str]

# Takes what happens to a request: an event, or what it failed of.
Sink = Callable[[Event | BaseException], None]


class GrowingSequence:
    """One of the `n` sequences of a request.

    Attributes:
        index: Which one it is.
        tokens: The tokens that the model reads: the prompt's, or the decoder's first ones, and
            those that were chosen.
        state: The executor's; None before it is open and after it is closed.
        n_computed: How many of `tokens` the state holds.
        last_token_at: When its last token was chosen, on `perf_counter`'s clock.
        is_finished: It grows no more.
    """

    __slots__ = (
        "_decode",
        "_max_tokens",
        "_params",
        "_rules",
        "_sampler",
        "_stops",
        "_text",
        "index",
        "is_finished",
        "last_token_at",
        "n_chosen",
        "n_computed",
        "state",
        "tokens",
    )

    def __init__(
        self,
        index: int,
        request: GenerationRequest,
        max_tokens: int,
        rules: TokenRules,
        decode: DecodeText,
    ) -> None:
        self.index = index
        self.tokens = list(rules.decoder_start_ids or request.prompt_ids)
        self.state: Any = None
        self.n_computed = 0
        self.n_chosen = 0
        self.last_token_at = 0.0
        self.is_finished = False
        self._params: SamplingParams = request.params
        self._max_tokens = max_tokens
        self._rules = rules
        self._sampler: Sampler | None = None
        self._stops = StopStrings(request.params.stop)
        skip = request.params.skip_special_tokens
        context = () if rules.decoder_start_ids else request.prompt_ids
        self._text = Detokenizer(lambda ids: decode(ids, skip), context)

    def prepare(self, seed: int, device: torch.device) -> None:
        """Make ready to choose tokens; on the engine's thread.

        Raises:
            Exception: Whatever the maker of the request's constraint raises.
        """
        stop_ids = set(self._params.stop_token_ids)
        if not self._params.ignore_eos:
            stop_ids |= self._rules.eos_ids
        self._sampler = Sampler(
            self._params, seed, stop_ids, self.tokens, device, self._rules.suppressed_ids
        )

    @property
    def is_decoding(self) -> bool:
        """Whether all that it lacks is its last token."""
        return self.n_chosen > 0 and len(self.tokens) - self.n_computed == 1

    def grow(self, logits: torch.Tensor) -> TokenEvent:
        """Choose the next token.

        Args:
            logits: The model's, shape (n_vocabulary,).

        Raises:
            ValueError: They hold NaN, or no token is allowed.
            Exception: Whatever the request's constraint raises.
        """
        assert self._sampler is not None
        raw = logits.clone() if self._params.logprobs is not None else None
        token_id = self._forced()
        if token_id is None:
            token_id = self._sampler.choose(logits)
        self._sampler.accept(token_id)
        logprobs: tuple[TokenLogprob, ...] | None = None
        if raw is not None:
            logprobs = tuple(token_logprobs(raw[None], [token_id], self._params.logprobs or 0))
        self.tokens.append(token_id)
        self.n_chosen += 1
        return self._event(token_id, logprobs)

    def end(self, reason: FinishReason) -> TokenEvent:
        """End it without a further token or text."""
        self.is_finished = True
        return TokenEvent(self.index, finish_reason=reason)

    def _forced(self) -> int | None:
        rules = self._rules
        if rules.forced_bos_id is not None and self.n_chosen == 0:
            return rules.forced_bos_id
        is_last = self.n_chosen == self._max_tokens - 1
        if rules.forced_eos_id is not None and is_last and not self._params.ignore_eos:
            return rules.forced_eos_id
        return None

    def _event(self, token_id: int, logprobs: tuple[TokenLogprob, ...] | None) -> TokenEvent:
        params = self._params
        ends_by_eos = token_id in self._rules.eos_ids and not params.ignore_eos
        if ends_by_eos or token_id in params.stop_token_ids:
            self.is_finished = True
            text = self._add(token_id) if params.include_stop else ""
            reason = None if ends_by_eos else token_id
            return TokenEvent(
                self.index, (token_id,), text + self._rest(), logprobs, "stop", reason
            )
        text = self._add(token_id)
        is_cut_off = self.n_chosen >= self._max_tokens and self._stops.found is None
        if is_cut_off:
            text += self._rest()
        stop = self._stops.found
        if stop is not None:
            self.is_finished = True
            text += stop if params.include_stop else ""
            return TokenEvent(self.index, (token_id,), text, logprobs, "stop", stop)
        self.is_finished = is_cut_off
        return TokenEvent(self.index, (token_id,), text, logprobs, "length" if is_cut_off else None)

    def _add(self, token_id: int) -> str:
        text = self._text.add(token_id)
        return text if self.n_chosen < self._params.min_tokens else self._stops.add(text)

    def _rest(self) -> str:
        text = self._stops.add(self._text.finish())
        return text + self._stops.finish()


@dataclass(slots=True, eq=False)
class Job:
    """A request in the engine.

    Attributes:
        request: What was asked.
        max_tokens: Tokens to generate at most.
        sink: Takes its events.
        sequences: Those that it grows; the first one reads the prompt for all.
        arrived_at: When it came, on `perf_counter`'s clock.
        reserved_bytes: What it may take of the KV cache.
        seed: Where the random numbers of its first sequence begin.
        n_cached_tokens: Tokens of the prompt that were found in the prefix cache.
        prompt_logprobs: Those of the prompt's tokens so far; None if not asked for.
        has_read_prompt: Its prompt has been computed.
        reason: Why it ended, for the metrics.
    """

    request: GenerationRequest
    max_tokens: int
    sink: Sink
    sequences: list[GrowingSequence]
    arrived_at: float
    reserved_bytes: int
    seed: int = 0
    n_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprob | None] | None = None
    has_read_prompt: bool = False
    reason: str = "stop"

    def prepare(self, device: torch.device) -> None:
        """Make its sequences ready to choose tokens."""
        seed = self.request.params.seed
        self.seed = random.SystemRandom().getrandbits(63) if seed is None else seed
        for sequence in self.sequences:
            # Seeds are 64 bits wide in torch.
            sequence.prepare((self.seed + sequence.index) % 2**64, device)
        if self.request.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None]

    @property
    def growing(self) -> list[GrowingSequence]:
        """The sequences that are computed now."""
        if not self.has_read_prompt:
            return self.sequences[:1]
        return [sequence for sequence in self.sequences if not sequence.is_finished]
