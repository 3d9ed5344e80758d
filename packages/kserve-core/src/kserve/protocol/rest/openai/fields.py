"""Fields of requests that no type holds: which are ignored, and which are refused, and why.

Any field that is in none of the tables is ignored, as OpenAI's own clients send new ones all the
time. What is refused would change the answer, so that a client that hears nothing would take one
thing for another. This is data: the documentation and the tests are made from it.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from kserve.listing import brief
from kserve.protocol.rest.openai.errors import invalid_request


class Refusal(NamedTuple):
    """Why a field is refused.

    Attributes:
        reason: What the client reads; says what to use where there is something.
        harmless: Values that ask for nothing; null is one always.
    """

    reason: str
    harmless: Collection[Any] = ()


# They change nothing in an answer, or only where and how fast it is made.
_IGNORED_IN_CHATS: Final = (
    *("metadata", "moderation", "prediction", "prompt_cache_key", "prompt_cache_options"),
    *("prompt_cache_retention", "safety_identifier", "service_tier", "store"),
)

IGNORED: Final[Mapping[str, tuple[str, ...]]] = {
    "completions": (),
    "chat/completions": _IGNORED_IN_CHATS,
    "embeddings": (),
    "rerank": ("client_name",),
    "score": (),
    "classify": (),
    "pooling": (),
    "tokenize": (),
    "detokenize": (),
}

_GUIDED: Final = "use 'structured_outputs'"
_NOT_DONE: Final = "it is not supported"

_SAMPLING: Final[Mapping[str, Refusal]] = {
    "use_beam_search": Refusal("beam search is not supported", (False,)),
    "length_penalty": Refusal("beam search is not supported", (1,)),
    "logits_processors": Refusal(_NOT_DONE, ([],)),
    "bad_words": Refusal(f"{_NOT_DONE}; use 'logit_bias'", ([],)),
    "allowed_token_ids": Refusal(f"{_NOT_DONE}; use 'logit_bias' or 'structured_outputs'", ()),
    "prompt_logprobs": Refusal(f"{_NOT_DONE}; use 'echo' with 'logprobs' of a completion", ()),
    "prompt_embeds": Refusal(_NOT_DONE),
    "kv_transfer_params": Refusal(_NOT_DONE),
    "repetition_detection": Refusal(f"{_NOT_DONE}; use 'frequency_penalty'"),
    "return_tokens_as_token_ids": Refusal("use 'return_token_ids'", (False,)),
    "vllm_xargs": Refusal(_NOT_DONE, ({},)),
    "guided_json": Refusal(_GUIDED),
    "guided_regex": Refusal(_GUIDED),
    "guided_choice": Refusal(_GUIDED),
    "guided_grammar": Refusal(_GUIDED),
}

_ENCODING: Final[Mapping[str, Refusal]] = {
    "messages": Refusal("use 'input'"),
    "truncate": Refusal("use 'truncation'", (False, "NONE")),
    "truncation_side": Refusal("use 'truncation'"),
}

_PAIRING: Final[Mapping[str, Refusal]] = {
    "truncate": Refusal("use 'truncation'", (False, "NONE")),
    "truncation_side": Refusal("use 'truncation'"),
    "instruction": Refusal(_NOT_DONE),
}

REFUSED: Final[Mapping[str, Mapping[str, Refusal]]] = {
    "completions": _SAMPLING,
    "chat/completions": {
        **_SAMPLING,
        "functions": Refusal("use 'tools'", ([],)),
        "function_call": Refusal("use 'tool_choice'"),
        "modalities": Refusal("answers are text", (["text"], [])),
        "audio": Refusal("answers are text"),
        "web_search_options": Refusal("the server searches nothing"),
        "mm_processor_kwargs": Refusal(_NOT_DONE, ({},)),
        "media_io_kwargs": Refusal("messages are texts", ({},)),
        "thinking_token_budget": Refusal(f"{_NOT_DONE}; use 'max_completion_tokens'"),
        "best_of": Refusal("use 'n'", (1,)),
    },
    "embeddings": {
        **_ENCODING,
        "embedding_types": Refusal("use 'encoding_format'", (["float"],)),
        "embedding_type": Refusal("use 'encoding_format'", ("float",)),
        "output_dtype": Refusal("vectors are float32", ("float", "float32")),
        "embed_dtype": Refusal("vectors are float32", ("float32",)),
        "output_dimension": Refusal("use 'dimensions'"),
        "input_type": Refusal("use 'prompt_name'"),
        "task": Refusal("use 'prompt_name'"),
        "late_chunking": Refusal(_NOT_DONE, (False,)),
    },
    "rerank": {
        **_PAIRING,
        "rank_fields": Refusal("documents are texts, or have one as 'text'", (["text"],)),
        "max_chunks_per_doc": Refusal("use 'max_tokens_per_doc'"),
        "images": Refusal("documents are texts"),
    },
    "score": {
        **_PAIRING,
        "data_1": Refusal("use 'text_1'"),
        "data_2": Refusal("use 'text_2'"),
    },
    "classify": _ENCODING,
    "pooling": {**_ENCODING, "embed_dtype": Refusal("vectors are float32", ("float32",))},
    "tokenize": {"mm_processor_kwargs": Refusal(_NOT_DONE, ({},))},
    "detokenize": {},
}


def check(api: str, document: Mapping[str, Any]) -> None:
    """Refuse a request that has a field which would change the answer, and cannot.

    Args:
        api: What is asked for.
        document: The request, without what is null.

    Raises:
        OpenAIError: It has one.
    """
    refused = REFUSED[api]
    for name in document.keys() & refused.keys():
        reason, harmless = refused[name]
        value = document[name]
        # 1 is True, and no flag.
        if not any(value == each and type(value) is type(each) for each in harmless):
            raise invalid_request(
                f"'{name}' cannot be {brief(value)}: {reason}",
                name,
                "unsupported_parameter",
            )
