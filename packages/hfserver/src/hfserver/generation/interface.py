"""What a generation engine takes and gives: requests, events, figures."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from kserve.errors import InvalidInput

FinishReason = Literal["stop", "length", "cancelled"]

# OpenAI's largest `n` is 128, which also bounds what one request reserves.
MAX_N: Final = 128


class ContextLengthExceeded(InvalidInput):
    """The prompt, with what is to follow it, is longer than the model's context."""


class Constraint(Protocol):
    """What limits the tokens of one sequence, such as a grammar; used on the engine's thread."""

    def apply(self, logits: Any) -> None:
        """Set the logits of tokens that may not come next to minus infinity, in place.

        Args:
            logits: A float32 tensor of shape (n_vocabulary,), on the CPU or on the device.
        """

    def accept(self, token_id: int) -> None:
        """Take note of the token that was chosen."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of a request are chosen.

    Attributes:
        n: Sequences to generate for the prompt, 1 to 128.
        max_tokens: Tokens to generate at most, 0 or more; None is up to the end of the context, but
            no more than the model says, nor than an eighth of the KV cache has room for.
        min_tokens: Before as many, neither an end-of-sequence token nor a stop token is chosen,
            and no stop string ends the text.
        temperature: Logits are divided by it; 0 takes the likeliest token.
        top_p: Only the likeliest tokens are kept whose probabilities reach this sum; 1 keeps all.
        top_k: Only as many of the likeliest tokens are kept; 0 keeps all.
        min_p: Only tokens are kept that are at least so many times as likely as the likeliest.
        presence_penalty: Taken from the logit of each token that was generated before.
        frequency_penalty: Taken as many times as the token was generated before.
        repetition_penalty: The logits of tokens of the prompt and of generated ones are divided by
            it where they are positive and multiplied where they are negative; 1 changes nothing.
        logit_bias: Added to the logits of these tokens.
        seed: The same seed gives the same tokens; None draws one.
        stop: Texts that end the generation; they are not part of the result.
        stop_token_ids: Tokens that end it, beside the model's own.
        ignore_eos: The model's own end-of-sequence tokens end nothing.
        include_stop: The text that ended it is part of the result.
        skip_special_tokens: Special tokens are no part of the text.
        logprobs: Log probabilities wanted: None for none, else of the chosen token and of as many
            of the likeliest ones. They are those of the model, before anything above changes them.
        prompt_logprobs: The same for the tokens of the prompt.
        constraint: Makes what limits the tokens of one sequence; called once for each of them.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Callable[[], Constraint] | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt and what is wanted of it.

    Attributes:
        prompt_ids: The tokens of the prompt, at least one.
        params: How the next ones are chosen.
        request_id: Its name, for `cancel` and the log; no other request has it at the time.
        deadline: When it must be done, on `time.perf_counter`'s clock; None for no limit.
        cache_salt: Only requests of the same salt share cached prefixes.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams
    request_id: str
    deadline: float | None = None
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log probability of a token, and of the likeliest ones at its place.

    Attributes:
        token_id: The token.
        logprob: Its natural logarithm of the probability.
        top: `(token_id, logprob)` of the likeliest tokens, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """The prompt has been read; the first event of a request.

    Attributes:
        n_cached_tokens: Tokens of it that were found in the prefix cache.
        logprobs: One for each token of the prompt, None for the first; None if not asked for.
    """

    n_cached_tokens: int = 0
    logprobs: Sequence[TokenLogprob | None] | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A sequence has grown by a token, or has ended.

    Attributes:
        index: Which of the `n` sequences.
        token_ids: The new token; none where the sequence ends without one.
        text: The text that is certain now. It lags behind the tokens while a character is not
            complete or a stop string may have begun.
        logprobs: One for each of `token_ids`; None if not asked for.
        finish_reason: Why the sequence has ended; None while it has not.
        stop_reason: The stop string or the stop token that ended it; None for the model's own
            end-of-sequence token and for other reasons.
    """

    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


Event = PromptEvent | TokenEvent


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing.

    Attributes:
        n_running: Requests that are computed.
        n_waiting: Requests that wait to be.
        n_steps: Steps since the start.
        n_forward_tokens: Tokens that forwards have computed since the start.
        kv_used_bytes: Bytes of the KV cache that are reserved.
        kv_total_bytes: Bytes that may be.
        prefix_bytes: Bytes that the prefix cache holds.
    """

    n_running: int
    n_waiting: int
    n_steps: int
    n_forward_tokens: int
    kv_used_bytes: int
    kv_total_bytes: int
    prefix_bytes: int


class Events(Protocol):
    """The events of a request, which goes on as long as they are read."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """Give itself."""

    async def __anext__(self) -> Event:
        """Give the next one."""

    async def aclose(self) -> None:
        """Cancel the request, unless it has ended."""


class GenerationEngine(Protocol):
    """Runs requests side by side; called on an event loop."""

    @property
    def max_model_len(self) -> int:
        """The tokens of a prompt and its answer together, at most."""

    def submit(self, request: GenerationRequest) -> Events:
        """Queue a request; it is refused here and not by the iterator.

        The iterator gives a `PromptEvent`, then the `TokenEvent`s of all `n` sequences, and ends
        with the last one's end. Closing it cancels the request, and so does cancelling the task
        that waits for it. It raises what the request failed of: `InferenceServerError` or what a
        constraint of the request raised.

        Raises:
            ContextLengthExceeded: It is too long for the model.
            InvalidInput: It could never run.
            TooManyRequests: Too many requests wait.
            ModelNotReady: The engine is stopped or has failed.
        """

    def cancel(self, request_id: str) -> None:
        """End a request, within two steps: its sequences finish as `cancelled`."""

    def stats(self) -> EngineStats:
        """Say what the engine is doing."""

    def health(self) -> str | None:
        """Give why the engine cannot answer, or None where it can."""
