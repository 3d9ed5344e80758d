"""What a model is: the contract of user code (`Model`) and that of our servers (`TensorModel`)."""

import argparse
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self

from numpy.typing import NDArray

from kserve.constants.constants import PredictorProtocol
from kserve.context import get_predictor_config
from kserve.errors import InferenceError, InvalidInput
from kserve.listing import quoted, shortened
from kserve.pipeline import HandlerPipeline, default_handler
from kserve.predictor_config import PredictorConfig
from kserve.protocol.codec import v1_json
from kserve.protocol.codec.dtypes import from_np_dtype
from kserve.protocol.codec.encoded_json import EncodedJson
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse
from kserve.signature import Signature, Tensors

__all__ = [
    "BaseKServeModel",
    "InferenceModel",
    "InferenceVerb",
    "Model",
    "PredictOptions",
    "PredictorProtocol",
    "TensorModel",
    "append_forwardable_headers",
]

# The parameter of a request that wants its outputs in binary form.
_WANTS_BINARY: Final = "binary_data_output"

# The parameter of a request that chooses one of a model's signatures; TensorFlow Serving's word.
SIGNATURE_NAME: Final = "signature_name"

# What a transformer passes on to its predictor, and no more.
_FORWARDABLE_HEADERS: Final = ("x-request-id", "x-b3-traceid", "authorization")


class InferenceVerb(Enum):
    """What a request asks a model to do."""

    EXPLAIN = 1
    PREDICT = 2


class BaseKServeModel:
    """A named thing that is loaded, started and stopped; every model is one.

    Attributes:
        name: The name under which it is served.
        version: The version that it is; None where the model has none.
        ready: Whether it can answer; `load()` sets it.
        fatal_error: Why it can never answer again, such as an engine that has died; liveness fails
            then, so that the pod is replaced. The model itself sets it, and `ready` to False.
        engine: True where `start_engine()` has to run beside the server.
        batching: Requests that wait together run together, in one call of `predict`.
        max_batch_size: Rows of a batch, if fewer than the server's limit.
        max_concurrent_predicts: Plain handlers that may run at the same time where the server is
            not told; None is 1. A model sets it by the end of its load.
        serves_openai: OpenAI's routes are there for it.
        is_gated_by_health: A request is refused while an overridden `healthy` says no; False leaves
            that to probes, so that no request waits for an answer to it.
    """

    version: str | None = None
    ready: bool = False
    fatal_error: str = ""
    engine: Any = False
    batching: bool = False
    max_batch_size: int | None = None
    max_concurrent_predicts: int | None = None
    serves_openai: ClassVar[bool] = False
    is_gated_by_health: ClassVar[bool] = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = False

    @default_handler
    async def healthy(self) -> bool:
        """Say whether the model can answer now; may be overridden with a plain method too."""
        return self.ready

    def load(self) -> bool:
        """Load the artifact; called by the server off the event loop if `ready` is not set.

        May be a coroutine function. An exception, or False as the result, fails the load.
        """
        self.ready = True
        return self.ready

    def start(self) -> None:
        """Start what belongs to the model; called once it is loaded and registered."""
        self.ready = True

    async def start_engine(self) -> None:
        """Run the engine beside the server; called where `engine` is true."""
        self.ready = True

    def stop(self) -> None:
        """Free what `load` and `start` took; called when the model is unloaded."""
        self.ready = False

    def stop_engine(self) -> None:
        """Stop the engine; called when a model whose `engine` is true is unloaded."""
        self.ready = False


class InferenceModel(BaseKServeModel):
    """A model that answers requests by being called."""

    async def __call__(
        self,
        body: Any,
        headers: dict[str, str] | None = None,
        verb: InferenceVerb = InferenceVerb.PREDICT,
    ) -> Any:
        """Answer one request with `(response, response_headers)`."""
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")

    def get_input_types(self) -> list[dict[str, Any]]:
        """Give `{name, datatype, shape}` of every input, for the metadata; may be async."""
        return []

    def get_output_types(self) -> list[dict[str, Any]]:
        """Give `{name, datatype, shape}` of every output, for the metadata; may be async."""
        return []


class Model(InferenceModel):
    """The contract of user code: preprocess, validate, predict or explain, postprocess.

    A handler may be a plain function, a coroutine function, a generator or an async generator, and
    may take fewer arguments than shown here. Plain ones run on a thread of the model's own, one
    call at a time unless `--max_concurrent_predicts`, or the attribute of this name, says
    otherwise; async ones on the event loop.
    A V1 payload is a dict of lists, a V2 payload an `InferRequest`. Which form a handler has is
    looked up once, when the model is registered.

    A class that says `batching = True` has its `predict` called with the rows of several requests:
    of V1 the `instances`, a list or an array, if their other keys and the kind of rows are equal;
    of V2 the inputs, if their names, datatypes, trailing axes and parameters are equal. It gives
    one result for each row, in order: a list or an array, or a dict with `predictions`, or an
    `InferResponse`. It gets no headers, as they would be those of several requests. If it raises,
    it is called again for the halves, until only the requests at fault fail. The other handlers run
    for each request alone.

    Args:
        name: The name under which it is served.
        return_response_headers: Pass a dict for response headers to `predict` and `postprocess`.
    """

    def __init__(self, name: str, return_response_headers: bool = False) -> None:
        super().__init__(name)
        self.required_response_headers = return_response_headers
        self.explainer_host: str | None = None
        self.enable_latency_logging = False

    @property
    def predictor_config(self) -> PredictorConfig | None:
        """The predictor that the server was started with, or None."""
        return get_predictor_config()

    async def __call__(
        self,
        body: Any,
        headers: dict[str, str] | None = None,
        verb: InferenceVerb = InferenceVerb.PREDICT,
    ) -> tuple[Any, dict[str, str]]:
        """Run the handlers on one request.

        Returns:
            What `postprocess` gave, and the response headers that the handlers set.

        Raises:
            NotImplementedError: The model has no handler for the verb.
            Exception: Whatever a handler raises.
        """
        pipeline: HandlerPipeline | None = self.__dict__.get("_pipeline")
        if pipeline is None:
            pipeline = self._pipeline = HandlerPipeline(self)
        return await pipeline.run(body, {} if headers is None else headers, verb.name.lower())

    @default_handler
    def validate(self, payload: Any) -> Any:
        """Check what `preprocess` gave; returns the payload to go on with, None to keep it.

        Raises:
            InvalidInput: `instances` (`inputs` with a V2 predictor) is there and is neither a list
                nor, as `preprocess` may make of it, array-like.
        """
        if not isinstance(payload, dict):
            return payload
        config = self.predictor_config
        protocol = config.protocol if config else PredictorProtocol.REST_V1.value
        key = "inputs" if protocol == PredictorProtocol.REST_V2.value else "instances"
        rows = payload.get(key, [])
        if not isinstance(rows, list) and not hasattr(rows, "__array__"):
            raise InvalidInput(f'Expected "{key}" to be a list')
        return payload

    @default_handler
    async def preprocess(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        """Turn the request into what `predict` takes; the same unless overridden."""
        return payload

    @default_handler
    async def postprocess(
        self,
        result: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        """Turn what `predict` or `explain` gave into the response; the same unless overridden."""
        return result

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        """Answer a request.

        Raises:
            NotImplementedError: Always; a model that predicts overrides it.
        """
        raise NotImplementedError(f"model {self.name} does not implement predict")

    async def explain(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        """Explain the prediction for a request.

        Raises:
            NotImplementedError: Always; a model that explains overrides it.
        """
        raise NotImplementedError(f"model {self.name} does not implement explain")


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What a request asks for beside its tensors.

    Attributes:
        parameters: The parameters of the request.
        outputs: The names of the requested outputs; empty means the default ones.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


# What V1 calls the answer to each verb.
RESULT_KEYS: Final = {"predict": "predictions", "explain": "explanations"}

_NO_OPTIONS: Final = PredictOptions(MappingProxyType({}))
_NO_SIGNATURES: Final[Mapping[str, Signature]] = MappingProxyType({})


class TensorModel(Model):
    """The contract of our servers: named arrays in, named arrays out.

    A subclass implements `load` and `predict_tensors` and sets `signature` in `load`. Requests are
    checked against the signature first. Where the signature says that axis 0 of all inputs and
    outputs is the rows, -1, requests that wait together are one call; a model whose outputs are
    no rows says `batching = False`. A call that is known to take less than a millisecond is made on
    the event loop, any other on a thread of the model's. A subclass of a server's model that
    overrides one of the handlers of `Model` is served as a `Model`, and its payloads are those of
    one.

    Attributes:
        platform: The framework, for the metadata.
        artifact_suffixes: The suffixes of the files that `load` takes, lower-case, with dots, or
            the whole names.
        preferred_artifact: The name of the one that `load` takes where there are several.
        versions: The versions that a model without numbered directories answers for itself.
        signature: What the model takes and gives.
        signatures: Where it can be called in several ways, what it takes and gives in each, by
            name; a request chooses with its parameter `signature_name`, else it is `signature`.
        is_stateful: A call changes what later ones give, so none is made for the warm-up but that
            of a `warmup.json`.
        can_explain: It defines `explain_tensors`; others answer an explain request 501.
        model_dir: The directory of the artifact; a `warmup.json` there is sent after the load.
    """

    batching = True
    can_explain: bool = False
    is_stateful: bool = False
    platform: ClassVar[str] = ""
    artifact_suffixes: ClassVar[tuple[str, ...]] = ()
    preferred_artifact: ClassVar[str] = ""

    def __init__(self, name: str, model_dir: str | None = None) -> None:
        super().__init__(name)
        self.model_dir = model_dir
        self.versions: Sequence[str] | None = None
        self.signature = Signature()
        self.signatures: Mapping[str, Signature] = _NO_SIGNATURES

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the server's own flags to its command line."""

    @classmethod
    def from_args(cls, name: str, model_dir: str, args: argparse.Namespace) -> Self:
        """Make an unloaded model as the command line says."""
        return cls(name, model_dir)

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Compute the outputs of a batch; one call at a time, unless the server is told otherwise.

        Args:
            tensors: By input name, as `signature` says; axis 0 is the rows where it is -1 there.
                The arrays may be read-only.
            options: Parameters and requested outputs.

        Returns:
            The outputs by name, in order.

        Raises:
            ValueError, TypeError: The values do not suit the model: the client reads the text.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no predict_tensors")

    def explain_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Explain the predictions of a batch; for models that say `can_explain`.

        It is called as `predict_tensors` is, and rows of several requests run together in the same
        way; requested outputs are none of its business.

        Returns:
            What each row's prediction is due to, by name, such as a number for each feature.

        Raises:
            ValueError, TypeError: The values do not suit the model: the client reads the text.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no explain_tensors")

    def cost_kind(self, options: PredictOptions) -> Hashable:
        """Give what tells predictions of one cost from those of another, such as the method called.

        The cost of each kind is learnt by itself, and with it whether such a call is quick enough
        for the event loop. There may be only as many kinds as the model has, whatever clients send.
        """
        return None

    def example_row(self) -> Tensors | None:
        """Give one row that the model can answer, for the warm-up; None leaves it to invent one."""
        return None

    def get_input_types(self) -> list[dict[str, Any]]:
        """Give the metadata of the signature's inputs; of those that must be given."""
        return [spec.metadata() for spec in self.signature.inputs]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Give the metadata of the signature's outputs."""
        return [spec.metadata() for spec in self.signature.outputs]

    def serving_metadata(self) -> Mapping[str, Any] | None:
        """Give what TensorFlow Serving calls the metadata of a model; None if it knows no such.

        Where there is one, `GET /v1/models/M/metadata` and the `model_version_status` of
        `GET /v1/models/M` are answered as TensorFlow Serving does.
        """
        return None

    def infer(
        self, request: InferRequest, verb: InferenceVerb = InferenceVerb.PREDICT
    ) -> InferResponse:
        """Check a request, predict or explain, and give the response; blocks.

        Raises:
            InvalidInput: The request does not fit the signature, or the model refused its values.
            NotImplementedError: The model cannot explain.
        """
        self.check_verb(verb)
        options = self.check_options(request)
        tensors = self.signature_of(request.parameters).check(request)
        return self.respond(request, self.call(tensors, options, verb))

    def check_verb(self, verb: InferenceVerb) -> None:
        """Check that the model can do what is asked of it.

        Raises:
            NotImplementedError: The model cannot explain.
        """
        if verb is InferenceVerb.EXPLAIN and not self.can_explain:
            raise NotImplementedError(f"model {self.name} does not implement explain")

    def signature_of(self, parameters: Mapping[str, Any] | None) -> Signature:
        """Give the signature that the parameters of a request choose.

        Raises:
            InvalidInput: The model has none of the name.
        """
        name = parameters.get(SIGNATURE_NAME) if parameters and self.signatures else None
        if name is None:
            return self.signature
        signature = self.signatures.get(name) if isinstance(name, str) else None
        if signature is None:
            raise InvalidInput(
                f"the model has no signature {shortened(repr(name))}, it has "
                f"{quoted(self.signatures)}"
            )
        return signature

    def check_options(self, request: InferRequest) -> PredictOptions:
        """Give what a request asks for beside its tensors.

        Raises:
            InvalidInput: It asks for a signature or an output that the model does not have.
        """
        names = [output.name for output in request.request_outputs or ()]
        parameters = request.parameters or {}
        if not parameters and not names:
            return _NO_OPTIONS
        if _WANTS_BINARY in parameters:
            # It is the wire's, and requests of other wires may join.
            parameters = {k: v for k, v in parameters.items() if k != _WANTS_BINARY}
        signature = self.signature_of(parameters)
        return PredictOptions(parameters, signature.check_outputs(names) if names else ())

    def call(
        self,
        tensors: Tensors,
        options: PredictOptions,
        verb: InferenceVerb = InferenceVerb.PREDICT,
    ) -> Tensors:
        """Call `predict_tensors`, or `explain_tensors`.

        Values that do not suit the model are the client's mistake.

        Raises:
            InvalidInput: The model refused the values.
            InferenceError: It gave no output.
            Exception: Whatever else it raises.
        """
        function = self.predict_tensors if verb is InferenceVerb.PREDICT else self.explain_tensors
        try:
            outputs = function(tensors, options)
        except InvalidInput:
            raise
        except (ValueError, TypeError) as exc:
            raise InvalidInput(str(exc)) from exc
        if not outputs:
            raise InferenceError(f"{function.__name__} gave no output")
        return outputs

    # Plain here, as the servers of KServe's SDK have it.
    def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        """Answer a V1 payload with a dict, or an `InferRequest` with an `InferResponse`; blocks.

        Raises:
            InvalidInput: The payload does not fit the model.
        """
        return self._answer(payload, InferenceVerb.PREDICT)

    # Plain, as `predict` is.
    def explain(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        """Explain the predictions for a payload; takes and gives what `predict` does; blocks.

        Raises:
            NotImplementedError: The model cannot explain.
            InvalidInput: The payload does not fit the model.
        """
        return self._answer(payload, InferenceVerb.EXPLAIN)

    def _answer(self, payload: Any, verb: InferenceVerb) -> Any:
        if isinstance(payload, InferRequest):
            return self.infer(payload, verb)
        # The way through the codec gives the same tensors and numbers as a request does.
        request = self.decode_v1(v1_json.encode(payload).body, self.name)
        response = self.infer(request, verb)
        return v1_json.decode(self.encode_v1(request, response, verb).body)

    def decode_v1(self, body: bytes, model_name: str) -> InferRequest:
        """Read the body of a V1 request; see `v1_json.decode_tensors`.

        A server whose clients know another dialect of V1 overrides it, and `encode_v1`.

        Args:
            body: The body.
            model_name: Goes into the request.

        Raises:
            InvalidInput: The body is no JSON, or does not fit the model.
        """
        return v1_json.decode_tensors(
            body,
            model_name,
            self.signature.inputs,
            optional_inputs=self.signature.optional_inputs,
            is_table=self.signature.is_table,
        )

    def encode_v1(
        self, request: InferRequest, response: InferResponse, verb: InferenceVerb
    ) -> EncodedJson:
        """Write the answer to a request that `decode_v1` gave; see `v1_json.encode_response`.

        Raises:
            InvalidInput: V1 cannot express an output.
            InferenceError: An output has no data, or data that disagrees with itself.
        """
        return v1_json.encode_response(response, RESULT_KEYS[verb.name.lower()])

    def respond(self, request: InferRequest, outputs: Tensors) -> InferResponse:
        """Put outputs into the response to a request."""
        return InferResponse(
            response_id=request.id,
            model_name=self.name,
            model_version=self.version,
            infer_outputs=[
                # Flat, so that `data` reads as the flat list that KServe's SDK gives.
                InferOutput.from_array(
                    name, list(array.shape), _output_datatype(name, array), array.reshape(-1)
                )
                for name, array in outputs.items()
            ],
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )


def append_forwardable_headers(
    headers: Mapping[str, str], base_headers: Mapping[str, str]
) -> dict[str, str]:
    """Give the base headers and those of a request that go on to the predictor."""
    forwarded = {name: headers[name] for name in _FORWARDABLE_HEADERS if name in headers}
    return {**base_headers, **forwarded}


def _output_datatype(name: str, array: NDArray[Any]) -> str:
    datatype = from_np_dtype(array.dtype)
    if datatype is None:
        raise InferenceError(f"output {name!r} has dtype {array.dtype}, which no datatype carries")
    return datatype
