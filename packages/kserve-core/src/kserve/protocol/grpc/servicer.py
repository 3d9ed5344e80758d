"""The RPCs of `inference.GRPCInferenceService`, over one data plane.

Source: Open Inference Protocol v2,
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md
`ModelStreamInfer` and the repository are extensions of Triton's,
https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto
"""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from typing import Any, Final

from kserve.batcher import deadline_var
from kserve.endpoint import Endpoint
from kserve.errors import InferenceError, InvalidInput, describe
from kserve.logging import request_id_var
from kserve.metrics import AnswerMetrics
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import codec, wire
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.call import Call
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceServicer
from kserve.protocol.grpc.metadata import REQUEST_ID, encode_headers, to_headers
from kserve.protocol.infer_type import InferRequest, InferResponse
from kserve.protocol.tensor import RawData
from kserve.stream import may_stream_var

# Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/decoupled_models.html
_WANTS_EMPTY_FINAL: Final = "triton_enable_empty_final_response"
_IS_FINAL: Final = "triton_final_response"

# A response without its raw tensors, and these.
_Encoded = tuple[pb.ModelInferResponse, Sequence[RawData]]


class InferenceServicer(GRPCInferenceServiceServicer):
    """The RPCs. They raise the errors of `kserve.errors`; the server makes statuses of them.

    Args:
        data_plane: Answers the requests.
        model_repository_extension: As in KServe's SDK; not used, the data plane answers.
        log_requests: Whether each inference request leaves a line in the log.
    """

    def __init__(
        self,
        data_plane: DataPlane,
        model_repository_extension: object = None,
        *,
        log_requests: bool = True,
    ) -> None:
        self._dataplane = data_plane
        self._log_requests = log_requests
        # Whatever concerns no model that is there: a name from a request is never a label.
        self._other_metrics = AnswerMetrics("")

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Any
    ) -> pb.ServerLiveResponse:
        """Answer that the process lives.

        Raises:
            ServerNotLive: A call of a model has hung.
        """
        await self._dataplane.live()
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Any
    ) -> pb.ServerReadyResponse:
        """Say whether the models given at start are ready."""
        return pb.ServerReadyResponse(ready=await self._dataplane.ready())

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Any
    ) -> pb.ModelReadyResponse:
        """Say whether a model can answer now.

        Raises:
            ModelNotFound: There is none of this name and version.
        """
        is_ready = await self._dataplane.model_ready(request.name, request.version)
        return pb.ModelReadyResponse(ready=is_ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Any
    ) -> pb.ServerMetadataResponse:
        """Give the name, version and extensions of the server."""
        return pb.ServerMetadataResponse(**self._dataplane.metadata())

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        """Give the metadata of a model.

        Raises:
            ModelNotFound: There is none of this name and version.
            InferenceError: The model describes a tensor in a way that the message cannot hold.
        """
        metadata = await self._dataplane.model_metadata(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=metadata["name"],
            versions=metadata["versions"] or (),
            platform=metadata["platform"],
            inputs=_tensor_metadata(metadata["inputs"]),
            outputs=_tensor_metadata(metadata["outputs"]),
        )

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Any
    ) -> pb.ModelInferResponse:
        """Predict.

        Raises:
            InvalidInput: The request is wrong.
            ModelNotFound, ModelNotReady: There is no such model, or it cannot answer now.
            NotImplementedError: The model streams its responses.
            Exception: Whatever the model raises.
        """
        with self._call(context) as call:
            return codec.join_raw(
                *await self._answer(call, request, request.raw_input_contents, context)
            )

    async def infer_serialized(self, data: wire.Data, context: Any) -> bytes:
        """Predict, from and to the bytes of messages: raw tensors are not copied.

        Raises:
            Exception: As `ModelInfer`.
        """
        with self._call(context) as call:
            message, raws = wire.split_request(data)
            return wire.join_response(*await self._answer(call, message, raws, context))

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterable[pb.ModelInferRequest], context: Any
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Predict for each request in turn; one that fails is answered with its error's text."""
        async for request in request_iterator:
            try:
                async with aclosing(self._stream_answers(request, context)) as responses:
                    async for response in responses:
                        yield pb.ModelStreamInferResponse(infer_response=response)
            except Exception as exc:
                yield _stream_failure(request, exc)

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Any
    ) -> pb.RepositoryIndexResponse:
        """List the models of the repository and their states.

        Raises:
            NotImplementedError: The repository API is off.
        """
        entries = await self._dataplane.repository_index(request.ready)
        return pb.RepositoryIndexResponse(
            models=[pb.RepositoryIndexResponse.ModelIndex(**entry) for entry in entries]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> pb.RepositoryModelLoadResponse:
        """Load or reload a model.

        Raises:
            NotImplementedError: The repository API is off.
            Exception: The model cannot be loaded.
        """
        name = request.model_name or request.repository_name
        await self._dataplane.load_model(name)
        return pb.RepositoryModelLoadResponse(model_name=name, isLoaded=True)

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model.

        Raises:
            NotImplementedError: The repository API is off.
            ModelNotFound: There is none of this name.
        """
        name = request.model_name or request.repository_name
        await self._dataplane.unload_model(name)
        return pb.RepositoryModelUnloadResponse(model_name=name, isUnloaded=True)

    def _call(self, context: Any) -> Call:
        return Call(context, self._other_metrics, self._log_requests)

    async def _answer(
        self, call: Call, message: pb.ModelInferRequest, raws: Sequence[RawData], context: Any
    ) -> _Encoded:
        """Answer a request that has one response."""
        request, endpoint = await self._read(call, message, raws)
        result = await self._run(endpoint, request, context)
        if hasattr(result, "__aiter__"):
            await _close(result)
            raise NotImplementedError(
                f"model {endpoint.name} streams its responses, ask it by ModelStreamInfer"
            )
        return _encode(result, request)

    async def _stream_answers(
        self, message: pb.ModelInferRequest, context: Any
    ) -> AsyncGenerator[pb.ModelInferResponse, None]:
        """Give the responses to one request of a stream, each marked as the last one or not."""
        with self._call(context) as call:
            request, endpoint = await self._read(call, message, message.raw_input_contents)
            assert request.parameters is not None
            wants_empty_final = request.parameters.pop(_WANTS_EMPTY_FINAL, False)
            may_stream_var.set(True)
            result = await self._run(endpoint, request, context)
            if not hasattr(result, "__aiter__"):
                yield _marked(_encode(result, request), is_final=True)
                return
            try:
                async for chunk in result:
                    yield _marked(_encode(chunk, request), is_final=False)
            finally:
                await _close(result)
            if wants_empty_final:
                yield _marked(_encode(_empty(request), request), is_final=True)

    async def _read(
        self, call: Call, message: pb.ModelInferRequest, raws: Sequence[RawData]
    ) -> tuple[InferRequest, Endpoint]:
        call.model_name = message.model_name
        endpoint = await self._dataplane.find(message.model_name, message.model_version)
        call.metrics = endpoint.metrics
        return codec.decode_request(message, raws), endpoint

    async def _run(self, endpoint: Endpoint, request: InferRequest, context: Any) -> Any:
        left_s = None if context is None else context.time_remaining()
        if left_s is not None:
            deadline_var.set(asyncio.get_running_loop().time() + left_s)
        headers = {} if endpoint.takes_tensors else to_headers(context)
        result, response_headers = await self._dataplane.run(endpoint, request, headers, "predict")
        if response_headers:
            context.set_trailing_metadata(
                ((REQUEST_ID, request_id_var.get()), *encode_headers(response_headers))
            )
        return result


def _tensor_metadata(
    tensors: Iterable[Mapping[str, Any]],
) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    try:
        return [
            pb.ModelMetadataResponse.TensorMetadata(
                name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"]
            )
            for tensor in tensors
        ]
    except (KeyError, TypeError, ValueError) as exc:
        raise InferenceError(
            f"the model's metadata cannot be sent, expected name, datatype and shape: {exc!r}"
        ) from exc


def _encode(result: Any, request: InferRequest) -> _Encoded:
    """Give a model's result as a response with the id of its request."""
    raws: Sequence[RawData] = ()
    if isinstance(result, dict) and "outputs" in result:
        result = _read_result(result)
    if isinstance(result, InferResponse):
        message, raws = codec.encode_response(result, as_raw=request.use_binary_outputs)
    elif isinstance(result, pb.ModelInferResponse):
        # A copy: the model may have the message still.
        message = pb.ModelInferResponse()
        message.CopyFrom(result)
    else:
        raise InferenceError(
            f"expected an inference response from the model, got {type(result).__name__}"
        )
    message.id = message.id or request.id or request_id_var.get()
    message.model_name = message.model_name or request.model_name
    return message, raws


def _read_result(result: dict[str, Any]) -> InferResponse | pb.ModelInferResponse:
    """Read a dict in the form of a REST response or of the message."""
    try:
        if any("contents" in output for output in result["outputs"]):
            return pb.ModelInferResponse(
                **{key: value for key, value in result.items() if value is not None}
            )
        return InferResponse.from_rest(result)
    except (InvalidInput, TypeError, ValueError) as exc:
        # The model's mistake, not the client's.
        raise InferenceError(f"the model's result is no inference response: {exc}") from exc


def _empty(request: InferRequest) -> InferResponse:
    return InferResponse(request.id, request.model_name, [])


def _marked(encoded: _Encoded, *, is_final: bool) -> pb.ModelInferResponse:
    message = codec.join_raw(*encoded)
    message.parameters[_IS_FINAL].bool_param = is_final
    return message


def _stream_failure(request: pb.ModelInferRequest, exc: Exception) -> pb.ModelStreamInferResponse:
    response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
    return pb.ModelStreamInferResponse(error_message=describe(exc)[2], infer_response=response)


async def _close(chunks: Any) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()
