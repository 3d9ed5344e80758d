"""The model that writes text, as the server knows it."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from hfserver.chat.chats import Chats, lazy_compiler
from hfserver.chat.grammar import GrammarCompiler
from hfserver.chat.options import ChatOptions
from hfserver.checkpoint import Checkpoint
from hfserver.detect import Task
from hfserver.generation.completions import Completions
from hfserver.generation.engine import Engine
from hfserver.generation.executors.selection import choose_executor
from hfserver.generation.loading import LoadedGenerator, engine_config, load_generator
from hfserver.generation.metrics import forget_model
from hfserver.generation.options import GenerationOptions
from hfserver.generation.text import TextCodec
from hfserver.loading import LoadOptions
from kserve.logging import logger
from kserve.protocol.rest.openai.openai_model import OpenAIGenerativeModel
from kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionChunk,
    CompletionRequest,
)

_CHAT: Final = ChatOptions()


class HuggingfaceGenerativeModel(OpenAIGenerativeModel):
    """Serves a model that writes text.

    Args:
        name: The name under which it is served.
        checkpoint: Its files.
        options: How they are read.
        generation: What the command line says about generation.
        task: One of `GENERATIVE_TASKS`.
        chat: What the command line says about chats.
    """

    platform = "huggingface"

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        *,
        options: LoadOptions,
        generation: GenerationOptions,
        task: Task,
        chat: ChatOptions = _CHAT,
    ) -> None:
        super().__init__(name)
        self.task = task
        self.max_model_len: int | None = None
        self._checkpoint = checkpoint
        self._options = options
        self._generation = generation
        self._chat = chat

    def load(self) -> bool:
        """Load the model, check how it can be run, and start its engine.

        Raises:
            ModelLoadError: A file is missing or damaged, or what is asked for cannot be had.
        """
        loaded = load_generator(self._checkpoint, self._options, self._generation, self.task)
        executor = choose_executor(loaded.model)
        config = engine_config(loaded, self._generation, executor.device)
        logger.info(
            "Model %s: executor %s on %s, context %d tokens, KV cache %d bytes, prefixes %d bytes",
            *(self.name, executor.name, executor.device, config.max_model_len),
            *(config.kv_cache_bytes, config.prefix_cache_bytes),
        )
        codec = TextCodec(loaded.tokenizer, loaded.model.config.get_text_config().vocab_size)
        self._engine = Engine(
            self.name, executor, config, loaded.rules, codec.decode, on_failure=self._fail
        )
        compiler = _compiler(loaded)
        self._completions = Completions(self._engine, codec, loaded.defaults, compiler)
        self._chats = Chats(
            self._engine, codec, loaded.tokenizer, loaded.defaults, compiler, self._chat
        )
        self.max_model_len = config.max_model_len
        self.ready = True
        return self.ready

    def stop(self) -> None:
        """End the engine; requests that are left fail."""
        super().stop()
        self._engine.stop()
        forget_model(self.name)

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

    def _fail(self, reason: str) -> None:
        """Take the model out of service for good; called on the engine's thread."""
        self.fatal_error = reason
        self.ready = False


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
