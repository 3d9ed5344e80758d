"""Which graphs a call changes."""

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from tfserver.state import changes_state

F = tf.float32


def graph_of(function: Callable[..., Any], *specs: Any) -> Any:
    def called(*tensors: Any) -> Any:
        # What it gives may be an operation; what it does is in the graph in any case.
        function(*tensors)
        return tensors

    return tf.function(called).get_concrete_function(*specs).graph.as_graph_def()


VARIABLE = tf.Variable([1.0, 2.0])
TABLE = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
QUEUE = tf.queue.FIFOQueue(2, [F])
GENERATOR = tf.random.Generator.from_seed(1)


def in_a_branch(x: Any) -> Any:
    return tf.cond(x > 0, lambda: VARIABLE.assign_add([x, x]), lambda: VARIABLE.read_value())


@tf.function
def inner(x: Any) -> Any:
    return VARIABLE.assign([x, x])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        pytest.param(lambda x: x + VARIABLE, False, id="reads a variable"),
        pytest.param(lambda x: VARIABLE.assign([x, x]), True, id="assigns"),
        pytest.param(lambda x: VARIABLE.scatter_nd_add([[0]], [x]), True, id="scatters"),
        pytest.param(in_a_branch, True, id="in a branch"),
        pytest.param(lambda x: inner(x), True, id="in a function"),
        pytest.param(lambda x: tf.tensor_scatter_nd_add([1.0], [[0]], [x]), False, id="a tensor"),
        pytest.param(lambda x: TABLE.insert(["a"], [1]), True, id="inserts"),
        pytest.param(lambda x: TABLE.lookup(tf.as_string([x])), False, id="looks up"),
        pytest.param(lambda x: QUEUE.enqueue(x), True, id="enqueues"),
        pytest.param(lambda x: GENERATOR.uniform([2]) + x, True, id="draws from a generator"),
        pytest.param(lambda x: tf.io.write_file("f", tf.as_string(x)), True, id="writes a file"),
    ],
)
def test_a_graph_that_writes_to_what_outlives_a_call_changes_state(
    function: Callable[..., Any], expected: bool
) -> None:
    assert changes_state(graph_of(function, tf.TensorSpec([], F))) is expected


def test_only_what_the_outputs_need_counts() -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(F, [], name="x")
        counter = tf.compat.v1.get_variable("n", [], F, use_resource=False)
        tf.compat.v1.assign_add(counter, x, name="count")
        tf.identity(x * 2.0, name="y")
    graph_def = graph.as_graph_def()

    assert changes_state(graph_def)
    assert changes_state(graph_def, ["count:0"])
    assert not changes_state(graph_def, ["y:0"])
