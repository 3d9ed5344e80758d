"""Does the image of a server do as a container what KServe and Kubernetes want of it?"""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import images
import pytest
from images import Container
from tests.images import manifests
from tests.images.load import Load

from kserve.testing import request

RUNTIME = manifests.runtimes()["kserve-sklearnserver"]
# Those of the runtime, as KServe fills them in.
ARGUMENTS = [
    argument.replace("{{.Name}}", "m") for argument in manifests.container(RUNTIME)["args"]
]


@contextmanager
def _served(image: str, model_dir: Path, *options: str, drain_s: float = 0) -> Iterator[Container]:
    mount = f"--volume={model_dir}:/mnt/models:ro"
    arguments = [*ARGUMENTS, f"--drain_delay_s={drain_s}"]
    with images.container(image, [mount, *options], *arguments) as served:
        served.wait_until_ready()
        yield served


def test_it_answers_v1_v2_and_grpc_with_hardly_any_rights(
    sklearn_image: str, model_dir: Path
) -> None:
    with _served(sklearn_image, model_dir) as served:
        answers = images.ask(served, "m", images.SMOKE["sklearnserver"])
        user = served.execute("id", "-u"), served.execute("id", "-g")
        status = served.execute("cat", "/proc/1/status")
        limit = served.execute("sh", "-c", "cat /sys/fs/cgroup/memory*/memory.limit_in_bytes "
                               "/sys/fs/cgroup/memory.max 2>/dev/null || true")  # fmt: skip
        with pytest.raises(images.ImageError, match="Read-only file system"):
            served.execute("touch", "/opt/venv/new")
        (inspected,) = json.loads(images.podman("image", "inspect", sklearn_image))
        healthy = served.execute(*inspected["Healthcheck"]["Test"][1:])
        code = served.stop()

    assert answers == ([0, 1], [0, 1], 2)
    assert user == ("12345", "0")
    assert [line.split()[1] for line in status.splitlines() if line.startswith("Cap")] == [
        "0000000000000000"
    ] * 5
    assert str(2**30) in limit.split()
    assert healthy == ""
    assert code == 0


def test_the_image_says_what_it_is(sklearn_image: str) -> None:
    (inspected,) = json.loads(images.podman("image", "inspect", sklearn_image))
    config = inspected["Config"]

    assert config["Entrypoint"] == ["python", "-m", "sklearnserver", "--model_dir=/mnt/models"]
    assert config["User"] == "1000:0"
    assert set(config["ExposedPorts"]) == {"8080/tcp", "8081/tcp"}
    assert config["StopSignal"] in ("SIGTERM", "15")
    labels = {
        key.removeprefix("org.opencontainers.image."): v for key, v in config["Labels"].items()
    }
    assert labels["title"] == "sklearnserver"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"] == images.read_rows()["sklearnserver"].args["VERSION"]


LOOK_AROUND = """
import importlib.util, pathlib, shutil, sys
site = pathlib.Path(sys.prefix, "lib", "python3.11", "site-packages")
sources = [path for path in site.rglob("*.py")]
compiled = [path for path in sources
            if (path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc").exists()]
stdlib = pathlib.Path(importlib.util.cache_from_source(pathlib.__file__))
found = [tool for tool in ("gcc", "cc", "g++", "make", "uv", "git") if shutil.which(tool)]
print(len(sources) > 1000, len(sources) - len(compiled), stdlib.exists(), found,
      [name for name in ("/src", "/opt/uv", "/root/.cache", "/tmp/.cache")
       if pathlib.Path(name).exists()])
"""


def test_it_holds_compiled_modules_and_neither_tools_nor_caches(sklearn_image: str) -> None:
    assert _python(sklearn_image, LOOK_AROUND, "--user=0:0") == "True 0 True [] []"


def test_no_module_of_scikit_learn_misses_the_tests_that_were_left_out(sklearn_image: str) -> None:
    count = _python(
        sklearn_image,
        "from sklearn.utils import all_estimators; print(len(all_estimators()) > 150)",
    )

    assert count == "True"


def _python(image: str, code: str, *options: str) -> str:
    return images.podman(
        *("run", "--rm", "--ulimit=nofile=1024:2048", "--ulimit=nproc=1000:1000"),
        *("--no-healthcheck", "--network=none", *images.RESTRICTIONS, *options),
        *("--entrypoint=python", image, "-W", "ignore", "-c", code),
    )


def test_it_imports_nothing_from_the_one_folder_that_can_be_written_to(sklearn_image: str) -> None:
    plant = "echo 'raise SystemExit(9)' >/tmp/orjson.py"
    printed = images.podman(
        *("run", "--rm", "--ulimit=nofile=1024:2048", "--ulimit=nproc=1000:1000"),
        *("--no-healthcheck", "--network=none", *images.RESTRICTIONS, "--entrypoint=sh"),
        *(sklearn_image, "-c", f"{plant} && python -m sklearnserver --help"),
    )

    assert "--model_dir" in printed


def test_without_a_model_it_ends_and_says_why(sklearn_image: str) -> None:
    with images.container(sklearn_image, [], "--model_dir_wait_s=0") as served:
        code = images.podman("wait", served.id)

        assert code == "1"
        assert "/mnt/models" in served.logs().splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "first"), [([], "python"), (["--init"], "catatonit")], ids=["process 1", "init"]
)
def test_sigterm_under_load_fails_no_request(
    sklearn_image: str, model_dir: Path, options: list[str], first: str
) -> None:
    with _served(sklearn_image, model_dir, *options, drain_s=3) as served:
        assert served.execute("cat", "/proc/1/comm") in (first, "podman-init")
        load = Load(served)
        load.start()
        images.podman("kill", "--signal=TERM", served.id)
        load.join()
        code = images.podman("wait", served.id)

    assert load.failures == []
    assert min(load.answered.values()) > 0
    assert code == "0"


SIDECAR = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
while not os.path.exists("/mnt/go"):
    time.sleep(0.1)
os.symlink(f"/proc/{os.getpid()}/root/models", "/mnt/models")
signal.pause()
"""


@contextmanager
def _model_image(image: str, model_dir: Path, mount: str) -> Iterator[str]:
    """Run what KServe runs beside a server for a model in an OCI image."""
    identifier = images.podman(
        *("run", "--detach", "--ulimit=nofile=1024:2048", "--ulimit=nproc=1000:1000"),
        *("--no-healthcheck", "--network=none", *images.RESTRICTIONS, mount),
        *(f"--volume={model_dir}:/models:ro", "--entrypoint=python", image, "-c", SIDECAR),
    ).splitlines()[-1]
    try:
        yield identifier
    finally:
        images.podman("rm", "--force", "--time=0", identifier, check=False)


def test_a_model_that_a_sidecar_links_late_is_served_by_what_is_not_process_1(
    sklearn_image: str, model_dir: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    mount = f"--volume={shared}:/mnt"
    with _model_image(sklearn_image, model_dir, mount) as sidecar:
        options = [mount, f"--pid=container:{sidecar}"]
        arguments = [*ARGUMENTS, "--drain_delay_s=3"]
        with images.container(sklearn_image, options, *arguments) as served:
            _wait_for_log(served, "/mnt/models")
            loading = request(served.http_port, "GET", "/v2/health/live").status
            (shared / "go").touch()
            served.wait_until_ready()
            first = served.execute("sh", "-c", "tr '\\0' ' ' </proc/1/cmdline")
            load = Load(served)
            load.start()
            images.podman("kill", "--signal=TERM", served.id)
            load.join()
            code = images.podman("wait", served.id)

    assert loading == 200
    assert "sklearnserver" not in first
    assert load.failures == []
    assert code == "0"


def _wait_for_log(served: Container, text: str) -> None:
    """Wait until the server has written a text."""
    command = ["podman", "logs", "--follow", served.id]
    with subprocess.Popen(
        command, env=images.environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        assert process.stdout is not None
        found = any(text in line for line in process.stdout)
        process.kill()
        timer.cancel()
    assert found, served.logs()
