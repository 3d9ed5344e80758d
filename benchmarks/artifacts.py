"""Models for the benchmarks: trained here, and one file for every server that is compared."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import joblib
import numpy as np
from numpy.typing import NDArray

SEED: Final = 7
N_FEATURES: Final = 100
N_ROUNDS: Final = 100


@dataclass(frozen=True, slots=True)
class Artifact:
    """A trained model and its file.

    Attributes:
        name: What it is served as.
        directory: Holds the model's file and nothing else.
        estimator: The fitted estimator or booster, or a net, whose `predict` says what is a right
            answer.
        features: Rows like those that it was trained on, (n_rows, n_features) FP64.
    """

    name: str
    directory: Path
    estimator: Any
    features: NDArray[np.float64]

    def rows(self, n_rows: int, dtype: str = "float64") -> NDArray[Any]:
        """Give the first rows, again from the start where there are not so many."""
        return self.features[np.arange(n_rows) % len(self.features)].astype(dtype)


@dataclass(frozen=True, slots=True)
class Net:
    """A graph of ONNX.

    Attributes:
        data: The file.
        session: Of ONNX Runtime, on one thread.
    """

    data: bytes
    session: Any

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Give the only output for the only input, `input-0`."""
        (output,) = self.session.run(None, {"input-0": rows})
        return np.asarray(output)

    def save(self, directory: Path) -> None:
        """Write the file."""
        (directory / "model.onnx").write_bytes(self.data)


@dataclass(frozen=True, slots=True)
class Module:
    """A module of TensorFlow.

    Attributes:
        module: The module.
        signature: Its only signature, a concrete function.
    """

    module: Any
    signature: Any

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Give the only output for the only input."""
        import tensorflow as tf

        return np.asarray(self.signature(tf.constant(rows))["label"].numpy())

    def save(self, directory: Path) -> None:
        """Write the SavedModel."""
        import tensorflow as tf

        tf.saved_model.save(self.module, str(directory), {"serving_default": self.signature})


@dataclass(frozen=True, slots=True)
class Booster:
    """A booster of XGBoost's or LightGBM's.

    Attributes:
        native: The booster itself.
        file_name: What its file is called: KServe's own servers take `.bst` alone of LightGBM.
        predict: Predicts for rows.
    """

    native: Any
    file_name: str
    predict: Callable[..., Any]

    def save(self, directory: Path) -> None:
        """Write it to a file."""
        self.native.save_model(directory / self.file_name)


def train(name: str, folder: Path) -> Artifact:
    """Train one of `MODELS` and write it to a file in `folder/name`, as its framework does."""
    estimator, features = MODELS[name]()
    directory = folder / name
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(estimator, Booster | Module | Net):
        estimator.save(directory)
    else:
        joblib.dump(estimator, directory / "model.joblib")
    return Artifact(name, directory, estimator, features)


def _iris() -> tuple[Any, NDArray[np.float64]]:
    from sklearn.datasets import load_iris
    from sklearn.svm import SVC

    features, labels = load_iris(return_X_y=True)
    return SVC().fit(features, labels), features


def _forest() -> tuple[Any, NDArray[np.float64]]:
    from sklearn.ensemble import RandomForestClassifier

    features, labels = _classes(N_FEATURES)
    return RandomForestClassifier(n_estimators=100, random_state=SEED).fit(
        features, labels
    ), features


def _linear() -> tuple[Any, NDArray[np.float64]]:
    from sklearn.linear_model import LogisticRegression

    features, labels = _classes(N_FEATURES)
    estimator = LogisticRegression(max_iter=500).fit(features, labels)
    # In a batch, or in FP32, the last bits of a score differ: no row is so near to the other class.
    return estimator, features[np.abs(estimator.decision_function(features)) > 0.05]


def _vectors() -> tuple[Any, NDArray[np.float64]]:
    """An SVC with so many support vectors that each row costs much, alone or in a batch."""
    from sklearn.svm import SVC

    features, labels = _classes(20, n_rows=6000, noise=0.3)
    return SVC(gamma=0.5).fit(features, labels), features


def _net(*widths: int) -> tuple[Any, NDArray[np.float64]]:
    """Give a perceptron of so many neurons in each layer, without training, that gives a class."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    features, _ = _classes(N_FEATURES)
    nodes, weights, last = [], [], "input-0"
    for i, weight in enumerate(_weights(*widths)):
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"z{i}"]))
        nodes.append(helper.make_node("Relu", [f"z{i}"], [f"a{i}"]))
        last = f"a{i}"
    nodes.append(helper.make_node("ArgMax", [last], ["label"], axis=1, keepdims=0))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input-0", TensorProto.FLOAT, ["batch", N_FEATURES])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    data = model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return Net(data, session), features


def _module(*widths: int) -> tuple[Any, NDArray[np.float64]]:
    """Give the same perceptron as a module of TensorFlow, on one thread."""
    import tensorflow as tf

    # It takes them when it starts, which a test may have made it do.
    with suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    module = tf.Module()
    module.weights = [tf.Variable(weight) for weight in _weights(*widths)]

    def label(x: Any) -> dict[str, Any]:
        for weight in module.weights:
            x = tf.nn.relu(x @ weight)
        return {"label": tf.argmax(x, axis=1)}

    rows = tf.TensorSpec([None, N_FEATURES], tf.float32, name="x")
    function = tf.function(label, input_signature=[rows])
    features, _ = _classes(N_FEATURES)
    return Module(module, function.get_concrete_function()), features


def _weights(*widths: int) -> Iterator[NDArray[np.float32]]:
    """Give the weights of each layer of a perceptron of so many neurons in each, not trained."""
    random = np.random.default_rng(SEED)
    for n_in, n_out in pairwise((N_FEATURES, *widths)):
        weight = random.standard_normal((n_in, n_out)) / np.sqrt(n_in)
        yield weight.astype(np.float32)


def _xgboost() -> tuple[Any, NDArray[np.float64]]:
    import xgboost

    features, labels = _classes(N_FEATURES)
    parameters = {"objective": "binary:logistic", "nthread": 1, "seed": SEED}
    booster = xgboost.train(parameters, xgboost.DMatrix(features, labels), N_ROUNDS)
    return Booster(booster, "model.ubj", booster.inplace_predict), features


def _lightgbm() -> tuple[Any, NDArray[np.float64]]:
    import lightgbm

    features, labels = _classes(N_FEATURES)
    parameters = {"objective": "binary", "num_threads": 1, "seed": SEED, "verbosity": -1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(features, labels), N_ROUNDS)
    return Booster(booster, "model.bst", booster.predict), features


def _classes(
    n_features: int, n_rows: int = 2000, noise: float = 0.01
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.datasets import make_classification

    features, labels = make_classification(
        n_rows, n_features, n_informative=n_features // 2, flip_y=noise, random_state=SEED
    )
    # What fits into FP32 is the same in every datatype, and so are the answers.
    return features.astype(np.float32).astype(np.float64), labels


MODELS: Final[Mapping[str, Callable[[], tuple[Any, NDArray[np.float64]]]]] = {
    "iris": _iris,
    "forest": _forest,
    "linear": _linear,
    "vectors": _vectors,
    "net": partial(_net, 64, 10),
    "wide-net": partial(_net, 1024, 1024, 10),
    "tf-net": partial(_module, 64, 10),
    "wide-tf-net": partial(_module, 1024, 1024, 10),
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
}
