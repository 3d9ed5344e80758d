"""A session as named tensors of the V2 protocol: what it takes and gives, and its calls."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from kserve.errors import InferenceError, InvalidInput, ModelLoadError
from kserve.listing import listing
from kserve.logging import logger
from kserve.protocol.codec.arrays import decode_texts
from kserve.signature import Signature, Tensors, TensorSpec
from onnxserver.model_file import ModelFile
from onnxserver.outputs import Output, describe_output, is_optional, tensor_spec
from onnxserver.session import run_error, run_options


class Graph:
    """A session and what it takes and gives.

    Args:
        session: The session.
        file: What was read of its file.
        label: What messages call it.

    Attributes:
        signature: Its inputs and outputs; whether axis 0 is the rows is not known here.
        optional_inputs: Those of its inputs that are declared to be optional. The signature has
            also its initializers that may be overridden.
        outputs: Its outputs.
        input_axis_0_names: What the inputs call axis 0; None is no name.
        axis_0_names: What inputs and outputs call it.

    Raises:
        ModelLoadError: An input cannot be sent over the protocol, or no output can.
    """

    def __init__(self, session: ort.InferenceSession, file: ModelFile, label: str) -> None:
        self._session = session
        self._options = run_options()
        required, self.optional_inputs = _inputs(session, file, label)
        self.outputs = _outputs(session, file, label)
        groups = [output.group for output in self.outputs if output.group is not None]
        overridable = [_spec(node, file) for node in session.get_overridable_initializers()]
        self.signature = Signature(
            inputs=required,
            outputs=tuple(spec for output in self.outputs for spec in output.specs),
            optional_outputs=tuple(groups),
            optional_inputs=(*self.optional_inputs, *filter(None, overridable)),
            may_be_empty=not required,
            has_rows=False,
        )
        self.input_axis_0_names = set(map(_axis_0_name, session.get_inputs()))
        self.axis_0_names = self.input_axis_0_names | set(map(_axis_0_name, session.get_outputs()))
        self._owners = {output.name: output for output in self.outputs}
        for output in self.outputs:
            self._owners |= dict.fromkeys([spec.name for spec in output.specs], output)
        inputs = (*required, *self.signature.optional_inputs)
        self._texts = {spec.name for spec in inputs if spec.datatype == "BYTES"}
        self._known = {spec.name for spec in inputs}

    def run(self, tensors: Tensors, wanted: Sequence[str] = ()) -> Tensors:
        """Compute outputs, no others than those that are wanted; may be called by several threads.

        Inputs are read where they lie.

        Args:
            tensors: As the signature says.
            wanted: Names of tensors or of groups of them; empty means all.

        Raises:
            InvalidInput: A name that is no input, text that is not UTF-8, or the graph cannot run
                on the values.
            InferenceError: All that is wanted is empty sequences, or optionals without a value.
            Exception: Whatever else ONNX Runtime raises.
        """
        feed = {name: self._checked(name, array) for name, array in tensors.items()}
        outputs = self.outputs
        if wanted:
            owners = [self._owners[name] for name in wanted]
            outputs = list({output.name: output for output in owners}.values())
        names = [output.name for output in outputs]
        try:
            values = self._session.run(names, feed, self._options)
        except Exception as error:  # the boundary: ONNX Runtime's errors have no common class
            raise run_error(error) from error
        found: Tensors = {}
        for output, value in zip(outputs, values, strict=True):
            found |= output.tensors(value, wanted)
        if not found:
            raise InferenceError(
                f"{listing(names)}: no tensor is in an empty sequence, or an optional without value"
            )
        return found

    def members(self, name: str, given: Sequence[str]) -> list[str]:
        """Give the names of those of an answer's tensors that a wanted name stands for."""
        output = self._owners.get(name)
        return output.members(given) if output is not None and output.is_open else [name]

    def _checked(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name in self._texts:
            return _text_array(name, array)
        if name not in self._known:
            raise InvalidInput(f"expected no inputs, got {name!r}")
        return array


def _inputs(
    session: ort.InferenceSession, file: ModelFile, label: str
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Give the inputs that a request must have, and those that it may leave out."""
    required, optional = [], []
    for node in session.get_inputs():
        spec = _spec(node, file)
        if is_optional(node.type):
            # One that cannot be sent is one without a value.
            optional += [] if spec is None else [spec]
        elif spec is None:
            raise ModelLoadError(
                f"{label}: input {node.name!r} is a {node.type}, which the protocol cannot carry:"
                " the graph has to take a tensor of another type"
            )
        else:
            required.append(spec)
    return tuple(required), tuple(optional)


def _outputs(session: ort.InferenceSession, file: ModelFile, label: str) -> list[Output]:
    outputs, refused = [], []
    for node in session.get_outputs():
        labels = file.class_labels.get(node.name)
        output = describe_output(node.name, node.type, _spec(node, file), labels)
        if output is None:
            refused.append(f"{node.name!r} is a {node.type}")
        else:
            outputs.append(output)
    if not outputs:
        raise ModelLoadError(
            f"{label}: the protocol cannot carry any output: {listing(refused)}: the graph has to"
            " give a tensor of another type"
        )
    if refused:
        logger.warning(
            "%s: left out, as the protocol cannot carry them: %s", label, listing(refused)
        )
    return outputs


def _spec(node: Any, file: ModelFile) -> TensorSpec | None:
    is_ranked = node.name not in file.unranked
    return tensor_spec(node.name, node.type, node.shape, is_ranked=is_ranked)


def _axis_0_name(node: Any) -> str | None:
    axis = node.shape[0] if node.shape else None
    return axis if isinstance(axis, str) else None


def _text_array(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Give an array of `str`: of anything else ONNX Runtime takes what `str()` makes of it."""
    kinds = set(map(type, array.ravel().tolist()))
    if kinds <= {str}:
        return array
    if type(None) in kinds:
        raise InvalidInput(f"input {name!r}: expected text, got null")
    texts = np.empty(array.size, np.object_)
    try:
        texts[:] = decode_texts(array)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r}: expected UTF-8 text, got {error}") from error
    return texts.reshape(array.shape)
