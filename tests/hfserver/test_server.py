"""The server as a process: its command line, and where its models come from."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.hfserver.asking import MASKED, TEXTS, approximate, v1
from transformers import pipeline

from kserve.testing import ServerProcess

# It starts processes, each of which imports torch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_python_m_kserve_finds_the_server(directories: dict[str, Path]) -> None:
    with ServerProcess("kserve", str(directories["classes"]), "--rich_results") as server:
        models = server.request("GET", "/v1/models").json()

    assert [model["id"] for model in models["data"]] == ["model"]
    assert models["models"] == ["model"]
    assert "config.json is served by hfserver" in server.stderr


def test_a_directory_of_models_serves_all_of_them(directories: dict[str, Path]) -> None:
    root = directories["classes"].parent

    with ServerProcess("hfserver", "--model_dir", str(root)) as server:
        answers = {
            name: server.request("POST", f"/v1/models/{name}:predict", {"instances": [MASKED]})
            for name in directories
        }

    assert {name: answer.status for name, answer in answers.items()} == dict.fromkeys(
        directories, 200
    )


def cached(directory: Path, home: Path) -> dict[str, str]:
    """Put a model into a cache of the hub; gives the environment that has nothing else."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = home / "hub" / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(directory, repository / "snapshots" / revision)
    return {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def test_a_model_of_the_hub_is_taken_from_its_cache(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    env = cached(directories["classes"], tmp_path)
    flags = ("--model_id", "owner/tiny", "--model_name", "m", "--rich_results")

    with ServerProcess("hfserver", *flags, env=env) as server:
        predictions = v1(server, TEXTS)

    reference = pipeline("text-classification", model=str(directories["classes"]))
    assert predictions == approximate(reference(TEXTS))


def test_a_model_that_the_hub_does_not_have_ends_the_start(tmp_path: Path) -> None:
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    local = ("--host", "127.0.0.1", "--http_port", "0", "--grpc_port", "0")

    done = subprocess.run(
        [sys.executable, "-m", "hfserver", "--model_id", "owner/other", *local],
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
    )

    assert done.returncode == 1
    assert "owner/other" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("files", "flags", "reason"),
    [
        pytest.param(
            {"config.json": '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'},
            [],
            "expected *.safetensors",
            id="generative",
        ),
        pytest.param(
            {"config.json": '{"architectures": ["BertForQuestionAnswering"]}'},
            [],
            "question_answering is not served",
            id="another task",
        ),
        pytest.param({"a.txt": ""}, [], "no model file", id="nothing"),
        pytest.param(
            {"config.json": '{"architectures": ["BertModel"], "model_type": "bert"}'},
            [],
            "expected *.safetensors",
            id="no weights",
        ),
    ],
)
def test_a_failed_start_says_why(
    files: dict[str, str], flags: list[str], reason: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    done = subprocess.run(
        [
            *(sys.executable, "-m", "hfserver", "--model_dir", str(tmp_path), "--http_port", "0"),
            *("--grpc_port", "0", "--host", "127.0.0.1", "--model_dir_wait_s", "0", *flags),
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )

    assert done.returncode == 1
    assert reason in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(
            ["--predictor_host", "h"], "predicts itself and takes no predictor", id="host"
        ),
        pytest.param(["--backend", "vllm"], "install the package vllm", id="vllm"),
        pytest.param(["--backend", "upstream"], "expected --upstream_url too", id="no url"),
        pytest.param(["--tasks", "x"], "did you mean --task?", id="misspelt"),
    ],
)
def test_a_wrong_command_line_ends_with_code_2(flags: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hfserver", "--model_dir", "x", *flags],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, message in done.stderr) == (2, True)


def test_texts_are_logged_only_if_asked_for(directories: dict[str, Path]) -> None:
    flags = ("--model_dir", str(directories["classes"]), "--model_name", "m")
    with ServerProcess("hfserver", *flags) as silent:
        v1(silent, TEXTS)
        silent.stop(signal.SIGTERM)
    with ServerProcess("hfserver", *flags, "--enable_log_requests", "--max_log_len", "7") as server:
        v1(server, TEXTS)
        server.stop(signal.SIGTERM)

    assert "the cat" not in silent.stderr
    assert "['the cat', 'Anna ca', 'far awa']" in server.stderr
