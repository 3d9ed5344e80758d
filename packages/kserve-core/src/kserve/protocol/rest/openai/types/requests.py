"""The requests of the OpenAI API, and those of vLLM, Jina and Cohere beside it.

They hold what was read. A field that a client sends as null is one that it has left out. Which
other fields are refused, and which are ignored, is in `kserve.protocol.rest.openai.fields`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta

from kserve.protocol.rest.openai.types.structs import OpenAIStruct

# The spec has -2 to 2 for both penalties.
Penalty = Annotated[float, Meta(ge=-2, le=2)]
AtLeastZero = Annotated[int, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]

# A message, a tool and the like stay dicts: chat templates read them by key.
Json = dict[str, Any]
ChatCompletionMessageParam = dict[str, Any]
ChatCompletionContentPartParam = dict[str, Any]
ChatCompletionContentPartTextParam = dict[str, Any]
CustomChatCompletionMessageParam = dict[str, Any]
ChatCompletionToolMessageParam = dict[str, Any]
ChatCompletionAssistantMessageParam = dict[str, Any]
ConversationMessage = dict[str, Any]

# What is cut off a text that is too long, if anything is.
Truncation = Literal["none", "left", "right"]

# Texts, or texts as token ids.
TextOrTokens = str | list[int]


class StreamOptions(OpenAIStruct, kw_only=True):
    """What a stream has beside its tokens.

    Attributes:
        include_usage: A last chunk with the usage, and no choices.
        continuous_usage_stats: The usage so far in every chunk, as vLLM has it.
        include_obfuscation: Ignored: padding that hides the lengths of tokens.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class StructuredOutputsParams(OpenAIStruct, kw_only=True):
    """What the text must be like, as vLLM has it; one of them."""

    json: Any = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class OpenAIRequest(OpenAIStruct, kw_only=True):
    """What every request has.

    Attributes:
        model: The model's name; filled in where the server has only one model and the client
            names none.
        user: Whom the request is for; it changes nothing.
        request_id: The id of the request, as in the log.
    """

    model: str = ""
    user: str | None = None
    request_id: str = ""


class GenerationRequest(OpenAIRequest, kw_only=True):
    """What a request for text has, as a completion or in a chat.

    Attributes:
        n: How many answers to each prompt.
        temperature: 0 always takes the likeliest token; None is the model's own default.
        top_p: Of the likeliest tokens, those with this mass; None is the model's own default.
        stop: Where the text ends; one or more.
        seed: Makes the sampling repeatable.
        logit_bias: What is added to the logit of a token, by its id as a string.
        stream: Answer in chunks.
        top_k: Of the likeliest tokens, so many; 0 and -1 are all.
        min_p: The least probability of a token, relative to that of the likeliest.
        repetition_penalty: Divides the logits of tokens that have occurred; 1 does nothing.
        min_tokens: The text ends no sooner.
        ignore_eos: Go on after the end-of-text token.
        stop_token_ids: Tokens that end the text.
        include_stop_str_in_output: Leave the stop text in.
        skip_special_tokens: Leave special tokens out of the text.
        spaces_between_special_tokens: As in `transformers`.
        truncate_prompt_tokens: Keep the last so many tokens of a prompt that has more; -1 as many
            as the model takes.
        return_token_ids: Give the ids of the tokens too.
        structured_outputs: What the text must be like.
        priority: Lower ones go first, where the model knows that.
        cache_salt: Only requests with the same one share cached prompts.
    """

    n: AtLeastOne = 1
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    stop: str | list[str] | None = None
    seed: int | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    min_tokens: AtLeastZero = 0
    ignore_eos: bool = False
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    return_token_ids: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    priority: int = 0
    cache_salt: str | None = None

    @property
    def stop_texts(self) -> list[str]:
        """The texts of `stop`, none where there is none."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


class CompletionRequest(GenerationRequest, kw_only=True):
    """A request for the continuations of prompts.

    Attributes:
        prompt: A text, token ids, or several of either.
        max_tokens: The text has no more; 16 unless the client says so, as OpenAI has it. None is as
            many as fit: clients cannot say that, and a chat does.
        logprobs: Give the log probabilities of the tokens, and of so many of the likeliest.
        echo: Give the prompt too, before its continuation.
        best_of: Only ever equal to `n`.
        suffix: Only ever empty.
        response_format: What the text must be like, as in a chat.
        add_special_tokens: Begin the prompt as the model's texts begin.
    """

    prompt: str | list[Any]
    max_tokens: AtLeastZero | None = 16
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None
    response_format: Json | None = None
    add_special_tokens: bool = True

    @property
    def prompts(self) -> list[TextOrTokens]:
        """The prompts one by one."""
        return texts_or_tokens(self.prompt)


class ChatCompletionRequest(GenerationRequest, kw_only=True):
    """A request for the next message of a chat.

    Attributes:
        messages: The messages so far, each a dict with `role`, and `content` as a text, a list of
            parts or None.
        max_completion_tokens: The text has no more; None is as many as fit.
        max_tokens: The older name of the same.
        logprobs: Give the log probabilities of the tokens.
        top_logprobs: And of so many of the likeliest.
        tools: Each `{"type": "function", "function": {"name", "description", "parameters"}}`.
        tool_choice: `none`, `auto`, `required`, or a dict that names one; None is `auto` where
            there are tools.
        parallel_tool_calls: Several calls may be in one answer.
        response_format: `{"type": "text" | "json_object" | "json_schema", ...}`.
        reasoning_effort: How long the model thinks, where its template knows that.
        chat_template: In place of the model's own.
        chat_template_kwargs: Further variables of the template.
        add_generation_prompt: The prompt ends where the assistant begins.
        continue_final_message: The prompt ends amid the last message.
        add_special_tokens: Begin the prompt as the model's texts begin, beside what the template
            writes.
        documents: What the template shows as such, each a dict of texts.
        echo: Give the last message too where it is continued.
        include_reasoning: Give the reasoning apart from the answer.
    """

    messages: list[ChatCompletionMessageParam]
    max_completion_tokens: AtLeastOne | None = None
    max_tokens: AtLeastOne | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool = True
    response_format: Json | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: Json | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    documents: list[dict[str, str]] | None = None
    echo: bool = False
    include_reasoning: bool = True

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens`, or `max_tokens` where that alone is given."""
        return self.max_completion_tokens or self.max_tokens


class EncoderRequest(OpenAIRequest, kw_only=True):
    """What a request has that is answered in one pass over its texts.

    Attributes:
        truncate_prompt_tokens: Keep so many tokens of a text that has more; -1 as many as the model
            takes.
        truncation: What is cut off a text that is too long; None is the model's own default.
        add_special_tokens: Begin and end a text as the model's texts do.
        priority: Lower ones go first, where the model knows that.
    """

    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    truncation: Truncation | None = None
    add_special_tokens: bool = True
    priority: int = 0


class _InputRequest(EncoderRequest, kw_only=True):
    """A request with texts, or token ids, as its `input`."""

    input: str | list[Any]

    @property
    def inputs(self) -> list[TextOrTokens]:
        """The texts, or the token ids of each, one by one."""
        return texts_or_tokens(self.input)


class _VectorRequest(_InputRequest, kw_only=True):
    """A request for numbers."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: AtLeastOne | None = None
    normalize: bool | None = None


class EmbeddingRequest(_VectorRequest, kw_only=True):
    """A request for the vectors of texts.

    Attributes:
        input: A text, token ids, or several of either.
        encoding_format: Numbers, or base64 of their bytes as little-endian float32.
        dimensions: The length of the vectors; None is all that the model has.
        normalize: Whether vectors get the length 1; None is the model's own default.
        prompt_name: The prompt of the model's to put before each text.
        prompt: A text to put before each text.
    """

    prompt_name: str | None = None
    prompt: str | None = None


EmbeddingCompletionRequest = EmbeddingRequest


class PoolingRequest(_VectorRequest, kw_only=True):
    """A request for what the model makes of texts, before any head of a task.

    Attributes:
        input: A text, token ids, or several of either.
        encoding_format: Numbers, or base64 of their bytes as little-endian float32.
        dimensions: The length of the vectors; None is all that the model has.
        normalize: Whether vectors get the length 1; None is the model's own default.
        task: `embed`, `classify`, `token_embed`, `token_classify` or `score`, as vLLM names them;
            None is the model's own.
    """

    task: str | None = None


class ClassificationRequest(_InputRequest, kw_only=True):
    """A request for the class of texts, or of their tokens.

    Attributes:
        input: A text, token ids, or several of either.
        use_activation: Probabilities rather than logits; None is the model's own default.
        top_k: Name so many of the likeliest classes.
        aggregation_strategy: How tokens become entities: `none`, `simple`, `first`, `average`,
            `max`; None is the model's own default.
    """

    use_activation: bool | None = None
    top_k: AtLeastOne | None = None
    aggregation_strategy: str | None = None


class RerankRequest(EncoderRequest, kw_only=True):
    """A request to put documents in the order of their relevance to a query.

    Attributes:
        query: The query.
        documents: Each a text, or a dict with a `text`.
        top_n: Give so many of the most relevant; None and 0 are all.
        return_documents: Give the texts too.
        max_tokens_per_doc: Keep so many tokens of each document.
    """

    query: str
    documents: list[str | Json]
    top_n: AtLeastZero | None = None
    return_documents: bool = True
    max_tokens_per_doc: AtLeastOne | None = None

    @property
    def texts(self) -> list[str]:
        """The texts of the documents."""
        return [each if isinstance(each, str) else each["text"] for each in self.documents]


class ScoreRequest(EncoderRequest, kw_only=True):
    """A request for the scores of pairs of texts.

    Attributes:
        text_1: One text, or as many as in `text_2`.
        text_2: One text or more.
        queries: Another name of `text_1`.
        documents: Another name of `text_2`.
        use_activation: Scores from 0 to 1 rather than logits; None is the model's own default.
    """

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    use_activation: bool | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs: the one text with each of the others, or one by one."""
        first, second = self.sides
        if len(first) == 1:
            first *= len(second)
        return list(zip(first, second, strict=True))

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """The first texts, and the second ones."""
        return _texts(self.text_1, self.queries), _texts(self.text_2, self.documents)


class TokenizeRequest(OpenAIRequest, kw_only=True):
    """A request for the token ids of a text or a chat.

    Attributes:
        prompt: The text; None where there are messages.
        messages: The chat; None where there is a prompt.
        add_special_tokens: Begin and end the text as the model's texts do; None is yes for a text
            and no for a chat, whose template writes them.
        return_token_strs: Give the tokens as texts too.
        add_generation_prompt: The chat ends where the assistant begins.
        continue_final_message: The chat ends amid the last message.
        chat_template: In place of the model's own.
        chat_template_kwargs: Further variables of the template.
        tools: As of a chat.
    """

    prompt: str | None = None
    messages: list[ChatCompletionMessageParam] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: Json | None = None
    tools: list[Json] | None = None


class DetokenizeRequest(OpenAIRequest, kw_only=True):
    """A request for the text of token ids."""

    tokens: list[AtLeastZero]


def texts_or_tokens(value: str | Sequence[Any]) -> list[TextOrTokens]:
    """Give a list of texts, or of lists of token ids, for one or several of either."""
    if isinstance(value, str):
        return [value]
    items: list[Any] = list(value)
    return [items] if items and isinstance(items[0], int) else items


def _texts(*values: str | list[str] | None) -> list[str]:
    """Give the texts of the first value that is there."""
    value = next((each for each in values if each is not None), [])
    return [value] if isinstance(value, str) else list(value)
