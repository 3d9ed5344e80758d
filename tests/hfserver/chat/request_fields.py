"""What becomes of each field of OpenAI's and of vLLM's requests for text; data.

The tests send each of them, and docs/openai.md shows the table that is made of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from kserve.protocol.rest.openai import fields

COMPLETIONS, CHATS = APIS = ("completions", "chat/completions")

Status = Literal["done", "ignored", "refused"]


@dataclass(frozen=True)
class Field:
    """One field of one request.

    Attributes:
        name: The field.
        api: The request's.
        status: What becomes of it.
        how: What a client should know.
        good: A value that is taken.
        bad: One that is a 400 which names the field; None where there is none.
        beside: What else the request has.
    """

    name: str
    api: str
    status: Status
    how: str
    good: Any = None
    bad: Any = None
    beside: Mapping[str, Any] = field(default_factory=dict)


_MESSAGES = [{"role": "user", "content": "a"}]
_ANSWERED = [*_MESSAGES, {"role": "assistant", "content": "b"}]
_CONTINUED = {"messages": _ANSWERED, "add_generation_prompt": False}
_TOOLS = [{"type": "function", "function": {"name": "f"}}]
_FORM = {"type": "json_object"}
_STREAM = {"stream": True}


def _both(name: str, how: str, good: Any, bad: Any, **beside: Any) -> list[Field]:
    return [Field(name, api, "done", how, good, bad, beside) for api in APIS]


def _chat(name: str, how: str, good: Any, bad: Any, **beside: Any) -> list[Field]:
    return [Field(name, CHATS, "done", how, good, bad, beside)]


def _completion(name: str, how: str, good: Any, bad: Any, **beside: Any) -> list[Field]:
    return [Field(name, COMPLETIONS, "done", how, good, bad, beside)]


_OPENAI_DONE = [
    *_both("model", "may be left out where there is only one", "toy", 5),
    *_completion("prompt", "a text, texts, token ids, or lists of them", [97, 98], 1.5),
    *_chat("messages", "texts; at most 4,096", _MESSAGES, "a"),
    *_both("n", "1 to 128, and to `--max_num_seqs`", 2, 0),
    *_completion("max_tokens", "16 where it is left out", 3, -1),
    *_chat("max_tokens", "as `max_completion_tokens`, which wins", 3, 0),
    *_chat(
        "max_completion_tokens",
        "what is left of the context where it is left out, up to an eighth of the KV cache",
        3,
        0,
    ),
    *_both("temperature", "0 takes the likeliest token", 0.5, -1),
    *_both("top_p", "", 0.5, 2),
    *_both("presence_penalty", "", 1, 3),
    *_both("frequency_penalty", "", 1, -3),
    *_both("logit_bias", "at most 1,024 entries", {"97": 1}, {"97": 101}),
    *_both("seed", "the same text whatever runs beside it", 5, 1.5),
    *_both("stop", "at most 64 texts", ["x"], 5),
    *_both("stream", "", True, "yes"),
    *_both(
        "stream_options",
        "`include_usage`, vLLM's `continuous_usage_stats`; `include_obfuscation` is ignored",
        {"include_usage": True, "include_obfuscation": False},
        1,
        **_STREAM,
    ),
    *_completion("logprobs", "0 to 20", 2, 21),
    *_chat("logprobs", "", True, 1),
    *_chat("top_logprobs", "0 to 20, with `logprobs`", 2, 21, logprobs=True),
    *_completion("echo", "with `logprobs` those of the prompt too", True, "yes"),
    *_chat("tools", "at most 128 functions", _TOOLS, [{"type": "custom"}]),
    *_chat(
        "tool_choice", "`none`, `auto`, `required`, a function, `allowed_tools`", "auto", "g",
        tools=_TOOLS,
    ),
    *_chat("parallel_tool_calls", "", False, 1, tools=_TOOLS),
    *_both("response_format", "`text`, `json_object`, `json_schema`", _FORM, {"type": "xml"}),
    *_chat("reasoning_effort", "a variable of the template; `none` is no thoughts", "none", 5),
]  # fmt: skip

_VLLM_DONE = [
    *_both("top_k", "0 and -1 are all", 5, -2),
    *_both("min_p", "", 0.1, 2),
    *_both("repetition_penalty", "", 1.1, 0),
    *_both("min_tokens", "not beside a given structure", 1, -1),
    *_both("ignore_eos", "not beside a given structure", True, "yes"),
    *_both("stop_token_ids", "", [97], ["a"]),
    *_both("include_stop_str_in_output", "", True, "yes"),
    *_both("skip_special_tokens", "", False, "yes"),
    *_both("truncate_prompt_tokens", "-1 keeps what fits", 1, -2),
    *_both("add_special_tokens", "", True, "yes"),
    *_both("return_token_ids", "", True, "yes"),
    *_both(
        "structured_outputs", "`json`, `json_object`, `regex`, `choice`, `grammar`",
        {"regex": "a"}, {"regex": "("},
    ),
    *_both("cache_salt", "whose prompts share the prefix cache", "a", 5),
    *_chat("echo", "with `continue_final_message`", True, "yes", **_CONTINUED,
           continue_final_message=True),
    *_chat("add_generation_prompt", "", False, "yes"),
    *_chat("continue_final_message", "without `add_generation_prompt`", True, "yes", **_CONTINUED),
    *_chat("documents", "shown by the template", [{"text": "a"}], "a"),
    *_chat(
        "chat_template", "a name of the model's own; a text with `--trust_request_chat_template`",
        "other", "{{ 1 }}",
    ),
    *_chat("chat_template_kwargs", "", {"enable_thinking": False}, "a"),
    *_chat("include_reasoning", "", False, "yes"),
]  # fmt: skip

_OPENAI_IGNORED = [
    *(Field("user", api, "ignored", "changes no answer", "someone") for api in APIS),
    Field("verbosity", CHATS, "ignored", "no template knows it", "low"),
    *(
        Field(name, CHATS, "ignored", "changes no answer", {"a": "b"})
        for name in fields.IGNORED[CHATS]
    ),
]

_VLLM_IGNORED = [
    *(
        Field("request_id", api, "ignored", "the header `x-request-id` is the id", "a")
        for api in APIS
    ),
    *(Field("priority", api, "ignored", "first come, first served", 3) for api in APIS),
    *(
        Field("spaces_between_special_tokens", api, "ignored", "there are none of its own", False)
        for api in APIS
    ),
]


def _refused(names: tuple[str, ...] | None = None) -> Iterator[Field]:
    """Give what the core refuses: of these names, or all but these of OpenAI's."""
    for api in APIS:
        for name, (reason, harmless) in fields.REFUSED[api].items():
            if (name in _OPENAI_REFUSED_NAMES) == (names is not None):
                taken = ", ".join(f"`{orjson.dumps(value).decode()}`" for value in harmless)
                how = f"{reason}; {taken} is taken" if taken else reason
                good = next(iter(harmless), None)
                yield Field(name, api, "refused", how, good, "something")


_OPENAI_REFUSED_NAMES = ("functions", "function_call", "modalities", "audio", "web_search_options")

_OPENAI_REFUSED = [
    Field(
        "suffix", COMPLETIONS, "refused", 'a text is only ever continued; `""` is taken', "", "x"
    ),
    Field("best_of", COMPLETIONS, "refused", "what `n` is, is taken", 2, 3, {"n": 2}),
    *_refused(_OPENAI_REFUSED_NAMES),
]

OPENAI = [*_OPENAI_DONE, *_OPENAI_IGNORED, *_OPENAI_REFUSED]
VLLM = [*_VLLM_DONE, *_VLLM_IGNORED, *_refused()]
FIELDS = [*OPENAI, *VLLM]


def rows(group: list[Field]) -> list[str]:
    """Give the rows of a table: a field that is the same for both requests is one."""
    names = list(dict.fromkeys(each.name for each in group))
    result = []
    for name in names:
        found = {each.api: each for each in group if each.name == name}
        notes = dict.fromkeys(found[api].how for api in APIS if api in found)
        cells = [found[api].status if api in found else "" for api in APIS]
        result.append(f"| `{name}` | {cells[0]} | {cells[1]} | {'; '.join(filter(None, notes))} |")
    return result
