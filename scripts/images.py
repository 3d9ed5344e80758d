"""Builds the images of docker/docker-bake.json with buildah, and tries each with podman.

No Docker engine is needed. Where the base image cannot be pulled, a stand-in of the same name is
made from Debian packages: good to build and test on, not to ship.
"""

import argparse
import base64
import json
import os
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.testing import request

ROOT = Path(__file__).resolve().parent.parent
BAKE_FILE = ROOT / "docker" / "docker-bake.json"
STORE = ROOT / ".uv" / "images"

TOOLS = ("buildah", "catatonit", "mmdebstrap", "podman", "runc")
# The least that a container of these servers gets along with.
RESTRICTIONS = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--user=12345:0", "--memory=1g")
READY_TIMEOUT_S = 120
STOP_TIMEOUT_S = 40

# y = x for FP32 of shape [n, 1], as ONNX: the package that writes such files is not in the image.
_IDENTITY_ONNX = base64.b64decode(
    "CAg6SAoQCgF4EgF5IghJZGVudGl0eRIIaWRlbnRpdHlaFAoBeBIPCg0IARIJCgMSAW4KAggBYhQKAXkSDwoNCAESCQoD"
    "EgFuCgIIAUIECgAQEQ=="
)

_DOUBLING = """def load(model_dir):
    return 2


def predict(factor, instances):
    return [row[0] * factor for row in instances]
"""

_CLASSIFIER = """from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
).save_pretrained(".")
sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
config = BertConfig(vocab_size=4, max_position_embeddings=16, **sizes)
BertForSequenceClassification(config).save_pretrained(".")
"""


@dataclass(frozen=True)
class Smoke:
    """How to try an image.

    Attributes:
        make_model: Python that writes a model of one feature into the current directory; it runs in
            the image.
        datatype: Of the model's input.
        values: The rows that it is asked for.
    """

    make_model: str
    datatype: str = "FP64"
    values: Sequence[Any] = (1, 30)


_TABLE = "x = numpy.arange(40.0).reshape(40, 1); y = (x[:, 0] > 20).astype(int)"
SMOKE: Mapping[str, Smoke] = {
    "sklearnserver": Smoke(
        f"import joblib, numpy; from sklearn.linear_model import LogisticRegression; {_TABLE};"
        "joblib.dump(LogisticRegression().fit(x, y), 'model.joblib')"
    ),
    "xgbserver": Smoke(
        f"import numpy, xgboost; {_TABLE};"
        "xgboost.train({}, xgboost.DMatrix(x, y), 2).save_model('model.ubj')",
        "FP32",
    ),
    "lgbserver": Smoke(
        f"import lightgbm, numpy; {_TABLE};"
        "lightgbm.train({'verbose': -1}, lightgbm.Dataset(x, y), 2).save_model('model.txt')"
    ),
    "onnxserver": Smoke(f"open('model.onnx', 'wb').write({_IDENTITY_ONNX!r})", "FP32"),
    "pythonserver": Smoke(f"open('model.py', 'w').write({_DOUBLING!r})"),
    "hfserver": Smoke(_CLASSIFIER, "BYTES", ("good", "bad")),
    "tfserver": Smoke(
        "import tensorflow as tf; m = tf.Module(); m.f = tf.function(lambda x: {'y': x * 2.0},"
        " input_signature=[tf.TensorSpec([None, 1], tf.float32, name='x')]);"
        " tf.saved_model.save(m, '.', {'serving_default': m.f})",
        "FP32",
    ),
}

# What the images of KServe's own servers install beside its SDK, and of Debian.
UPSTREAM: Mapping[str, tuple[str, str]] = {
    "sklearnserver": ("scikit-learn==1.5.2 joblib pandas", ""),
    "xgbserver": ("xgboost==2.1.4", "libgomp1"),
    "lgbserver": ("lightgbm==4.6.0 pandas", "libgomp1"),
}


class ImageError(Exception):
    """An image cannot be built, or does not do what it has to; the text says why."""


@dataclass(frozen=True)
class Row:
    """One target of the bake file, its variables replaced.

    Attributes:
        name: The server.
        target: The stage of the Dockerfile.
        args: Build arguments.
        tags: Names of the image.
    """

    name: str
    target: str
    args: Mapping[str, str]
    tags: tuple[str, ...]


def read_rows(variables: Mapping[str, str] | None = None) -> dict[str, Row]:
    """Read the targets of the bake file's default group.

    Args:
        variables: What to use instead of the bake file's own values.

    Raises:
        ImageError: The bake file has no such variable.
    """
    bake = json.loads(BAKE_FILE.read_text())
    values = {name: entry["default"] for name, entry in bake["variable"].items()}
    if unknown := set(variables or {}) - set(values):
        raise ImageError(f"no variable {', '.join(sorted(unknown))}; there are {', '.join(values)}")
    values |= variables or {}

    def expand(text: str) -> str:
        return string.Template(text).substitute(values)

    def row(name: str) -> Row:
        target = bake["target"][name]
        parents = [bake["target"][parent] for parent in target.get("inherits", [])]
        args: dict[str, str] = {}
        for entry in [*parents, target]:
            args |= {key: expand(value) for key, value in entry.get("args", {}).items()}
        return Row(name, target["target"], args, tuple(map(expand, target["tags"])))

    return {name: row(name) for name in bake["group"]["default"]["targets"]}


def base_name() -> str:
    """Give the name of the base image, without a registry: the machine knows where to find it."""
    return str(json.loads(BAKE_FILE.read_text())["variable"]["PYTHON_IMAGE"]["default"])


def environ() -> dict[str, str]:
    """Give the environment in which buildah and podman find our own store of images."""
    settings = {
        "CONTAINERS_STORAGE_CONF": str(STORE / "storage.conf"),
        "BUILDAH_ISOLATION": "chroot",
    }
    return {**os.environ, **settings}


def run(command: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command, with our own store of images.

    Raises:
        ImageError: It failed; the text ends with what it printed last.
    """
    done = subprocess.run(
        command, cwd=ROOT, env=environ(), check=False, capture_output=True, text=True
    )
    if check and done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise ImageError(f"{' '.join(command[:3])} failed with code {done.returncode}:\n{last}")
    return done


def podman(*arguments: str, check: bool = True) -> str:
    """Run podman and give what it printed.

    Without systemd podman has to manage cgroups itself.
    """
    command = ["podman", "--cgroup-manager=cgroupfs", "--runtime=runc", *arguments]
    return run(command, check=check).stdout.strip()


def install_tools() -> str:
    """Install what is missing; give the reason if that cannot be, or the empty string."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "images are built as root only"
    if not missing:
        return ""
    if shutil.which("apt-get") is None:
        return f"{', '.join(missing)}: not installed, and there is no apt-get"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update"],
        ["apt-get", "install", "-y", "--no-install-recommends", *missing],
    ):
        done = subprocess.run(command, env=quiet, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-1]
            return f"{' '.join(command)} failed: {last}"
    return ""


def prepare_store() -> None:
    """Make the folder that holds our images, apart from those of the machine."""
    STORE.mkdir(parents=True, exist_ok=True)
    lines = ["[storage]", 'driver = "overlay"', f'runroot = "{STORE}/run"']
    (STORE / "storage.conf").write_text("\n".join([*lines, f'graphroot = "{STORE}/graph"', ""]))


def ensure_base() -> bool:
    """Have the base image in the store; say whether it is a stand-in.

    Raises:
        ImageError: It can be neither pulled nor made.
    """
    name = base_name()
    if run(["podman", "image", "exists", name], check=False).returncode:
        if run(["podman", "pull", "--quiet", name], check=False).returncode == 0:
            return False
        _make_stand_in(name)
    label = '{{index .Config.Labels "stand-in"}}'
    return podman("image", "inspect", name, "--format", label) == "yes"


def _make_stand_in(name: str) -> None:
    archive, certificates = STORE / "base.tar", "/etc/ssl/certs/ca-certificates.crt"
    ours = os.environ.get("SSL_CERT_FILE") or certificates
    python = "usr/bin/python3.11"
    commands = [
        # As in the official image.
        'find "$1/usr/lib/python3.11" -name "*.pyc" -delete',
        f'rm -f "$1/usr/lib/python3.11/EXTERNALLY-MANAGED"; for name in python python3; do '
        f'ln -sf /{python} "$1/usr/local/bin/$name"; done',
    ]
    if Path(ours).is_file():
        commands.append(f'cp {ours} "$1{certificates}"')
    packages = "ca-certificates,python3,python3-venv,python3-pip"
    run(
        [
            *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}"),
            '--aptopt=Acquire::Languages "none"',
            *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man")),
            *(f"--customize-hook={command}" for command in commands),
            *("bookworm", str(archive)),
        ]
    )
    path = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    changes = ["ENV LANG=C.UTF-8", f"ENV PATH={path}", f"ENV PIP_CERT={certificates}"]
    changes += [f"ENV SSL_CERT_FILE={certificates}", "LABEL stand-in=yes"]
    podman("import", "--quiet", *(f"--change={change}" for change in changes), str(archive), name)
    archive.unlink()


def build(row: Row) -> str:
    """Build an image; give its name.

    Raises:
        ImageError: A step failed.
    """
    args = [f"--build-arg={key}={value}" for key, value in row.args.items()]
    tags = [f"--tag=localhost/{tag}" for tag in row.tags]
    wheels = row.args.get("TORCH_WHEELS", "")
    # A folder of this machine is none of the build's.
    volumes = [f"--volume={wheels}:{wheels}:ro"] if wheels.startswith("/") else []
    _build_file("docker/Dockerfile", [f"--target={row.target}", *args, *tags, *volumes])
    return f"localhost/{row.tags[-1]}"


def build_upstream(server: str) -> str:
    """Build what the image of KServe's own server is like, on the same base; give its name.

    Raises:
        ImageError: A step failed.
    """
    requirements, packages = UPSTREAM[server]
    image = f"localhost/upstream-{server}"
    args = {"REQUIREMENTS": requirements, "SYSTEM_PACKAGES": packages}
    options = [f"--build-arg={key}={value}" for key, value in args.items()]
    _build_file("docker/upstream.Dockerfile", [*options, f"--tag={image}"])
    return image


def _build_file(dockerfile: str, options: Sequence[str]) -> None:
    secret = os.environ.get("PIP_CONFIG_FILE", "")
    # Set by scripts/env.sh, from uv's settings or pip's; a container has none of our folders.
    index = os.environ.get("UV_DEFAULT_INDEX", "file:")
    run(
        [
            *("buildah", "bud", "--quiet", "--pull-never", "--format=docker", "--layers"),
            *("--file", dockerfile, *options),
            *([] if index.startswith("file:") else [f"--build-arg=PIP_INDEX_URL={index}"]),
            *([f"--secret=id=pip.conf,src={secret}"] if Path(secret).is_file() else []),
            ".",
        ]
    )


def size_mb(image: str) -> float:
    """Give the size of an image in MB (10^6 bytes), not compressed."""
    return int(podman("image", "inspect", image, "--format", "{{.Size}}")) / 1e6


@dataclass(frozen=True)
class Container:
    """A running container.

    Attributes:
        id: Its id.
        http_port: Where its port 8080 is found on 127.0.0.1; 0 if it ended at once.
        grpc_port: Where its port 8081 is found; likewise.
    """

    id: str
    http_port: int
    grpc_port: int

    def logs(self) -> str:
        """Give what the server has written."""
        done = run(["podman", "logs", self.id], check=False)
        return done.stdout + done.stderr

    def execute(self, *command: str) -> str:
        """Run a command inside, and give what it printed."""
        return podman("exec", self.id, *command)

    def wait_until_ready(self) -> None:
        """Wait until readiness answers 200.

        Raises:
            ImageError: It did not in time, or the container ended; the text has its log.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline and self.state("Running") == "true":
            if self._is_ready():
                return
            time.sleep(0.2)
        raise ImageError(f"not ready after {READY_TIMEOUT_S} s, or ended:\n{self.logs()}")

    def _is_ready(self) -> bool:
        try:
            return request(self.http_port, "GET", "/v2/health/ready").status == 200
        except (OSError, ValueError):
            return False

    def state(self, name: str) -> str:
        """Give a field of the container's state, such as ExitCode."""
        return podman("inspect", self.id, "--format", f"{{{{.State.{name}}}}}")

    def stop(self) -> int:
        """Send SIGTERM, wait for the end, and give the exit code."""
        podman("stop", f"--time={STOP_TIMEOUT_S}", self.id)
        return int(self.state("ExitCode"))


@contextmanager
def container(image: str, options: Sequence[str], *arguments: str) -> Iterator[Container]:
    """Run an image with the restrictions of our runtimes, as a user that it does not know.

    Args:
        image: Its name.
        options: More options of `podman run`.
        arguments: What the server is given.
    """
    identifier = podman(
        "run",
        "--detach",
        # Podman may ask for more than it may have itself; it has no timers without systemd.
        *("--ulimit=nofile=1024:2048", "--ulimit=nproc=1000:1000", "--no-healthcheck"),
        *("--publish=127.0.0.1::8080", "--publish=127.0.0.1::8081"),
        *RESTRICTIONS,
        *options,
        image,
        *arguments,
    ).splitlines()[-1]
    try:
        # Nothing is printed of one that has ended already.
        ports = [
            int(podman("port", identifier, f"{n}/tcp").rpartition(":")[2] or 0)
            for n in (8080, 8081)
        ]
        yield Container(identifier, *ports)
    finally:
        podman("rm", "--force", "--time=0", identifier, check=False)


def make_model(image: str, server: str, folder: Path) -> None:
    """Write a model that the image's own framework made into an empty folder."""
    folder.chmod(0o777)
    podman(
        *("run", "--rm", "--ulimit=nofile=1024:2048", "--ulimit=nproc=1000:1000"),
        *("--no-healthcheck", "--network=none", f"--volume={folder}:/mnt/models"),
        *("--workdir=/mnt/models", "--entrypoint=python", image, "-c", SMOKE[server].make_model),
    )
    for path in folder.iterdir():
        # Some libraries write what only the owner may read, and the server is another user.
        path.chmod(0o644)


def ask(served: Container, name: str, smoke: Smoke) -> tuple[Any, Any, int]:
    """Ask a model of one feature for two rows.

    Returns:
        The predictions of V1, the data of the first output of V2, and the rows of that of gRPC.

    Raises:
        ImageError: An answer is not 200.
    """
    values, datatype = list(smoke.values), smoke.datatype
    instances = {"instances": [[value] for value in values]}
    v1 = request(served.http_port, "POST", f"/v1/models/{name}:predict", instances)
    tensor = {"name": "x", "shape": [2, 1], "datatype": datatype, "data": values}
    v2 = request(served.http_port, "POST", f"/v2/models/{name}/infer", {"inputs": [tensor]})
    for answer in (v1, v2):
        if answer.status != 200:
            raise ImageError(f"status {answer.status}: {answer.body.decode()}")
    message = pb.ModelInferRequest(model_name=name)
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    contents: dict[str, Any] = {f"{datatype.lower()}_contents": raw}
    message.inputs.add(
        name="x",
        shape=[2, 1],
        datatype=datatype,
        contents=pb.InferTensorContents(**contents),
    )
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        rows = stub.ModelInfer(message, timeout=20).outputs[0].shape[0]
    return v1.json()["predictions"], v2.json()["outputs"][0]["data"], rows


def smoke_test(image: str, server: str) -> float:
    """Run an image, ask it over V1, V2 and gRPC, and stop it; give the seconds to readiness.

    Raises:
        ImageError: Something of it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_model(image, server, Path(folder))
        started = time.monotonic()
        options = [f"--volume={folder}:/mnt/models:ro"]
        with container(image, options, "--model_name=smoke", "--drain_delay_s=0") as served:
            served.wait_until_ready()
            ready_s = time.monotonic() - started
            predictions, data, rows = ask(served, "smoke", SMOKE[server])
            if (len(predictions), rows) != (2, 2):
                raise ImageError(f"two rows are answered with {predictions}, {data}, {rows}")
            if code := served.stop():
                raise ImageError(f"exit code {code} after SIGTERM:\n{served.logs()}")
    return ready_s


def prepare() -> bool:
    """Install the tools and have the base image; say whether it is a stand-in.

    Raises:
        ImageError: The tools or the base image cannot be had.
    """
    if reason := install_tools():
        raise ImageError(reason)
    prepare_store()
    return ensure_base()


def _timed(name: str, step: Callable[..., Any], *arguments: Any) -> Any:
    started = time.monotonic()
    result = step(*arguments)
    print(f"  {name}: {time.monotonic() - started:.0f} s", flush=True)
    return result


def main() -> None:
    """Build and try the images that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("servers", nargs="*", help="rows of the bake file (all)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a variable of it"
    )
    parser.add_argument(
        "--upstream", action="store_true", help="build what KServe's own are like, to compare"
    )
    arguments = parser.parse_args()
    try:
        rows = read_rows(dict(setting.split("=", 1) for setting in arguments.set))
        if unknown := set(arguments.servers) - set(rows):
            raise ImageError(f"no row {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
        is_stand_in = _timed("base image", prepare)
        base_mb = size_mb(base_name())
        kind = "a stand-in made of Debian packages, not to be shipped" if is_stand_in else "pulled"
        print(f"  {base_name()}: {base_mb:.0f} MB, {kind}")
        for name in arguments.servers or rows:
            print(name)
            image = _timed("build", build, rows[name])
            ready_s = _timed("try", smoke_test, image, name)
            size = size_mb(image)
            print(f"  ready after {ready_s:.1f} s; {size:.0f} MB, {size - base_mb:.0f} on the base")
            if arguments.upstream and name in UPSTREAM:
                size = size_mb(_timed("build of KServe's own", build_upstream, name))
                print(f"  KServe's own: {size:.0f} MB, {size - base_mb:.0f} on the base")
    except ImageError as error:
        sys.exit(f"images: {error}")


if __name__ == "__main__":
    main()
