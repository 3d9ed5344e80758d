"""A concrete function as named tensors of the V2 protocol: what it takes and gives, its calls.

A concrete function has one graph, for all shapes that its signature allows: calling it never traces
Python code again.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.protobuf import meta_graph_pb2

from kserve.errors import InvalidInput, ModelLoadError
from kserve.listing import listing
from kserve.logging import logger
from kserve.signature import Signature, Tensors, TensorSpec

# What is not here (complex, quantized and 4- and 8-bit numbers, resources, variants) has no
# datatype in the protocol. A bfloat16 is the upper half of an FP32.
DATATYPES: Final = {
    tf.bool: "BOOL",
    tf.int8: "INT8",
    tf.int16: "INT16",
    tf.int32: "INT32",
    tf.int64: "INT64",
    tf.uint8: "UINT8",
    tf.uint16: "UINT16",
    tf.uint32: "UINT32",
    tf.uint64: "UINT64",
    tf.float16: "FP16",
    tf.bfloat16: "FP32",
    tf.float32: "FP32",
    tf.float64: "FP64",
    tf.string: "BYTES",
}

# Tensors by name in, tensors by name out.
Call = Callable[[Mapping[str, tf.Tensor]], Mapping[str, tf.Tensor]]

# Errors of a run that say that the values are at fault, not the model or the machine.
_OF_INPUTS: Final = (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError)

# What TensorFlow puts around its reasons: where in its own graph and in whose Python code.
_DETECTED: Final = re.compile(
    r"Graph execution error:\s*|Detected at node (\S+) defined at \(most recent call last\):\s*"
    r"|<stack traces unavailable>\s*"
)
_PLACE: Final = re.compile(
    r"\s*\[\[(?:\{\{[^}]*\}\})+\]\]|\{\{function_node [^}]*\}\}\s*|\s*\[Op:\S+\]( name: ?\S*)?"
)
_SEVERAL: Final = re.compile(
    r"\d+ root error\(s\) found\.\s*\(0\) \w+:\s*(.*?)\s*(?:\(1\) .*)?$", re.S
)


@dataclass(frozen=True, slots=True)
class Function:
    """A concrete function.

    Attributes:
        call: Calls it.
        signature: Its inputs and outputs; whether axis 0 is the rows is not known here.
        definition: Its description in TensorFlow's own terms.
        dtypes: Of its inputs, in TensorFlow's own terms.
        changes_state: A call changes what later ones give.
    """

    call: Call
    signature: Signature
    definition: meta_graph_pb2.SignatureDef
    dtypes: Mapping[str, tf.DType]
    changes_state: bool

    def run(self, tensors: Tensors) -> Tensors:
        """Call it; may be called by several threads, and releases the interpreter's lock.

        Args:
            tensors: As the signature says.

        Raises:
            InvalidInput: The function cannot run on the values, or there is null among texts.
            Exception: Whatever else TensorFlow raises.
        """
        given = {name: _tensor(name, array, self.dtypes[name]) for name, array in tensors.items()}
        try:
            results = self.call(given)
        except _OF_INPUTS as error:
            raise InvalidInput(f"the model cannot run on these inputs: {reason(error)}") from error
        return {spec.name: _array(results[spec.name]) for spec in self.signature.outputs}


def describe(
    call: Call,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    label: str,
    *,
    definition: meta_graph_pb2.SignatureDef | None = None,
    changes_state: bool = False,
) -> Function:
    """Give a function of what TensorFlow knows of it.

    Args:
        call: Calls it.
        inputs: What each input is, by name and in order: a `tf.TypeSpec`, or a tensor of a graph.
        outputs: The same of the outputs.
        label: What messages call it.
        definition: The one of the artifact, if it has one.
        changes_state: As the attribute.

    Raises:
        ModelLoadError: An input cannot be sent over the protocol, or no output can.
    """
    inputs = {name: _type_spec(value) for name, value in inputs.items()}
    outputs = {name: _type_spec(value) for name, value in outputs.items()}
    input_specs = [_input(name, spec, label) for name, spec in inputs.items()]
    return Function(
        call,
        Signature(
            inputs=tuple(input_specs),
            outputs=_outputs(outputs, label),
            may_be_empty=not input_specs,
            has_rows=False,
        ),
        definition or _definition(inputs, outputs),
        {name: spec.dtype for name, spec in inputs.items()},
        changes_state,
    )


def reason(error: Exception) -> str:
    """Give the reason of an error of TensorFlow without what only its developers read."""
    text = getattr(error, "message", None) or str(error)
    nodes = [node for node in _DETECTED.findall(text) if node]
    text = _PLACE.sub("", _DETECTED.sub("", text))
    if several := _SEVERAL.search(text):
        text = several[1]
    text = " ".join(text.split()) or type(error).__name__
    return f"{nodes[0]}: {text}" if nodes else text


def _input(name: str, spec: Any, label: str) -> TensorSpec:
    found = _spec(name, spec)
    if found is None:
        raise ModelLoadError(
            f"{label}: input {name!r} is {_kind(spec)}, which the protocol cannot carry: the model"
            " has to take a dense tensor of numbers or strings"
        )
    return found


def _outputs(outputs: Mapping[str, Any], label: str) -> tuple[TensorSpec, ...]:
    specs = {name: _spec(name, spec) for name, spec in outputs.items()}
    refused = [f"{name!r} is {_kind(outputs[name])}" for name, spec in specs.items() if not spec]
    if len(refused) == len(specs):
        raise ModelLoadError(
            f"{label}: the protocol cannot carry any output: {listing(refused) or 'it has none'}"
        )
    if refused:
        logger.warning(
            "%s: left out, as the protocol cannot carry them: %s", label, listing(refused)
        )
    return tuple(spec for spec in specs.values() if spec)


def _type_spec(value: Any) -> Any:
    return value if isinstance(value, tf.TypeSpec) else tf.type_spec_from_value(value)


def _spec(name: str, spec: Any) -> TensorSpec | None:
    datatype = DATATYPES.get(spec.dtype) if isinstance(spec, tf.TensorSpec) else None
    if datatype is None:
        return None
    if spec.shape.rank is None:
        return TensorSpec(name, datatype, (-1,), is_ranked=False)
    return TensorSpec(name, datatype, tuple(-1 if n is None else n for n in spec.shape))


def _kind(spec: Any) -> str:
    if isinstance(spec, tf.TensorSpec):
        return f"a tensor of {spec.dtype.name}"
    kind = type(spec).__name__.removesuffix("Spec")
    return f"a {kind} of {getattr(spec, 'dtype', tf.variant).name}"


def _definition(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> meta_graph_pb2.SignatureDef:
    """Describe what no artifact describes; tensors have no name there but the one of the alias."""
    return meta_graph_pb2.SignatureDef(
        inputs={name: _tensor_info(name, spec) for name, spec in inputs.items()},
        outputs={name: _tensor_info(name, spec) for name, spec in outputs.items()},
        method_name=tf.saved_model.PREDICT_METHOD_NAME,
    )


def _tensor_info(name: str, spec: Any) -> meta_graph_pb2.TensorInfo:
    dtype = spec.dtype.as_datatype_enum
    return meta_graph_pb2.TensorInfo(name=name, dtype=dtype, tensor_shape=spec.shape.as_proto())


def _tensor(name: str, array: NDArray[Any], dtype: tf.DType) -> tf.Tensor:
    if dtype == tf.string and any(value is None for value in array.flat):
        raise InvalidInput(f"input {name!r}: expected text, got null")
    tensor = tf.constant(array)
    return tf.cast(tensor, dtype) if dtype == tf.bfloat16 else tensor


def _array(tensor: tf.Tensor) -> NDArray[Any]:
    if tensor.dtype == tf.bfloat16:
        tensor = tf.cast(tensor, tf.float32)
    # A string without axes comes as bytes.
    return np.asarray(tensor.numpy(), dtype=np.object_ if tensor.dtype == tf.string else None)
