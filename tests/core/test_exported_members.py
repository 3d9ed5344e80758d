"""The names that user code imports, and what importing them does."""

import importlib
import subprocess
import sys

import pytest

import kserve

# It starts processes.
pytestmark = pytest.mark.timeout(90)

NAMES = {
    "kserve": [
        *("BaseKServeModel", "InferInput", "InferOutput", "InferRequest", "InferResponse"),
        *("InferenceModel", "InferenceVerb", "Model", "ModelRepository", "ModelServer"),
        *("PredictorConfig", "PredictorProtocol", "RequestedOutput", "constants", "utils"),
    ],
    "kserve.constants.constants": ["FASTAPI_APP_IMPORT_STRING", "PredictorProtocol"],
    "kserve.context": ["get_predictor_config", "set_predictor_config"],
    "kserve.errors": [
        *("InferenceError", "InvalidInput", "ModelMissingError", "ModelNotFound", "ModelNotReady"),
        *("NoModelReady", "ServerNotLive", "ServerNotReady", "UnsupportedProtocol"),
        "WorkersShouldBeLessThanMaxWorkersError",
    ],
    "kserve.logging": ["KSERVE_LOG_CONFIG", "configure_logging", "logger", "trace_logger"],
    "kserve.metrics": [],
    "kserve.model": [
        *("BaseKServeModel", "InferenceModel", "InferenceVerb", "Model", "PredictorProtocol"),
        "append_forwardable_headers",
    ],
    "kserve.model_repository": ["MODEL_MOUNT_DIRS", "ModelRepository"],
    "kserve.model_server": ["ModelServer", "app", "parser"],
    "kserve.predictor_config": ["PredictorConfig"],
    "kserve.protocol.dataplane": ["DataPlane"],
    "kserve.protocol.model_repository_extension": ["ModelRepositoryExtension"],
    "kserve.protocol.infer_type": [
        *("InferInput", "InferOutput", "InferRequest", "InferResponse", "RequestedOutput"),
        *("deserialize_bytes_tensor", "serialize_byte_tensor"),
    ],
    "kserve.protocol.rest.openai": [
        *("ChatCompletionMessageParam", "ChatCompletionRequest", "ChatPrompt"),
        *("CompletionRequest", "OpenAIChatAdapterModel", "OpenAIEncoderModel"),
        *("OpenAIGenerativeModel", "OpenAIModel"),
    ],
    "kserve.protocol.rest.openai.errors": ["OpenAIError", "create_error_response"],
    "kserve.protocol.rest.openai.openai_chat_adapter_model": ["OpenAIChatAdapterModel"],
    "kserve.protocol.rest.openai.openai_model": [
        *("AsyncMappingIterator", "ChatPrompt", "OpenAIModel", "OpenAIGenerativeModel"),
    ],
    "kserve.protocol.rest.openai.types": ["ChatCompletion", "Completion", "Embedding", "Rerank"],
    "kserve.protocol.rest.server": ["RESTServer"],
    "kserve.testing": ["ServerProcess", "request", "serving"],
    "kserve.utils.numpy_codec": ["from_np_dtype", "to_np_dtype"],
    "kserve.utils.utils": [
        *("cpu_count", "generate_uuid", "get_predict_input", "get_predict_response"),
        *("create_response_cloudevent", "is_structured_cloudevent"),
        *("is_v1", "is_v2", "strtobool"),
    ],
}

# Prints the modules, threads, sockets and other files that an import brings, one by one.
IMPORT_SCRIPT = """\
import os, sys, threading
before = set(os.listdir("/proc/self/fd"))
import kserve, kserve.model_server, kserve.protocol.rest.server, kserve.testing
for fd in sorted(set(os.listdir("/proc/self/fd")) - before):
    try:
        print("open", os.readlink("/proc/self/fd/" + fd))
    except OSError:
        pass  # that of listdir itself
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        print("thread", thread.name)
for name in (
    *("pandas", "sklearn", "pydantic", "kubernetes", "fastapi", "scipy", "yaml"),
    *("msgspec", "openai", "kserve.protocol.rest.openai.types"),
):
    if name in sys.modules:
        print("module", name)
print("app", "_app" in vars(kserve.model_server) and kserve.model_server._app)
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in NAMES.items() for name in [*names, "__doc__"]],
)
def test_a_name_that_must_keep_working_is_there(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None


def test_all_lists_what_the_package_exports() -> None:
    listed = list(kserve.__all__)

    assert listed == sorted(listed, key=lambda name: (name.islower(), name))
    assert set(NAMES["kserve"]) <= set(listed)
    assert all(hasattr(kserve, name) for name in listed)


@pytest.mark.parametrize("module", ["kserve", "kserve.main", "kserve.cpu", "kserve.threads"])
def test_what_is_imported_before_threads_are_limited_loads_no_numpy(module: str) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print('numpy' in sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (completed.returncode, completed.stdout) == (0, "False\n")


@pytest.mark.parametrize(
    "first",
    ["import kserve", "import kserve.utils.utils", "import kserve.utils.numpy_codec"],
)
def test_utils_and_constants_have_their_names_whatever_is_imported_first(first: str) -> None:
    code = (
        f"{first}\nimport kserve\nfrom kserve import constants, utils\n"
        "import kserve.constants.constants as c, kserve.utils.utils as u\n"
        "print(utils.generate_uuid is u.generate_uuid, kserve.utils is utils)\n"
        "print(constants.PredictorProtocol is c.PredictorProtocol, kserve.errors.__name__)"
    )

    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )

    assert (completed.returncode, completed.stdout.split()) == (
        0,
        ["True", "True", "True", "kserve.errors"],
    )


def test_utils_and_constants_show_all_of_their_modules() -> None:
    constants = vars(importlib.import_module("kserve.constants.constants"))
    own = {name for name in constants if name.isupper() or name == "PredictorProtocol"}

    assert kserve.utils.__all__ == importlib.import_module("kserve.utils.utils").__all__
    assert set(kserve.constants.__all__) == own


def test_a_star_import_gives_all() -> None:
    namespace: dict[str, object] = {}
    exec("from kserve import *", namespace)

    assert set(namespace) - {"__builtins__"} == set(kserve.__all__)


def test_app_is_made_once_and_any_other_missing_name_is_an_error() -> None:
    server = importlib.import_module("kserve.model_server")

    assert server.app is server.app
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = server.no_such_name


def test_importing_brings_no_framework_no_file_no_thread_and_reads_no_command_line() -> None:
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_SCRIPT, "--workers", "x", "--help", "--nope"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "app None\n", "")
