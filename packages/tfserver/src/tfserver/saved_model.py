"""Loads a SavedModel: its signatures, as it says them itself."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from kserve.errors import ModelLoadError
from kserve.listing import listing, quoted
from kserve.logging import logger
from tfserver.function import Function, describe, reason
from tfserver.settings import SAVED_MODEL
from tfserver.state import changes_state

_SERVE: Final = {tf.saved_model.SERVING}

_LFS_POINTER: Final = b"version https://git-lfs"


def load_saved_model(path: Path, default: str) -> dict[str, Function]:
    """Load the functions of a SavedModel by the names of their signatures.

    Args:
        path: Its `saved_model.pb`; variables and assets lie beside it.
        default: The signature that has to be there.

    Raises:
        ModelLoadError: The file is damaged, or no SavedModel; it needs an operation that is not
            there; it has no such signature; or the protocol cannot carry the tensors of it.
    """
    graph = _meta_graph(path)
    try:
        loaded = _loaded(path.parent, graph)
        signatures = dict(sorted(loaded.signatures.items()))
    except Exception as error:  # the boundary: TensorFlow's errors have no common class
        raise ModelLoadError(
            f"{path.name}: cannot be loaded: {reason(error)} ({_versions(graph)})"
        ) from error
    if default not in signatures:
        has = quoted(sorted(signatures)) if signatures else "none: export it with some"
        raise ModelLoadError(
            f"{path.name}: --signature_name {default}: it has no such signature, it has {has}"
        )
    return dict(_functions(loaded, signatures, graph, default))


def _loaded(directory: Path, graph: meta_graph_pb2.MetaGraphDef) -> Any:
    tags = list(graph.meta_info_def.tags)
    if not any(node.slot_variables for node in graph.object_graph_def.nodes):
        return tf.saved_model.load(str(directory), tags=tags)
    # What Keras 2 saved with its optimizer is refused where Keras 3 is: the optimizer's variables
    # have no owner there. Serving needs none of them.
    bare = meta_graph_pb2.MetaGraphDef()
    bare.CopyFrom(graph)
    for node in bare.object_graph_def.nodes:
        del node.slot_variables[:]
    with TemporaryDirectory() as folder:
        for entry in directory.absolute().iterdir():
            if entry.name != SAVED_MODEL:
                Path(folder, entry.name).symlink_to(entry)
        model = saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[bare])
        Path(folder, SAVED_MODEL).write_bytes(model.SerializeToString())
        return tf.saved_model.load(folder, tags=tags)


def _functions(
    loaded: Any,
    signatures: Mapping[str, Any],
    graph: meta_graph_pb2.MetaGraphDef,
    default: str,
) -> Iterator[tuple[str, Function]]:
    for name, concrete in signatures.items():
        definition = graph.signature_def[name]
        fetched = [info.name for info in definition.outputs.values()]
        try:
            yield (
                name,
                describe(
                    partial(_call, loaded, concrete),
                    # By name, as the order in the file is any.
                    dict(sorted(concrete.structured_input_signature[1].items())),
                    dict(sorted(concrete.structured_outputs.items())),
                    f"signature {name!r}",
                    definition=definition,
                    changes_state=changes_state(graph.graph_def, fetched),
                ),
            )
        except ModelLoadError as error:
            if name == default:
                raise
            logger.warning("A signature is left out: %s", error)


def _call(loaded: Any, concrete: Any, tensors: Mapping[str, tf.Tensor]) -> Any:
    # A signature does not keep the variables that it uses; what was loaded does.
    del loaded
    return concrete(**tensors)


def _meta_graph(path: Path) -> meta_graph_pb2.MetaGraphDef:
    data = path.read_bytes()
    if not data or data.startswith(_LFS_POINTER):
        found = "the pointer of Git LFS that stands for it" if data else "an empty file"
        raise ModelLoadError(f"{path.name}: expected a SavedModel, found {found}")
    try:
        model = saved_model_pb2.SavedModel.FromString(data)
    except DecodeError as error:
        raise ModelLoadError(f"{path.name}: is damaged, or no SavedModel: {error}") from error
    graphs = list(model.meta_graphs)
    serving = [graph for graph in graphs if set(graph.meta_info_def.tags) == _SERVE]
    if len(serving) == 1 or len(graphs) == 1:
        return (serving or graphs)[0]
    tags = [f"({', '.join(graph.meta_info_def.tags)})" for graph in graphs]
    raise ModelLoadError(
        f"{path.name}: expected one graph with the tag serve, found {listing(tags) or 'none'}"
    )


def _versions(graph: meta_graph_pb2.MetaGraphDef) -> str:
    writer = graph.meta_info_def.tensorflow_version or "an unknown version"
    return f"written by TensorFlow {writer}, this is {tf.__version__}"
