"""Whether axis 0 is rows that requests may put together: what the graph says, and a trial.

A name that axis 0 of all inputs and outputs shares says that they have equally many entries, not
that these have nothing to do with one another: the steps of a recurrent net share a name, too. And
exporters often name the axes of the inputs alone. So two rows are run apart and together.

- One name for all: they are rows, unless the trial shows that one depends on the other.
- Axis 0 of any length, but without a name, or with another one in an output: rows only if the
  trial shows that none depends on another.
- Anything else: none.
"""

from collections.abc import Iterable
from typing import Final

from kserve.row_trial import fixed_axis, try_rows
from onnxserver.graph import Graph
from onnxserver.model_file import ModelFile

# They scale by the largest value of a whole call.
_MIXING_OPERATORS: Final = frozenset(
    ("DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul")
)


def find_rows(graph: Graph, file: ModelFile) -> tuple[bool, str]:
    """Say whether requests may run together, and why.

    Args:
        graph: What is called.
        file: Tells its operators.
    """
    if reason := _reason_against(graph, file):
        return False, reason
    is_certain = len(graph.axis_0_names) == 1 and None not in graph.axis_0_names
    is_shown = try_rows(graph.signature, graph.run)
    if is_shown is None and is_certain:
        return True, "axis 0 has one name, and no trial succeeded"
    if is_shown is None:
        return False, "axis 0 has no common name, and no trial succeeded"
    if not is_shown:
        return False, "in a trial of two rows, one depended on the other"
    return True, "in a trial of two rows, none depended on the other"


def _reason_against(graph: Graph, file: ModelFile) -> str:
    mixing = sorted(_MIXING_OPERATORS & file.op_types)
    if mixing:
        return f"{mixing[0]} scales by all rows of a call"
    if not graph.signature.inputs:
        return "it has no input"
    for output in graph.outputs:
        if output.is_open:
            return f"output {output.name!r} is no tensor"
    if len(graph.input_axis_0_names - {None}) > 1:
        return f"axis 0 of the inputs has several names: {_sorted(graph.input_axis_0_names)}"
    return fixed_axis(graph.signature)


def _sorted(names: Iterable[str | None]) -> str:
    return ", ".join(sorted(filter(None, names)))
