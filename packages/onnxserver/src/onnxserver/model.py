"""The ONNX model."""

import argparse
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from kserve.artifact import find_artifact
from kserve.cpu import cpu_count
from kserve.logging import logger
from kserve.model import PredictOptions, TensorModel
from kserve.protocol.infer_type import InferRequest, InferResponse, RequestedOutput
from kserve.signature import Tensors
from onnxserver.cutting import cut
from onnxserver.model_file import read_model, read_model_file
from onnxserver.settings import SessionSettings, add_arguments, from_args

if TYPE_CHECKING:
    from onnxserver.graph import Graph


class ONNXModel(TensorModel):
    """A model that ONNX Runtime runs.

    Requests run together where axis 0 is rows that do not depend on each other; otherwise as many
    requests run at a time as there are CPUs.

    Args:
        name: The name under which it is served.
        model_dir: The directory of the artifact, or a `file://` address of it.
        settings: How the session is opened.
    """

    platform = "onnxruntime_onnx"
    artifact_suffixes = (".onnx",)
    preferred_artifact = "model.onnx"

    def __init__(
        self, name: str, model_dir: str, *, settings: SessionSettings | None = None
    ) -> None:
        super().__init__(name, model_dir)
        self._settings = settings or SessionSettings()
        self._graph: Graph | None = None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags that say how the session is opened."""
        add_arguments(parser)

    @classmethod
    def from_args(cls, name: str, model_dir: str, args: argparse.Namespace) -> Self:
        """Make an unloaded model as the command line says."""
        return cls(name, model_dir, settings=from_args(args))

    def load(self) -> bool:
        """Load the artifact, and find out whether requests may run together.

        Raises:
            ModelMissingError: The directory holds no artifact.
            ModelLoadError: It holds several and none is `model.onnx`; the artifact cannot be
                loaded, or lacks an output that is to be served; or the protocol has no datatype
                for an input, or for any output.
        """
        # They import ONNX Runtime, which whoever asks for the help can do without.
        from onnxserver.graph import Graph
        from onnxserver.rows import find_rows
        from onnxserver.session import open_session

        assert self.model_dir is not None
        path = find_artifact(self.model_dir, self.artifact_suffixes, self.preferred_artifact)
        outputs = self._settings.outputs
        data = cut(path.read_bytes(), outputs, path.name) if outputs else None
        file = read_model_file(path) if data is None else read_model(data)
        name = "-".join(filter(None, (self.name, self.version)))
        session = open_session(path, self._settings, file, name, data)
        graph = self._graph = Graph(session, file, path.name)
        has_rows, reason = find_rows(graph, file)
        self.signature = replace(graph.signature, has_rows=has_rows)
        # A call releases the interpreter's lock, and a session may be called by several threads.
        self.max_concurrent_predicts = None if has_rows else cpu_count()
        how = "together" if has_rows else "each alone"
        logger.info("Model %s: requests run %s: %s", self.name, how, reason)
        self.ready = True
        return self.ready

    def get_input_types(self) -> list[dict[str, Any]]:
        """Give the metadata of the inputs, those that are declared to be optional too."""
        optional = () if self._graph is None else self._graph.optional_inputs
        return [spec.metadata() for spec in (*self.signature.inputs, *optional)]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Give the metadata of the outputs; those of which only a value tells more, by a name."""
        outputs = () if self._graph is None else self._graph.outputs
        specs = [output.specs or (output.group,) for output in outputs]
        return [spec.metadata() for each in specs for spec in each if spec is not None]

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        """Run the graph for the outputs that are asked for.

        Raises:
            InvalidInput: The graph cannot run on the values, or text is not UTF-8.
            InferenceError: There is no tensor in what was asked for.
            Exception: Whatever else ONNX Runtime raises.
        """
        assert self._graph is not None
        return self._graph.run(tensors, options.outputs)

    def respond(self, request: InferRequest, outputs: Tensors) -> InferResponse:
        """Put outputs into the response; a sequence's name stands for all its tensors."""
        if request.request_outputs and self._graph is not None:
            wanted = [
                RequestedOutput(name, requested.parameters)
                for requested in request.request_outputs
                for name in self._graph.members(requested.name, list(outputs))
            ]
            request = copy(request)
            request.request_outputs = wanted
        return super().respond(request, outputs)
