"""TensorFlow's start: in processes of their own, as it starts once in each."""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kserve.cpu import cpu_count
from tfserver import runtime
from tfserver.runtime import without_noise
from tfserver.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def ran(code: str, **env: str) -> tuple[list[str], str]:
    """Run code after a start of the runtime; gives the lines that it prints, and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        # TensorFlow runs here, too, and this process has the variable for that.
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"} | env,
    )
    return done.stdout.splitlines(), done.stderr


PRINT_THREADS = """
import tensorflow as tf
threads = tf.config.threading
print(threads.get_intra_op_parallelism_threads(), threads.get_inter_op_parallelism_threads())
tf.function(lambda: tf.constant(1.0) + 1.0)()
"""
START = "from tfserver import runtime\nfrom tfserver.settings import Settings\n"


def test_it_starts_without_a_word_and_with_as_many_threads_as_there_are_cpus() -> None:
    code = f"{START}runtime.start(Settings())\nruntime.start(Settings()){PRINT_THREADS}"

    assert ran(code) == ([f"{cpu_count()} {cpu_count()}"], "")


def test_it_has_the_threads_that_it_was_first_started_with() -> None:
    first = "runtime.start(Settings(intra_op_threads=3, inter_op_threads=5))\n"
    later = "runtime.start(Settings(intra_op_threads=2, inter_op_threads=5))"

    printed, stderr = ran(START + first + later + PRINT_THREADS)

    assert printed == ["3 5"]
    assert "TensorFlow runs with 3 threads of one operation and 5 operations at a time" in stderr


def test_what_a_program_has_set_up_itself_is_left_as_it_is() -> None:
    own = "import tensorflow\ntensorflow.constant(1.0)\n"
    # The first number is the machine's choice.
    printed, stderr = ran(f"{START}{own}runtime.start(Settings(inter_op_threads=5)){PRINT_THREADS}")

    assert not printed[0].endswith("5")
    assert "TensorFlow runs already, and is left as it is" in stderr


def test_memory_of_devices_grows_as_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    devices = ["GPU:0", "GPU:1"]
    calls: list[Any] = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: devices)
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda *given: calls.append(given)
    )
    for name in ("set_intra_op_parallelism_threads", "set_inter_op_parallelism_threads"):
        monkeypatch.setattr(tf.config.threading, name, lambda n_threads: None)

    runtime._set_up(Settings())

    assert calls == [("GPU:0", True), ("GPU:1", True)]


def test_its_own_words_are_held_back_and_all_others_come_through() -> None:
    lines = [
        b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
        b"I0000 00:00:1795895786.425909   26075 port.cc:153] oneDNN custom operations are on.\n",
        b"E0000 00:00:1795895786.425909   26075 cuda_dnn.cc:8310] Unable to register\n",
        b"another line\n",
        b"Information in the middle: I0000 port.cc:153] \xff\n",
    ]
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with pytest.raises(KeyError), without_noise():
                for line in lines:
                    os.write(2, line)
                raise KeyError
            os.write(2, b"later\n")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)

        assert file.read() == lines[3] + lines[4] + b"later\n"


def test_two_distributions_of_it_are_one_too_many(tmp_path: Path) -> None:
    for name in ("tensorflow", "tensorflow_cpu"):
        info = tmp_path / f"{name}-2.21.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name.replace('_', '-')}\nVersion: 2.21.0\n")

    _, stderr = ran(f"{START}runtime.start(Settings())", PYTHONPATH=str(tmp_path))

    assert "tensorflow and tensorflow-cpu are both installed, and have written the same" in stderr


def test_without_it_the_reason_is_clear(tmp_path: Path) -> None:
    hide = "import sys\nsys.modules['tensorflow'] = None\n"
    code = f"{START}{hide}try:\n    runtime.start(Settings())\nexcept Exception as e:\n    print(e)"

    printed, _ = ran(code)

    assert printed == ["tensorflow is not installed; tfserver installs it on Python 3.11 to 3.13"]


def test_keras_runs_on_it_whatever_else_the_machine_uses(tmp_path: Path) -> None:
    code = f"{START}runtime.start(Settings())\n"
    code += "import tensorflow as tf\nprint(tf.keras.backend.backend())"

    assert ran(code, KERAS_BACKEND="jax")[0] == ["tensorflow"]


def test_in_a_log_of_debugging_it_says_all(tmp_path: Path) -> None:
    code = f"import logging\nlogging.getLogger('kserve').setLevel({logging.DEBUG})\n"

    _, stderr = ran(f"{code}{START}runtime.start(Settings()){PRINT_THREADS}")

    assert "This TensorFlow binary is optimized" in stderr
