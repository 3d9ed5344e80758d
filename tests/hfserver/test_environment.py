"""What is set before torch is loaded."""

import subprocess
import sys

from hfserver.environment import prepare_environment


def test_threads_of_openmp_sleep_while_they_wait_and_are_as_many_as_the_cpus() -> None:
    env: dict[str, str] = {}

    prepare_environment(env)

    assert env["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(env["OMP_NUM_THREADS"]) >= 1
    assert env["DISABLE_SAFETENSORS_CONVERSION"] == "1"
    assert env["TOKENIZERS_PARALLELISM"] == "false"


def test_what_is_set_already_stays() -> None:
    env = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}

    prepare_environment(env)

    assert (env["OMP_WAIT_POLICY"], env["OMP_NUM_THREADS"]) == ("ACTIVE", "7")


def test_the_module_loads_no_library_that_reads_the_environment() -> None:
    code = (
        "import sys, hfserver.environment; "
        "print([name for name in ('torch', 'numpy', 'transformers', 'tokenizers', 'scipy') "
        "if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
