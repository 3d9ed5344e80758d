"""The model that writes text, as the server knows it."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final

from hfserver.chat.chats import Chats, lazy_compiler
from hfserver.chat.grammar import GrammarCompiler
from hfserver.chat.options import ChatOptions
from hfserver.checkpoint import Checkpoint
from hfserver.detect import Task
from hfserver.generation.completions import Completions
from hfserver.generation.engine import Engine
from hfserver.generation.executors.selection import choose_executor
from hfserver.generation.interface import GenerationEngine
from hfserver.generation.loading import LoadedGenerator, engine_config, load_generator
from hfserver.generation.metrics import forget_model
from hfserver.generation.options import GenerationOptions
from hfserver.generation.plain import SIGNATURE, PlainTexts
from hfserver.generation.request_log import LoggedEngine
from hfserver.generation.text import TextCodec
from hfserver.loading import LoadOptions
from kserve.executor import run_in_new_thread
from kserve.logging import logger
from kserve.model import Model
from kserve.protocol.infer_type import InferRequest, InferResponse
from kserve.protocol.rest.openai.openai_model import OpenAIGenerativeModel
from kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionChunk,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from kserve.text_generation import GeneratedText, GenerateRequest, TextGenerator

_CHAT: Final = ChatOptions()


class HuggingfaceGenerativeModel(Model, OpenAIGenerativeModel, TextGenerator):
    """Serves a model that writes text.

    Args:
        name: The name under which it is served.
        checkpoint: Its files.
        options: How they are read.
        generation: What the command line says about generation.
        task: One of `GENERATIVE_TASKS`.
        chat: What the command line says about chats.
        log_requests: Whether prompts are logged.
        max_log_len: Characters of a prompt that are logged; None for all.
        hang_timeout_s: Seconds after which a step is taken to have hung; 0 is never.
    """

    platform = "huggingface"

    _is_ready: bool = False
    _failure: str = ""
    _has_hung: bool = False
    # There is none before the load.
    _engine: Engine

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        *,
        options: LoadOptions,
        generation: GenerationOptions,
        task: Task,
        chat: ChatOptions = _CHAT,
        log_requests: bool = False,
        max_log_len: int | None = None,
        hang_timeout_s: float = 0.0,
    ) -> None:
        super().__init__(name)
        self.task = task
        self.max_model_len: int | None = None
        self._checkpoint = checkpoint
        self._options = options
        self._generation = generation
        self._chat = chat
        self._log_requests = log_requests
        self._max_log_len = max_log_len
        self._hang_timeout_s = hang_timeout_s

    # The engine may die, or hang, at any time: so these are no plain attributes.

    @property
    def ready(self) -> bool:
        """Whether it is loaded, and its engine can answer."""
        return self._is_ready and not self.fatal_error

    @ready.setter
    def ready(self, value: bool) -> None:
        self._is_ready = value

    @property
    def fatal_error(self) -> str:  # type: ignore[override]
        """Why it can never answer again; empty while it can."""
        engine: Engine | None = vars(self).get("_engine")
        limit_s = self._hang_timeout_s
        has_hung = engine is not None and 0 < limit_s <= engine.step_seconds
        if engine is not None and has_hung and not self._has_hung:
            logger.critical("Model %s: a step has hung:\n%s", self.name, engine.stack())
        self._has_hung = has_hung
        if has_hung:
            return f"A step has not returned for {limit_s:g} s (--hang_timeout_s)."
        return self._failure

    def load(self) -> bool:
        """Load the model, check how it can be run, and start its engine.

        Raises:
            ModelLoadError: A file is missing or damaged, or what is asked for cannot be had.
        """
        loaded = load_generator(self._checkpoint, self._options, self._generation, self.task)
        executor = choose_executor(loaded.model)
        config = engine_config(loaded, self._generation, executor)
        logger.info(
            "Model %s: executor %s on %s, context %d tokens, KV cache %d bytes, prefixes %d bytes",
            *(self.name, executor.name, executor.device, config.max_model_len),
            *(config.kv_cache_bytes, config.prefix_cache_bytes),
        )
        self._codec = codec = TextCodec(
            loaded.tokenizer, loaded.model.config.get_text_config().vocab_size
        )
        self._engine = Engine(
            self.name, executor, config, loaded.rules, codec.decode, on_failure=self._fail
        )
        engine: GenerationEngine = self._engine
        if self._log_requests:
            engine = LoggedEngine(self._engine, self.name, codec, self._max_log_len)
        compiler = _compiler(loaded)
        self._completions = Completions(engine, codec, loaded.defaults, compiler)
        self._texts = PlainTexts(self.name, self._completions)
        self._chats = Chats(engine, codec, loaded.tokenizer, loaded.defaults, compiler, self._chat)
        self.max_model_len = config.max_model_len
        self.ready = True
        return self.ready

    def stop(self) -> None:
        """End the engine; requests that are left fail."""
        super().stop()
        self._engine.stop()
        forget_model(self.name)

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse | AsyncGenerator[InferResponse]:
        """Continue the texts of a V1 or V2 request; see `PlainTexts`."""
        if isinstance(payload, InferRequest):
            return await self._texts.answer_v2(payload, self.version)
        return await self._texts.answer_v1(payload)

    def generate(
        self, request: GenerateRequest, headers: dict[str, str] | None = None
    ) -> AsyncGenerator[GeneratedText]:
        """Continue a text; see `PlainTexts`."""
        return self._texts.generate(request)

    def get_input_types(self) -> list[dict[str, Any]]:
        """Give the metadata of the input."""
        return [spec.metadata() for spec in SIGNATURE.inputs]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Give the metadata of the output."""
        return [spec.metadata() for spec in SIGNATURE.outputs]

    async def create_tokenize(
        self, request: TokenizeRequest, raw_request: Any = None, context: Any = None
    ) -> TokenizeResponse:
        """Give the token ids of a text, or of the prompt that a chat becomes."""
        ids = await run_in_new_thread(self._encode, request)
        return TokenizeResponse(
            tokens=ids,
            count=len(ids),
            max_model_len=self.max_model_len,
            token_strs=self._codec.tokens(ids) if request.return_token_strs else None,
        )

    async def create_detokenize(
        self, request: DetokenizeRequest, raw_request: Any = None, context: Any = None
    ) -> DetokenizeResponse:
        """Give the text of token ids, special ones included.

        Raises:
            OpenAIError: The model does not know one of them.
        """
        self._codec.check(request.tokens, "tokens")
        text = self._codec.decode(request.tokens, skip_special_tokens=False)
        return DetokenizeResponse(prompt=text)

    async def create_completion(
        self, request: CompletionRequest, raw_request: Any = None, context: Any = None
    ) -> Completion | AsyncIterator[CompletionChunk | str]:
        """Continue prompts; see `Completions.create`."""
        return await self._completions.create(request)

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: Any = None, context: Any = None
    ) -> ChatCompletion | AsyncIterator[ChatCompletionChunk | str]:
        """Answer in a chat; see `Chats.create`."""
        return await self._chats.create(request)

    def _encode(self, request: TokenizeRequest) -> list[int]:
        if request.prompt is not None:
            return self._codec.encode(request.prompt, request.add_special_tokens is not False)
        return self._chats.encode(request)

    def _fail(self, reason: str) -> None:
        """Take the model out of service for good; called on the engine's thread."""
        self._failure = reason


def _compiler(loaded: LoadedGenerator) -> Callable[[], GrammarCompiler]:
    """Give what makes the compiler of grammars.

    Raises:
        InvalidInput: By what it gives: the tokenizer is written in Python.
    """
    return lazy_compiler(
        lambda: GrammarCompiler(
            loaded.tokenizer,
            n_vocabulary=loaded.model.config.get_text_config().vocab_size,
            eos_ids=loaded.rules.eos_ids,
        )
    )
