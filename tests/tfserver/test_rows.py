"""Which signatures have rows that requests may put together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tests.tfserver.models import Spec, save_words, saved

from tfserver.rows import find_rows
from tfserver.saved_model import load_saved_model

TRIAL = "in a trial of two rows, "
INDEPENDENT = (True, f"{TRIAL}none depended on the other")
DEPENDENT = (False, f"{TRIAL}one depended on the other")


def one_row_alone(x: Any) -> Any:
    tf.debugging.assert_equal(tf.shape(x)[0], 1)
    return {"y": x}


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        pytest.param(lambda x: {"y": tf.nn.relu(x)}, [None, 4], INDEPENDENT, id="rows"),
        pytest.param(lambda x: {"y": x - tf.reduce_mean(x, 0)}, [None, 4], DEPENDENT, id="mean"),
        pytest.param(one_row_alone, [None, 4], DEPENDENT, id="one row alone"),
        pytest.param(
            lambda x: {"y": tf.io.decode_raw(tf.as_string(x), tf.int64)},
            [None],
            (False, "no trial succeeded"),
            id="no value that is invented",
        ),
        pytest.param(
            lambda x: {"y": x, "n": tf.size(x)},
            [None, 4],
            (False, "axis 0 of 'n' is not of any length"),
            id="an output without axes",
        ),
        pytest.param(
            lambda x: {"y": x}, [1, 4], (False, "axis 0 of 'x' is not of any length"), id="fixed"
        ),
        pytest.param(
            lambda x: {"y": x}, None, (False, "axis 0 of 'x' is not of any length"), id="unknown"
        ),
    ],
)
def test_requests_run_together_where_no_row_depends_on_another(
    tmp_path: Path, function: Callable[..., Any], shape: Any, expected: tuple[bool, str]
) -> None:
    directory = saved(tmp_path, function, Spec(shape, tf.float32, name="x"))
    functions = load_saved_model(directory / "saved_model.pb", "serving_default")

    assert find_rows(functions["serving_default"]) == expected


def test_no_trial_is_made_of_what_changes_a_state_or_takes_nothing(tmp_path: Path) -> None:
    functions = load_saved_model(save_words(tmp_path) / "saved_model.pb", "serving_default")

    found = {name: find_rows(function) for name, function in functions.items()}

    assert found == {
        "serving_default": INDEPENDENT,
        "cut": INDEPENDENT,
        "count": (False, "it has no input"),
        "add": (False, "a call changes what later ones give"),
        "centred": DEPENDENT,
    }
    assert functions["count"].run({}) == {"total": 0}
