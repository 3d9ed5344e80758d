"""A part of a graph: what some of its outputs need, and no more.

ONNX Runtime computes a whole graph for every call, whatever outputs are asked for. So what nobody
shall ask for is cut out of the file before it is loaded.

Source: onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from collections.abc import Collection, Iterator
from typing import Final

from kserve.errors import ModelLoadError
from kserve.listing import quoted
from kserve.protocol.grpc.varint import encode_varint
from onnxserver.model_file import MessageView

# Field numbers.
_MODEL_GRAPH: Final = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
# Where a message has its name.
_NAMES: Final = {_GRAPH_INITIALIZER: 8, _GRAPH_INPUT: 1, _GRAPH_OUTPUT: 1}

# Field 7, length-delimited.
_GRAPH_TAG: Final = b"\x3a"


def cut(data: bytes, outputs: Collection[str], label: str) -> bytes:
    """Give a model of some of its outputs, without the nodes, inputs and weights of the others.

    Args:
        data: The file.
        outputs: Names of outputs.
        label: What messages call it.

    Returns:
        The bytes of the model; those of the file if it is damaged, as whoever loads them says how.

    Raises:
        ModelLoadError: It has no output of a name.
    """
    try:
        return b"".join(_cut_model(data, outputs, label))
    except (IndexError, ValueError):
        return data


def _cut_model(data: bytes, outputs: Collection[str], label: str) -> Iterator[bytes]:
    for number, value, span in MessageView(data, 0, len(data)).spans():
        if number == _MODEL_GRAPH and isinstance(value, MessageView):
            graph = b"".join(_cut_graph(value, outputs, label))
            yield from (_GRAPH_TAG, encode_varint(len(graph)), graph)
        else:
            yield data[span]


def _cut_graph(graph: MessageView, outputs: Collection[str], label: str) -> Iterator[bytes]:
    known = [each.text(_NAMES[_GRAPH_OUTPUT]) for each in graph.messages(_GRAPH_OUTPUT)]
    unknown = [name for name in outputs if name not in known]
    if unknown:
        raise ModelLoadError(
            f"{label}: --outputs: it has no output {quoted(unknown)}, it has {quoted(known)}"
        )
    needed, nodes = _needed(graph, outputs)
    for number, value, span in graph.spans():
        is_kept = True
        if number == _GRAPH_NODE:
            is_kept = span.start in nodes
        elif number in _NAMES and isinstance(value, MessageView):
            wanted = outputs if number == _GRAPH_OUTPUT else needed
            is_kept = value.text(_NAMES[number]) in wanted
        if is_kept:
            yield graph.data[span]


def _needed(graph: MessageView, outputs: Collection[str]) -> tuple[set[str], set[int]]:
    """Give the names of the values that outputs depend on, and where the nodes of these begin."""
    needed, nodes = set(outputs), set()
    # "The nodes in the graph, sorted topologically": whoever uses a value comes after it.
    for number, node, span in reversed(list(graph.spans())):
        if number == _GRAPH_NODE and isinstance(node, MessageView):
            given = map(str, node.messages(_NODE_OUTPUT))
            if not needed.isdisjoint(given):
                nodes.add(span.start)
                needed.update(_uses(node))
                # What a node leaves out has no name.
                needed.discard("")
    return needed, nodes


def _uses(node: MessageView) -> Iterator[str]:
    """Give the names that a node reads; those that the graphs inside it read may be their own."""
    yield from map(str, node.messages(_NODE_INPUT))
    for attribute in node.messages(_NODE_ATTRIBUTE):
        for number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
            for graph in attribute.messages(number):
                for inner in graph.messages(_GRAPH_NODE):
                    yield from _uses(inner)
                for output in graph.messages(_GRAPH_OUTPUT):
                    yield output.text(_NAMES[_GRAPH_OUTPUT])
