"""The model that reads text: classes, entities, masks and embeddings on every wire."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from hfserver.checkpoint import Checkpoint
from hfserver.detect import Task
from hfserver.encoder.engine import EncoderEngine
from hfserver.inputs import Text, Wishes, read_v1, read_v2
from hfserver.openai_routes import OpenAIRoutes
from hfserver.options import Options
from hfserver.reader import Reader
from hfserver.tasks.fill_mask import FillMask
from hfserver.tasks.results import Kind, Result, TaskAnswers, kind_of
from hfserver.tasks.sequence_classification import Labels, SequenceClassification, label_names
from hfserver.tasks.text_embedding import TextEmbedding
from hfserver.tasks.token_classification import TokenClassification, Words, offset_mapping
from kserve.artifact import WARMUP_FILE
from kserve.errors import ModelLoadError
from kserve.executor import run_in_new_thread
from kserve.listing import shortened
from kserve.logging import logger
from kserve.model import Model
from kserve.protocol.codec import v2_json
from kserve.protocol.codec.dtypes import from_np_dtype
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse
from kserve.signature import Signature, Tensors, TensorSpec

T = TypeVar("T")

# The input of V2, which a client may call what it likes.
_INPUT: Final = TensorSpec("text", "BYTES", (-1,))
_OFFSETS: Final = "offset_mapping"

# Numbers beyond which an answer is made on a thread: it takes milliseconds then.
_MAX_NUMBERS_ON_LOOP: Final = 20_000


class HuggingfaceEncoderModel(Model, OpenAIRoutes):
    """Serves a model of one of the tasks that read text.

    The model runs on the engine's thread; what this class does on the event loop is to read
    requests and to write answers.

    Args:
        name: The name under which it is served.
        checkpoint: Its files.
        options: What the command line says.
        task: What the model does.
    """

    platform = "huggingface"

    _is_ready: bool = False
    _failure: str = ""
    _engine: EncoderEngine | None = None

    def __init__(self, name: str, checkpoint: Checkpoint, *, options: Options, task: Task) -> None:
        super().__init__(name)
        self.task = task
        self.options = options
        self._checkpoint = checkpoint
        self.signature = Signature((_INPUT,))

    def load(self) -> bool:
        """Load the model and its tokenizer, start its engine, and read one text.

        Raises:
            ModelLoadError: A file is missing, damaged, or not one that may be read.
        """
        self.reader = Reader.load(
            self.name, self._checkpoint, self.options, self.task, on_failure=self._note_failure
        )
        self.reader.warm_up()
        self.max_model_len = self.reader.max_length
        self.answers = _make_answers(self.task, self.reader)
        self._engine = self.reader.engine
        kind = kind_of(self.options, Wishes())
        self.signature = Signature((_INPUT,), self.answers.outputs(kind))
        self._send_warm_up()
        self.ready = True
        return self.ready

    def stop(self) -> None:
        """Take no more texts."""
        super().stop()
        if self._engine is not None:
            self._engine.close()

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
        if self._engine is not None and self._engine.has_hung:
            hang_s = self.options.hang_timeout_s
            return f"A batch has not returned for {hang_s:g} s (--hang_timeout_s)."
        return self._failure

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        """Answer a V1 payload with a dict, or an `InferRequest` with an `InferResponse`.

        Raises:
            InvalidInput: The payload does not fit the model.
            TooManyRequests: As many texts wait as may.
        """
        if isinstance(payload, InferRequest):
            texts, wishes = read_v2(payload)
        else:
            texts, wishes = read_v1(payload)
        kind = kind_of(self.options, wishes)
        self.log_texts(texts)
        results = await self.read(texts, wishes)
        if isinstance(payload, InferRequest):
            return _respond(self, payload, await self._tensors(results, kind, wishes))
        return await self._predictions(results, kind, wishes)

    async def read(self, texts: Sequence[Text], wishes: Wishes) -> list[Result]:
        """Have the engine read texts as V1 and V2 do.

        Raises:
            InvalidInput: A text is too long, and is not to be cut.
        """
        return await self.reader.read(
            texts,
            truncation=wishes.truncation or self.options.truncation,
            add_special_tokens=self.options.add_special_tokens,
            dimensions=wishes.dimensions,
            normalize=wishes.normalize,
            prompt_name=wishes.prompt_name,
        )

    def get_input_types(self) -> list[dict[str, Any]]:
        """Give the metadata of the input."""
        return [spec.metadata() for spec in self.signature.inputs]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Give the metadata of the outputs, as the command line asks for them."""
        return [spec.metadata() for spec in self.signature.outputs]

    def log_texts(self, texts: Sequence[Any]) -> None:
        """Log the texts of a request, if the command line says so."""
        if not self.options.log_requests:
            return
        shown = [str(text)[: self.options.max_log_len] for text in texts]
        logger.info("Model %s: texts %r", shortened(self.name), shown)

    def _send_warm_up(self) -> None:
        """Answer the V2 request that may stand beside the model's files; blocks.

        Raises:
            ModelLoadError: The model cannot answer it.
        """
        path = self._checkpoint.directory / WARMUP_FILE
        if not path.is_file():
            return
        try:
            asyncio.run(self.predict(v2_json.decode(path.read_bytes(), self.name)))
        except Exception as exc:
            raise ModelLoadError(f"{path}: the warm-up request failed: {exc}") from exc

    def _note_failure(self, reason: str) -> None:
        self._failure = reason

    async def _predictions(
        self, results: Sequence[Result], kind: Kind, wishes: Wishes
    ) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            rows = [self.answers.row(result, kind, wishes) for result in results]
            if not self._wants_offsets(wishes):
                return {"predictions": rows}
            offsets = offset_mapping(results)
            output = {"name": _OFFSETS, "shape": list(offsets.shape), "datatype": "INT64"}
            return {"predictions": rows, "outputs": [{**output, "data": offsets.tolist()}]}

        return await _made(make, results)

    async def _tensors(self, results: Sequence[Result], kind: Kind, wishes: Wishes) -> Tensors:
        def make() -> Tensors:
            tensors = self.answers.tensors(results, kind, wishes)
            if self._wants_offsets(wishes):
                tensors[_OFFSETS] = offset_mapping(results)
            return tensors

        return await _made(make, results)

    def _wants_offsets(self, wishes: Wishes) -> bool:
        if wishes.return_offsets_mapping is not None:
            return wishes.return_offsets_mapping
        return self.options.return_offsets_mapping and self.task is Task.TOKEN_CLASSIFICATION


def _make_answers(task: Task, reader: Reader) -> TaskAnswers:
    if task is Task.SEQUENCE_CLASSIFICATION:
        return SequenceClassification(Labels.from_config(reader.config))
    if task is Task.TOKEN_CLASSIFICATION:
        return TokenClassification(label_names(reader.config), Words.of(reader.tokenizer))
    if task is Task.FILL_MASK:
        return FillMask(reader.tokenizer)
    return TextEmbedding(reader.n_dimensions)


async def _made(make: Callable[[], T], results: Sequence[Result]) -> T:
    """Make an answer: here if it is small, else on a thread."""
    if sum(result.numbers.size for result in results) <= _MAX_NUMBERS_ON_LOOP:
        return make()
    return await run_in_new_thread(make)


def _respond(model: Model, request: InferRequest, tensors: Tensors) -> InferResponse:
    outputs = []
    for name, array in tensors.items():
        datatype = from_np_dtype(array.dtype)
        assert datatype is not None
        outputs.append(InferOutput.from_array(name, list(array.shape), datatype, array.reshape(-1)))
    return InferResponse(
        response_id=request.id,
        model_name=model.name,
        model_version=model.version,
        infer_outputs=outputs,
        use_binary_outputs=request.use_binary_outputs,
        requested_outputs=request.request_outputs,
    )
