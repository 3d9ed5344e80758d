"""Loads a frozen graph: a graph without variables, whose inputs and outputs it does not tell."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import graph_pb2

from kserve.errors import ModelLoadError
from kserve.listing import listing, quoted
from tfserver.function import Function, describe, reason
from tfserver.state import changes_state

_PLACEHOLDERS: Final = ("Placeholder", "PlaceholderV2")
_VARIABLES: Final = frozenset(("Variable", "VariableV2", "VarHandleOp"))

# They end branches of a graph, and compute nothing that anybody would ask for.
_NO_OUTPUTS: Final = frozenset(("Assert", "Const", "NoOp", "Placeholder", "PlaceholderV2", "Print"))


def load_frozen_graph(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Function:
    """Load a graph as one function.

    Args:
        path: The `.pb` file.
        inputs: Nodes or tensors that are fed, such as "x" or "x:0"; none means the placeholders
            that the outputs need.
        outputs: Nodes or tensors that are fetched; none means the one node that no other uses.

    Raises:
        ModelLoadError: The file is damaged, no graph, or not frozen; it has no such nodes, or none
            that are meant without doubt; it needs an operation that is not there; or the protocol
            cannot carry the tensors.
    """
    graph = _read(path)
    fetched = list(outputs) or [_only_end(graph, path)]
    try:
        wrapped = tf.compat.v1.wrap_function(partial(tf.import_graph_def, graph, name=""), [])
    except Exception as error:  # the boundary: TensorFlow's errors have no common class
        raise ModelLoadError(
            f"{path.name}: cannot be loaded: {reason(error)} (this is TensorFlow {tf.__version__})"
        ) from error
    targets = _tensors(wrapped.graph, fetched, "--outputs", path)
    sources = _tensors(
        wrapped.graph, list(inputs) or _placeholders(graph, fetched), "--inputs", path
    )
    try:
        concrete = wrapped.prune(list(sources.values()), targets)
    except Exception as error:  # the boundary: its error for this is none of the public ones
        raise ModelLoadError(
            f"{path.name}: the outputs need more than the inputs {quoted(sources)}: {reason(error)}"
        ) from error
    return describe(
        lambda tensors: concrete(*(tensors[name] for name in sources)),
        sources,
        targets,
        path.name,
        changes_state=changes_state(graph, fetched),
    )


def _read(path: Path) -> graph_pb2.GraphDef:
    try:
        graph = graph_pb2.GraphDef.FromString(path.read_bytes())
    except DecodeError as error:
        raise ModelLoadError(f"{path.name}: is damaged, or no frozen graph: {error}") from error
    if not graph.node:
        raise ModelLoadError(f"{path.name}: expected a frozen graph, found no nodes in it")
    variables = [node.name for node in graph.node if node.op in _VARIABLES]
    if variables:
        raise ModelLoadError(
            f"{path.name}: expected a frozen graph, found variables: {listing(variables)}; freeze"
            " it, or serve a SavedModel"
        )
    return graph


def _only_end(graph: graph_pb2.GraphDef, path: Path) -> str:
    used = {_node(reference) for node in graph.node for reference in node.input}
    ends = [n.name for n in graph.node if n.name not in used and n.op not in _NO_OUTPUTS]
    if len(ends) != 1:
        found = f"several nodes may be the output: {listing(ends)}" if ends else "no output found"
        raise ModelLoadError(f"{path.name}: {found}; name those that are meant with --outputs")
    return str(ends[0])


def _placeholders(graph: graph_pb2.GraphDef, fetched: Sequence[str]) -> list[str]:
    """Give the placeholders that outputs need, in the order of the file."""
    nodes = {node.name: node for node in graph.node}
    waiting, needed = [_node(name) for name in fetched], set()
    while waiting:
        name = waiting.pop()
        if name in nodes and name not in needed:
            needed.add(name)
            waiting += map(_node, nodes[name].input)
    return [n.name for n in graph.node if n.name in needed and n.op in _PLACEHOLDERS]


def _node(reference: str) -> str:
    return reference.removeprefix("^").partition(":")[0]


def _tensors(graph: Any, names: Sequence[str], flag: str, path: Path) -> Mapping[str, tf.Tensor]:
    """Give tensors by name; the first of a node has the name of the node."""
    found = {}
    for name in names:
        try:
            tensor = graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
        except (KeyError, ValueError) as error:
            raise ModelLoadError(f"{path.name}: {flag} {name}: it has no such tensor") from error
        found[name.removesuffix(":0")] = tensor
    return found
