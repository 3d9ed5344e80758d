"""The messages: their numbers, and that they live beside those of other packages."""

from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc

# Name, number and type of what KServe's clients and servers write, nested messages by their path.
KSERVE_FIELDS = {
    "ServerLiveResponse": {"live": 1},
    "ServerReadyResponse": {"ready": 1},
    "ModelReadyRequest": {"name": 1, "version": 2},
    "ModelReadyResponse": {"ready": 1},
    "ServerMetadataResponse": {"name": 1, "version": 2, "extensions": 3},
    "ModelMetadataRequest": {"name": 1, "version": 2},
    "ModelMetadataResponse": {"name": 1, "versions": 2, "platform": 3, "inputs": 4, "outputs": 5},
    "ModelMetadataResponse.TensorMetadata": {"name": 1, "datatype": 2, "shape": 3},
    "ModelInferRequest": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "inputs": 5,
        "outputs": 6,
        "raw_input_contents": 7,
    },
    "ModelInferRequest.InferInputTensor": {
        "name": 1,
        "datatype": 2,
        "shape": 3,
        "parameters": 4,
        "contents": 5,
    },
    "ModelInferRequest.InferRequestedOutputTensor": {"name": 1, "parameters": 2},
    "ModelInferResponse": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "outputs": 5,
        "raw_output_contents": 6,
    },
    "ModelInferResponse.InferOutputTensor": {
        "name": 1,
        "datatype": 2,
        "shape": 3,
        "parameters": 4,
        "contents": 5,
    },
    "InferParameter": {
        "bool_param": 1,
        "int64_param": 2,
        "string_param": 3,
        "double_param": 4,
        "uint64_param": 5,
    },
    "InferTensorContents": {
        "bool_contents": 1,
        "int_contents": 2,
        "int64_contents": 3,
        "uint_contents": 4,
        "uint64_contents": 5,
        "fp32_contents": 6,
        "fp64_contents": 7,
        "bytes_contents": 8,
    },
    "RepositoryModelLoadResponse": {"model_name": 1, "isLoaded": 2},
    "RepositoryModelUnloadResponse": {"model_name": 1, "isUnloaded": 2},
}


def described(path: str) -> Descriptor:
    message: Any = pb
    for name in path.split("."):
        message = getattr(message, name)
    descriptor: Descriptor = message.DESCRIPTOR
    return descriptor


def kind(field: FieldDescriptor) -> tuple[int, int, bool, str]:
    of = field.message_type.full_name if field.message_type else ""
    return field.number, field.type, field.is_repeated, of


@pytest.mark.parametrize("path", KSERVE_FIELDS)
def test_fields_have_the_numbers_of_kserve(path: str) -> None:
    fields = {field.name: field.number for field in described(path).fields}

    assert fields == KSERVE_FIELDS[path]


def test_every_rpc_of_the_service_has_a_method() -> None:
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    names = {method.name for method in service.methods}

    assert service.full_name == "inference.GRPCInferenceService"
    assert names == {
        *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata"),
        *("ModelInfer", "ModelStreamInfer"),
        *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    }
    assert names <= set(dir(pb_grpc.GRPCInferenceServiceServicer))


def test_the_names_stay_free_for_other_packages() -> None:
    assert pb.DESCRIPTOR.pool is not descriptor_pool.Default()
