from typing import Any

import pytest

from kserve.errors import InvalidInput
from lgbserver.iterations import Iterations


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, Iterations(1, 2)),
        ({"num_iteration": 3}, Iterations(1, 3)),
        ({"num_iteration": -1}, Iterations(1, -1)),
        ({"start_iteration": 4, "num_iteration": 6}, Iterations(4, 6)),
    ],
)
def test_a_request_chooses_iterations(parameters: Any, expected: Iterations) -> None:
    assert Iterations(1, 2).of_request(parameters, 10) == expected


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (
            {"start_iteration": 10},
            "parameter 'start_iteration': expected 0 to 9, as the model has 10 iterations, got 10",
        ),
        (
            {"start_iteration": True},
            "parameter 'start_iteration': expected 0 to 9, as the model has 10 iterations, "
            "got True",
        ),
        (
            {"num_iteration": 0},
            "parameter 'num_iteration': expected 1 to 10, or -1 for all, got 0",
        ),
        (
            {"num_iteration": 3, "start_iteration": 8},
            "parameter 'num_iteration': expected 1 to 2, or -1 for all, got 3",
        ),
        (
            {"num_iteration": "2"},
            "parameter 'num_iteration': expected 1 to 10, or -1 for all, got '2'",
        ),
    ],
)
def test_names_what_are_no_iterations(parameters: Any, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Iterations().of_request(parameters, 10)

    assert str(caught.value) == reason
