"""The servers that every protocol row is run against: one entry of `SERVERS` each.

An entry says how to start a server and what it answers to one good request of each protocol; the
rows of the suite are made from these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve.testing import Response, ServerProcess

Json = dict[str, Any]

_HERE = Path(__file__).parent
_EXAMPLES = _HERE.parents[1] / "examples"


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server of the table.

    Attributes:
        name: What the tests' ids call it.
        start: Gives the process, not yet started, in an empty folder of its own; further arguments
            are flags.
        model_name: The model that it serves, and no other.
        v1_request: A request that succeeds.
        v1_response: The whole answer to it, in the order of its keys.
        v2_request: A request that succeeds: one input, several rows, no `id`.
        v2_outputs: The outputs of the answer to it.
        metadata: The whole metadata of the model.
        batches: Whether rows of requests that wait together run together.
        v1_explanation: The answer to `v1_request` on the explain route; None if the model cannot
            explain.
        imports: What has to be installed for it; its rows are skipped otherwise.
    """

    name: str
    start: Callable[..., ServerProcess]
    model_name: str
    v1_request: Json
    v1_response: Json
    v2_request: Json
    v2_outputs: list[Json]
    metadata: Json
    batches: bool = False
    v1_explanation: Json | None = None
    imports: tuple[str, ...] = ()

    @property
    def v1(self) -> str:
        """The path of the model in V1."""
        return f"/v1/models/{self.model_name}"

    @property
    def v2(self) -> str:
        """The path of the model in V2."""
        return f"/v2/models/{self.model_name}"

    def v2_response(self, request_id: str) -> Json:
        """Give the whole answer to `v2_request`, in the order of its keys."""
        return {
            "model_name": self.model_name,
            "model_version": None,
            "id": request_id,
            "parameters": None,
            "outputs": self.v2_outputs,
        }


@dataclass(frozen=True)
class RunningServer:
    """A started server and its entry."""

    entry: Server
    process: ServerProcess

    @property
    def port(self) -> int:
        """The REST port."""
        return self.process.port

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Response:
        """Send one request over a new connection; see `kserve.testing.request`."""
        return self.process.request(method, path, body, headers, **options)


def _script(path: Path) -> Callable[..., ServerProcess]:
    return lambda folder, *flags: ServerProcess(str(path), *flags)


def _python_model(example: str) -> Callable[..., ServerProcess]:
    def start(folder: Path, *flags: str) -> ServerProcess:
        arguments = ("--model_dir", str(_EXAMPLES / example), "--model_name", example, *flags)
        return ServerProcess("pythonserver", *arguments)

    return start


def _sklearn_iris(folder: Path, *flags: str) -> ServerProcess:
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.svm import SVC

    features, species = load_iris(return_X_y=True, as_frame=True)
    joblib.dump(SVC(gamma=1.0).fit(features, species), folder / "model.joblib")
    arguments = ("--model_dir", str(folder), "--model_name", "iris", *flags)
    return ServerProcess("sklearnserver", *arguments)


# Rows 0, 50 and 100 of the data that scikit-learn carries: one of each class.
_IRIS_ROWS = [[5.1, 3.5, 1.4, 0.2], [7.0, 3.2, 4.7, 1.4], [6.3, 3.3, 6.0, 2.5]]
_IRIS_FEATURES = (
    "sepal length (cm)",
    "sepal width (cm)",
    "petal length (cm)",
    "petal width (cm)",
)
_TEXTS = ["The cat sat on the mat.", "Reproducibility necessitates methodological rigour."]
_SCORES = [116.1, -220.2]
_LETTERS = ["Ada Lovelace never saw Ghent University.", "The Hague is no New York."]
_REDACTED = ["[PERSON] never saw [ORG].", "[CITY] is no [CITY]."]
_FLOWERS = [[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5], [50.0, 30.0, 10.0, 2.0]]
_NAMES = ["setosa", "virginica", "unknown"]

SERVERS = (
    Server(
        name="echo",
        start=_script(_HERE / "echo_server.py"),
        model_name="echo",
        v1_request={"instances": [[1, 2], [3, 4]]},
        v1_response={"predictions": [[1, 2], [3, 4]]},
        v2_request={
            "inputs": [
                {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2.5], [3, 4]]}
            ]
        },
        v2_outputs=[
            {
                "name": "x",
                "shape": [2, 2],
                "datatype": "FP32",
                "parameters": None,
                "data": [1.0, 2.5, 3.0, 4.0],
            }
        ],
        metadata={
            "name": "echo",
            "versions": None,
            "platform": "echo",
            "inputs": [],
            "outputs": [],
        },
    ),
    Server(
        name="custom-model",
        start=_script(_EXAMPLES / "custom-model" / "server.py"),
        model_name="reading-ease",
        v1_request={"instances": _TEXTS},
        v1_response={"predictions": _SCORES},
        v2_request={
            "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": _TEXTS}]
        },
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [2],
                "datatype": "FP64",
                "parameters": None,
                "data": _SCORES,
            }
        ],
        metadata={
            "name": "reading-ease",
            "versions": None,
            "platform": "",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "output-0", "datatype": "FP64", "shape": [-1]}],
        },
    ),
    Server(
        name="pythonserver",
        start=_python_model("python-novelty"),
        imports=("pythonserver", "sklearn"),
        model_name="python-novelty",
        v1_request={"instances": _FLOWERS},
        v1_response={"predictions": _NAMES},
        v2_request={
            "inputs": [{"name": "measures", "shape": [3, 4], "datatype": "FP64", "data": _FLOWERS}]
        },
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [3],
                "datatype": "BYTES",
                "parameters": None,
                "data": _NAMES,
            }
        ],
        metadata={
            "name": "python-novelty",
            "versions": None,
            "platform": "python",
            "inputs": [{"name": "measures", "datatype": "FP64", "shape": [-1, 4]}],
            "outputs": [{"name": "output-0", "datatype": "BYTES", "shape": [-1]}],
        },
    ),
    Server(
        name="pythonserver-functions",
        start=_python_model("python-text"),
        imports=("pythonserver",),
        model_name="python-text",
        v1_request={"instances": _LETTERS},
        v1_response={"predictions": _REDACTED},
        v2_request={
            "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": _LETTERS}]
        },
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [2],
                "datatype": "BYTES",
                "parameters": None,
                "data": _REDACTED,
            }
        ],
        metadata={
            "name": "python-text",
            "versions": None,
            "platform": "python",
            "inputs": [],
            "outputs": [],
        },
    ),
    Server(
        name="sklearnserver",
        start=_sklearn_iris,
        batches=True,
        imports=("sklearn", "sklearnserver"),
        model_name="iris",
        v1_request={"instances": _IRIS_ROWS},
        v1_response={"predictions": [0, 1, 2]},
        v2_request={
            "inputs": [{"name": "x", "shape": [3, 4], "datatype": "FP64", "data": _IRIS_ROWS}]
        },
        v2_outputs=[
            {
                "name": "output-0",
                "shape": [3],
                "datatype": "INT64",
                "parameters": None,
                "data": [0, 1, 2],
            }
        ],
        metadata={
            "name": "iris",
            "versions": None,
            "platform": "sklearn",
            "inputs": [
                {"name": name, "datatype": "FP64", "shape": [-1]} for name in _IRIS_FEATURES
            ],
            "outputs": [{"name": "output-0", "datatype": "INT64", "shape": [-1]}],
        },
    ),
)
