"""The TensorFlow model."""

import argparse
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from kserve.artifact import find_artifact
from kserve.cpu import cpu_count
from kserve.logging import logger
from kserve.model import SIGNATURE_NAME, InferenceVerb, PredictOptions, TensorModel
from kserve.protocol.codec.encoded_json import EncodedJson
from kserve.protocol.infer_type import InferRequest, InferResponse
from kserve.signature import Signature, Tensors
from tfserver import runtime, serving_json
from tfserver.settings import SAVED_MODEL, Settings, add_arguments, from_args

if TYPE_CHECKING:
    from tfserver.function import Function

# TensorFlow Serving has no model without a version.
_ONLY_VERSION: Final = "1"


class TensorFlowModel(TensorModel):
    """A model that TensorFlow runs.

    Requests run together where axis 0 is rows that do not depend on each other; otherwise as many
    requests run at a time as there are CPUs. V1 is that of TensorFlow Serving.

    Args:
        name: The name under which it is served.
        model_dir: The directory of the artifact, or a `file://` address of it.
        settings: How it is loaded.
    """

    platform = "tensorflow"
    artifact_suffixes = (SAVED_MODEL, ".pb", ".keras", ".h5")
    # Beside it lie more files of this suffix: `fingerprint.pb`, `keras_metadata.pb`.
    preferred_artifact = SAVED_MODEL

    def __init__(self, name: str, model_dir: str, *, settings: Settings | None = None) -> None:
        super().__init__(name, model_dir)
        self._settings = settings or Settings()
        self._functions: Mapping[str, Function] = {}

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags that say how a model is loaded."""
        add_arguments(parser)

    @classmethod
    def from_args(cls, name: str, model_dir: str, args: argparse.Namespace) -> Self:
        """Make an unloaded model as the command line says."""
        return cls(name, model_dir, settings=from_args(args))

    def load(self) -> bool:
        """Load the artifact, and find out which requests may run together.

        Raises:
            ModelMissingError: The directory holds no artifact.
            ModelLoadError: It holds several and none is `saved_model.pb`; the artifact cannot be
                loaded, or lacks the signature that is asked for; or the protocol has no datatype
                for an input, or for any output.
        """
        assert self.model_dir is not None
        path = find_artifact(self.model_dir, self.artifact_suffixes, self.preferred_artifact)
        runtime.start(self._settings)
        self._functions = _load(path, self._settings)
        signatures = {name: self._with_rows(name, each) for name, each in self._functions.items()}
        name = self._settings.signature_name
        # A request without inputs is refused before its parameters are read if this says no.
        may_be_empty = any(signature.may_be_empty for signature in signatures.values())
        self.signature = replace(signatures[name], may_be_empty=may_be_empty)
        self.signatures = {**signatures, name: self.signature}
        default = self._functions[name]
        self.is_stateful = default.changes_state
        # A call releases the interpreter's lock, and a function may be called by several threads;
        # calls that change a state come one after the other.
        is_parallel = not (self.signature.has_rows or default.changes_state)
        self.max_concurrent_predicts = cpu_count() if is_parallel else None
        self.versions = None if self.version else (_ONLY_VERSION,)
        self.ready = True
        return self.ready

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Call the signature that is asked for.

        Raises:
            InvalidInput: It cannot run on the values.
            Exception: Whatever else TensorFlow raises.
        """
        results = self._functions[self._signature_name(options)].run(tensors)
        return {name: results[name] for name in options.outputs} if options.outputs else results

    def cost_kind(self, options: PredictOptions) -> Hashable:
        """Give the signature: each has a cost of its own."""
        return self._signature_name(options)

    def serving_metadata(self) -> Mapping[str, Any] | None:
        """Give the definitions of all signatures."""
        definitions = {name: each.definition for name, each in self._functions.items()}
        return serving_json.metadata(definitions)

    def decode_v1(self, body: bytes, model_name: str) -> InferRequest:
        """Read a request in the forms of TensorFlow Serving."""
        return serving_json.decode(body, model_name, self.signature_of)

    def encode_v1(
        self, request: InferRequest, response: InferResponse, verb: InferenceVerb
    ) -> EncodedJson:
        """Write the answer in the form of the request: rows, or whole tensors."""
        return serving_json.encode(request, response)

    def _signature_name(self, options: PredictOptions) -> str:
        name: str = options.parameters.get(SIGNATURE_NAME, self._settings.signature_name)
        return name

    def _with_rows(self, name: str, function: "Function") -> Signature:
        from tfserver.rows import find_rows

        has_rows, reason = find_rows(function)
        how = "together" if has_rows else "each alone"
        logger.info("Model %s: requests of %s run %s: %s", self.name, name, how, reason)
        return replace(function.signature, has_rows=has_rows)


def _load(path: Path, settings: Settings) -> "dict[str, Function]":
    """Load an artifact; what is not a SavedModel has one signature, of the name that is meant."""
    if path.name == SAVED_MODEL:
        from tfserver.saved_model import load_saved_model

        return load_saved_model(path, settings.signature_name)
    if path.suffix.lower() == ".pb":
        from tfserver.frozen_graph import load_frozen_graph

        function = load_frozen_graph(path, settings.inputs, settings.outputs)
    else:
        from tfserver.keras_file import load_keras_file

        function = load_keras_file(path, allow_lambda=settings.allow_lambda)
    return {settings.signature_name: function}
