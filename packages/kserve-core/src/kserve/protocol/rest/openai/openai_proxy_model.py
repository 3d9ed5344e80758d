"""A model that passes its requests on to another server of OpenAI's API, such as vLLM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import msgspec
import orjson

from kserve.executor import ModelThreads
from kserve.logging import logger
from kserve.model import append_forwardable_headers
from kserve.pipeline import default_handler
from kserve.protocol.rest.openai import reading, sse
from kserve.protocol.rest.openai.errors import OpenAIError
from kserve.protocol.rest.openai.handlers import METHODS
from kserve.protocol.rest.openai.openai_model import (
    Context,
    OpenAIEncoderModel,
    OpenAIGenerativeModel,
)
from kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ClassificationRequest,
    Completion,
    CompletionChunk,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    OpenAIRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
    TokenizeRequest,
)
from kserve.protocol.rest.openai.types.structs import OpenAIStruct
from kserve.protocol.rest.openai.upstream.documents import RawDocument, read, write
from kserve.protocol.rest.openai.upstream.hooks import (
    AnswerHook,
    Document,
    Hook,
    Outcome,
    RequestHook,
    make_answer,
)
from kserve.protocol.rest.openai.upstream.models import UpstreamModel
from kserve.protocol.rest.openai.upstream.server import Upstream
from kserve.protocol.rest.openai.upstream.stream import Passed, UpstreamStream

if TYPE_CHECKING:
    import httpx2

__all__ = ["OpenAIProxyModel"]

# Seconds for which the server may send nothing; as long as a request may take by default.
_IDLE_TIMEOUT_S: Final = 300.0

# What an answer to each has, whatever else there is in it.
_REQUIRED: Final[Mapping[str, str]] = {
    "completions": "choices",
    "chat/completions": "choices",
    "embeddings": "data",
    "rerank": "results",
    "score": "data",
    "classify": "data",
    "pooling": "data",
    "tokenize": "tokens",
    "detokenize": "prompt",
}

# The hooks, and the types of what the last two are called with.
_HOOKS: Final[Mapping[str, tuple[str, str, str]]] = {
    "completions": (
        "preprocess_completion_request",
        "postprocess_completion",
        "postprocess_completion_chunk",
    ),
    "chat/completions": (
        "preprocess_chat_completion_request",
        "postprocess_chat_completion",
        "postprocess_chat_completion_chunk",
    ),
}
_KINDS: Final[Mapping[str, tuple[type[OpenAIStruct], type[OpenAIStruct]]]] = {
    "completions": (Completion, CompletionChunk),
    "chat/completions": (ChatCompletion, ChatCompletionChunk),
}

# Of W3C's "Trace Context": the server's spans belong to the client's trace.
_TRACE_HEADERS: Final = ("traceparent", "tracestate")

# Where code of the user's puts what else the server is to get.
_UPSTREAM_HEADERS: Final = "upstream_headers"

_EVENT_STREAM: Final = "text/event-stream"


class OpenAIProxyModel(OpenAIGenerativeModel, OpenAIEncoderModel):
    """Passes requests on to a server of OpenAI's API, and its answers back.

    What a client sends goes on as it is, fields that are not known here too: the server is to judge
    it. What the server answers comes back as it is, events of a stream one by one; only the name of
    the model is the one that the client knows, and errors have OpenAI's form.

    A subclass overrides hooks, plain or async, to change requests, answers and chunks in place. A
    hook may take fewer arguments, and what it gives, if not None, counts in the place of what it
    got. A request for which there is a hook must suit the types of the API.

    Args:
        name: The name under which it is served.
        predictor_url: The server, `http://HOST:PORT`, or with a path that ends in `/v1`.
        http_client: Makes the requests, with timeouts of its own; whoever made it closes it.
        skip_upstream_validation: Take answers as they are: what is missing is not noticed, and
            hooks get objects whose fields hold what has come, dicts for one.
        health_endpoint: The path that says whether the server can answer; None if there is none.
            `{model_name}` in it is replaced by the name of the model.
        upstream_model: What the server calls the model; None is the same name, or else that of the
            only model that it lists.
        api_key: The server's key, in the place of the client's `authorization`.
        idle_timeout_s: Seconds for which the server may send nothing, above 0; None is no limit.

    Raises:
        ValueError: The URL is none.
    """

    # A request learns by itself whether the server is there; to ask before would cost as much
    # as to ask.
    is_gated_by_health: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        predictor_url: str,
        http_client: "httpx2.AsyncClient | None" = None,
        skip_upstream_validation: bool = False,
        health_endpoint: str | None = "/health",
        *,
        upstream_model: str | None = None,
        api_key: str | None = None,
        idle_timeout_s: float | None = _IDLE_TIMEOUT_S,
    ) -> None:
        super().__init__(name)
        self.predictor_url = predictor_url
        self.skip_upstream_validation = skip_upstream_validation
        self._upstream = Upstream(
            predictor_url, http_client, api_key=api_key, idle_timeout_s=idle_timeout_s
        )
        self._upstream_model = UpstreamModel(self._upstream, name, upstream_model)
        self._health_endpoint = health_endpoint and health_endpoint.replace(
            "{model_name}", upstream_model or name
        )
        self._plans: dict[str, _Plan] = {}
        self.ready = True

    @property
    def max_model_len(self) -> int | None:  # type: ignore[override]
        """How many tokens the model takes, if the server has said so."""
        return self._upstream_model.max_model_len

    def start(self) -> None:
        """Read the certificates; nothing is asked of the server yet."""
        super().start()
        self._upstream.prepare()
        logger.info("Model %s: requests go to %s", self.name, self._upstream.addresses.origin)

    def stop(self) -> None:
        """Close the connections."""
        super().stop()
        self._upstream.close()

    async def healthy(self) -> bool:
        """Ask the server."""
        if not self.ready:
            return False
        if self._health_endpoint and not await self._upstream.is_healthy(self._health_endpoint):
            return False
        await self._upstream_model.look()
        return True

    def read_request(
        self, api: str, document: Mapping[str, Any], model: str, request_id: str
    ) -> OpenAIRequest:
        """Make the request of a document, which is for the server to judge.

        Args:
            api: What is asked for, such as `chat/completions`.
            document: The JSON, without what is null.
            model: The name that the client has for the model.
            request_id: The id of the HTTP request.

        Raises:
            OpenAIError: It does not have the types that a hook relies on.
        """
        if self._plan(api).is_plain:
            return OpenAIRequest(model=model, request_id=request_id)
        return reading.make_request(api, document, model, request_id)

    @default_handler
    def preprocess_completion_request(
        self, request: CompletionRequest, raw_request: Any = None
    ) -> Any:
        """Change a request before it is passed on."""

    @default_handler
    def postprocess_completion(
        self, completion: Completion, request: CompletionRequest, raw_request: Any = None
    ) -> Any:
        """Change an answer that does not stream."""

    @default_handler
    def postprocess_completion_chunk(
        self, completion: CompletionChunk, request: CompletionRequest, raw_request: Any = None
    ) -> Any:
        """Change a chunk of an answer that streams."""

    @default_handler
    def preprocess_chat_completion_request(
        self, request: ChatCompletionRequest, raw_request: Any = None
    ) -> Any:
        """Change a request before it is passed on."""

    @default_handler
    def postprocess_chat_completion(
        self,
        chat_completion: ChatCompletion,
        request: ChatCompletionRequest,
        raw_request: Any = None,
    ) -> Any:
        """Change an answer that does not stream."""

    @default_handler
    def postprocess_chat_completion_chunk(
        self,
        chat_completion_chunk: ChatCompletionChunk,
        request: ChatCompletionRequest,
        raw_request: Any = None,
    ) -> Any:
        """Change a chunk of an answer that streams."""

    # A subclass that overrides one of these gets objects, of completions and chats, or dicts. What
    # no type has is lost then; a hook keeps it.

    async def create_completion(
        self,
        request: CompletionRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Any:
        """Continue prompts."""
        return await self._pass_on("completions", request, raw_request, context)

    async def create_chat_completion(
        self,
        request: ChatCompletionRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Any:
        """Answer in a chat."""
        return await self._pass_on("chat/completions", request, raw_request, context)

    async def create_embedding(
        self,
        request: EmbeddingRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Any:
        """Give vectors of texts."""
        return await self._pass_on("embeddings", request, raw_request, context)

    async def create_rerank(
        self,
        request: RerankRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Any:
        """Put documents in the order of their relevance to a query."""
        return await self._pass_on("rerank", request, raw_request, context)

    async def create_score(
        self,
        request: ScoreRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Any:
        """Give the scores of pairs of texts."""
        return await self._pass_on("score", request, raw_request, context)

    async def create_classification(
        self,
        request: ClassificationRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Any:
        """Give the classes of texts."""
        return await self._pass_on("classify", request, raw_request, context)

    async def create_pooling(
        self,
        request: PoolingRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Any:
        """Give what the model makes of texts."""
        return await self._pass_on("pooling", request, raw_request, context)

    async def create_tokenize(
        self,
        request: TokenizeRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Any:
        """Give the token ids of a text or a chat."""
        return await self._pass_on("tokenize", request, raw_request, context)

    async def create_detokenize(
        self,
        request: DetokenizeRequest,
        raw_request: Any = None,
        context: Context | None = None,
    ) -> Any:
        """Give the text of token ids."""
        return await self._pass_on("detokenize", request, raw_request, context)

    async def _pass_on(
        self, api: str, request: OpenAIRequest, raw_request: Any, context: Context | None
    ) -> Any:
        context, plan, model = context or {}, self._plan(api), request.model
        threads: ModelThreads | None = context.get("threads")
        document: Document = context.get("document") or _document_of(request)
        if plan.before is not None:
            request, document = await plan.before.apply(request, document, raw_request, threads)
        # A hook may have said what the server calls it.
        asked = request.model
        if asked == model:
            asked = await self._upstream_model.name(model)
        body = orjson.dumps({**document, "model": asked})
        try:
            response = await self._upstream.post(api, body, _headers(raw_request, context))
        except OpenAIError as exc:
            if exc.http_status == 404:
                self._upstream_model.forget()
            raise
        passage = _Passage(plan, model, (request, raw_request), threads)
        if response.headers.get("content-type", "").startswith(_EVENT_STREAM):
            end = None if plan.gives_objects else sse.DONE_EVENT
            return UpstreamStream(response, passage.chunks, end, self._upstream.note)
        required = None if self.skip_upstream_validation else _REQUIRED[api]
        return await passage.answer(await self._upstream.read(response), required)

    def _plan(self, api: str) -> "_Plan":
        plan = self._plans.get(api)
        if plan is None:
            plan = self._plans[api] = _Plan.of(self, api)
        return plan


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a model's own code does about the requests of one API.

    Attributes:
        before: Changes requests.
        whole: Changes answers.
        chunk: Changes the chunks of answers.
        kinds: The types of an answer and of a chunk; None where the API has no hooks.
        gives_objects: The handler is overridden, and looks at what is passed back.
        is_validated: Whether answers must have the types.
    """

    before: RequestHook | None
    whole: AnswerHook | None
    chunk: AnswerHook | None
    kinds: tuple[type[OpenAIStruct], type[OpenAIStruct]] | None
    gives_objects: bool
    is_validated: bool

    @classmethod
    def of(cls, model: OpenAIProxyModel, api: str) -> "_Plan":
        handler_name = METHODS[api][0]
        gives_objects = handler_name in vars(model) or (
            getattr(type(model), handler_name) is not getattr(OpenAIProxyModel, handler_name)
        )
        is_validated = not model.skip_upstream_validation
        kinds = _KINDS.get(api)
        if kinds is None:
            return cls(None, None, None, None, gives_objects, is_validated)
        before, *after = (Hook.of(getattr(model, name)) for name in _HOOKS[api])
        whole, chunk = (
            None if hook is None else AnswerHook(hook, kind, is_validated=is_validated)
            for hook, kind in zip(after, kinds, strict=True)
        )
        request_hook = None if before is None else RequestHook(before)
        return cls(request_hook, whole, chunk, kinds, gives_objects, is_validated)

    @property
    def is_plain(self) -> bool:
        """Whether requests and answers are the business of client and server alone."""
        return not (self.gives_objects or self.before or self.whole or self.chunk)


class _Passage(NamedTuple):
    """The way back of one answer."""

    plan: _Plan
    model: str
    args: tuple[OpenAIRequest, Any]
    threads: ModelThreads | None

    async def answer(self, data: bytes, required: str | None) -> Any:
        """Give an answer that does not stream."""
        raw = read(data, required)
        if self.plan.whole is None and not self.plan.gives_objects:
            return msgspec.Raw(write(raw, self.model))
        outcome = await self._changed(self.plan.whole, [raw])
        if outcome.failure is not None:
            raise outcome.failure
        return self._made(outcome.documents[0], is_chunk=False)

    async def chunks(self, events: Sequence[RawDocument]) -> Passed:
        """Give the chunks of events."""
        if self.plan.chunk is None and not self.plan.gives_objects:
            return Passed([b"".join(sse.event(write(event, self.model)) for event in events)])
        outcome = await self._changed(self.plan.chunk, events)
        chunks: list[Any] = []
        for document in outcome.documents:
            try:
                chunks.append(self._made(document, is_chunk=True))
            except OpenAIError as exc:
                return Passed(chunks, exc)
        return Passed(chunks, outcome.failure)

    async def _changed(self, hook: AnswerHook | None, raw: Sequence[RawDocument]) -> Outcome:
        documents: list[Document] = [orjson.loads(write(each, self.model)) for each in raw]
        if hook is None:
            return Outcome(documents)
        return await hook.apply(documents, self.args, self.threads)

    def _made(self, document: Document, *, is_chunk: bool) -> Any:
        if self.plan.kinds is None or not self.plan.gives_objects:
            return document
        kind = self.plan.kinds[is_chunk]
        return make_answer(kind, document, is_validated=self.plan.is_validated)


def _document_of(request: OpenAIRequest) -> Document:
    """Give what a request has that code of the user's has made."""
    document = request.model_dump()
    document.pop("request_id", None)
    return document


def _headers(raw_request: Any, context: Context) -> dict[str, str]:
    """Give the headers of a request that go on to the server."""
    given: Mapping[str, str] = context.get("headers") or {}
    traced = {name: given[name] for name in _TRACE_HEADERS if name in given}
    headers = append_forwardable_headers(given, traced)
    if isinstance(raw_request, Mapping):
        added = raw_request.get(_UPSTREAM_HEADERS) or {}
        headers |= {name.lower(): value for name, value in added.items()}
    return headers
