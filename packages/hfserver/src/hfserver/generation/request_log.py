"""An engine that logs the prompts of its requests, where the command line asks for that."""

from hfserver.generation.engine import Engine
from hfserver.generation.event_stream import EventStream
from hfserver.generation.interface import EngineStats, GenerationRequest
from hfserver.generation.text import TextCodec
from kserve.listing import shortened
from kserve.logging import logger


class LoggedEngine:
    """A `GenerationEngine` whose prompts are logged as the model reads them.

    Args:
        engine: What runs the requests.
        model_name: The name under which the model is served.
        codec: Its tokenizer.
        max_len: Characters of a prompt that are logged; None for all.
    """

    def __init__(
        self, engine: Engine, model_name: str, codec: TextCodec, max_len: int | None
    ) -> None:
        self._engine = engine
        self._model_name = model_name
        self._codec = codec
        self._max_len = max_len

    @property
    def max_model_len(self) -> int:
        """The tokens of a prompt and its answer together, at most."""
        return self._engine.max_model_len

    def submit(self, request: GenerationRequest) -> EventStream:
        """Queue a request, and log its prompt once it is taken."""
        events = self._engine.submit(request)
        text = self._codec.decode(request.prompt_ids, skip_special_tokens=False)
        logger.info("Model %s: prompt %r", shortened(self._model_name), text[: self._max_len])
        return events

    def cancel(self, request_id: str) -> None:
        """End a request, within two steps."""
        self._engine.cancel(request_id)

    def stats(self) -> EngineStats:
        """Say what the engine is doing."""
        return self._engine.stats()

    def health(self) -> str | None:
        """Give why the engine cannot answer, or None where it can."""
        return self._engine.health()
