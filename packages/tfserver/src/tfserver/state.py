"""Whether a call of a graph changes what later ones give: it assigns to a variable, or the like."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tensorflow.core.framework import graph_pb2

# Operations that write to what lives longer than a call: variables, optimizers' slots, tables,
# queues, the state of random numbers, files.
_WRITES: Final = re.compile(
    r"Assign(Add|Sub)?(VariableOp)?"
    r"|Resource(Sparse)?Apply\w+|(Sparse)?Apply(Ada|Add|Centered|Ftrl|Gradient|Momentum|Power|Prox|RMS)\w*"
    r"|Resource(Scatter|StridedSliceAssign|Accumulator|ConditionalAccumulator)\w*"
    r"|Scatter\w*(Add|Sub|Mul|Div|Min|Max|Update)|StridedSliceAssign"
    r"|LookupTable(Insert|Remove|Import)(V2)?"
    r"|Queue(En|De)queue\w*|(Unordered|Ordered)?Map(Stage|Unstage\w*)|Stage|Unstage"
    r"|Rng\w*Skip|Stateful(Uniform|StandardNormal|TruncatedNormal|Random)\w*"
    r"|WriteFile|Save(V2|Slices)?|MergeV2Checkpoints"
)


def changes_state(graph: graph_pb2.GraphDef, outputs: Iterable[str] | None = None) -> bool:
    """Say whether a graph writes to anything that outlives a call.

    Args:
        graph: The graph, with the functions that it calls in its library.
        outputs: The tensors that are fetched, such as "logits:0"; None takes every node.
    """
    functions = {function.signature.name: function for function in graph.library.function}
    nodes = graph.node if outputs is None else _needed(graph, outputs)
    return _write(nodes, functions, set())


def _needed(graph: graph_pb2.GraphDef, outputs: Iterable[str]) -> list[Any]:
    by_name = {node.name: node for node in graph.node}
    waiting = [_node_name(name) for name in outputs]
    needed: dict[str, Any] = {}
    while waiting:
        node = by_name.get(waiting.pop())
        if node is not None and node.name not in needed:
            needed[node.name] = node
            waiting += map(_node_name, node.input)
    return list(needed.values())


def _node_name(reference: str) -> str:
    """Give the node of an input: "^NAME" is one that only has to run before."""
    return reference.removeprefix("^").partition(":")[0]


def _write(nodes: Iterable[Any], functions: Mapping[str, Any], seen: set[str]) -> bool:
    for node in nodes:
        if _WRITES.fullmatch(node.op):
            return True
        for name in _called(node):
            if name not in seen and name in functions:
                seen.add(name)
                if _write(functions[name].node_def, functions, seen):
                    return True
    return False


def _called(node: Any) -> Iterable[str]:
    """Give the functions that a node calls; a node may be one, by its name."""
    yield node.op
    for attribute in node.attr.values():
        if attribute.HasField("func"):
            yield attribute.func.name
        for function in attribute.list.func:
            yield function.name
