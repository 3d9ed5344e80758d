"""Sampling parameters out of OpenAI's requests."""

from collections.abc import Callable
from typing import Any, Final

from hfserver.generation.defaults import SamplingDefaults
from hfserver.generation.interface import Constraint, SamplingParams
from hfserver.generation.text import TextCodec
from kserve.protocol.rest.openai.errors import invalid_request
from kserve.protocol.rest.openai.types import GenerationRequest

# Each is looked for at each token. OpenAI allows 4.
MAX_STOPS: Final = 64

# As OpenAI, about: it names no number, and refuses more than some hundred.
MAX_BIASES: Final = 1024


def sampling_params(
    request: GenerationRequest,
    codec: TextCodec,
    defaults: SamplingDefaults,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    skip_special_tokens: bool | None = None,
    constraint: Callable[[], Constraint] | None = None,
) -> SamplingParams:
    """Give how the tokens of a request are chosen.

    Args:
        request: A completion's, or a chat's.
        codec: Knows the tokens.
        defaults: What holds where the request does not say.
        max_tokens: See `SamplingParams`, as are the next two.
        logprobs: The same.
        prompt_logprobs: The same.
        skip_special_tokens: None is what the request says.
        constraint: What limits the tokens; None for nothing.

    Raises:
        OpenAIError: A value cannot be had.
    """
    bias = _read_bias(request.logit_bias or {})
    stop_ids = request.stop_token_ids or []
    codec.check(list(bias), "logit_bias")
    codec.check(stop_ids, "stop_token_ids")
    _check_count("stop", len(request.stop_texts), MAX_STOPS)
    top_k = _first(request.top_k, defaults.top_k, 0)
    if skip_special_tokens is None:
        skip_special_tokens = request.skip_special_tokens
    return SamplingParams(
        n=request.n,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        temperature=_first(request.temperature, defaults.temperature, 1.0),
        top_p=_first(request.top_p, defaults.top_p, 1.0),
        # -1 is the same as 0.
        top_k=max(0, top_k),
        min_p=_first(request.min_p, defaults.min_p, 0.0),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        logit_bias=bias,
        seed=None if request.seed is None else request.seed % 2**64,
        stop=request.stop_texts,
        stop_token_ids=stop_ids,
        ignore_eos=request.ignore_eos,
        include_stop=request.include_stop_str_in_output,
        skip_special_tokens=skip_special_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        constraint=constraint,
    )


def _read_bias(bias: dict[str, float]) -> dict[int, float]:
    """Give a bias by token ids.

    Raises:
        OpenAIError: A key is no token id, or there are too many.
    """
    _check_count("logit_bias", len(bias), MAX_BIASES)
    try:
        return {int(key): value for key, value in bias.items()}
    except ValueError as exc:
        raise invalid_request(
            f"'logit_bias': expected token ids as keys, got {next(iter(bias))!r}", "logit_bias"
        ) from exc


def _check_count(param: str, count: int, limit: int) -> None:
    if count > limit:
        raise invalid_request(f"'{param}': expected at most {limit}, got {count}", param)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
