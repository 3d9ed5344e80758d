import argparse

import pytest

from kserve.pickles import add_allow_pickle, is_pickle_allowed


@pytest.mark.parametrize(
    ("allowed", "variable", "expected"),
    [
        pytest.param(None, "", False, id="unset"),
        pytest.param(None, "True", True, id="the environment"),
        pytest.param(None, "1", False, id="another word"),
        pytest.param(True, "", True, id="the argument"),
        pytest.param(False, "true", False, id="the argument wins"),
    ],
)
def test_pickles_are_allowed_by_the_argument_or_the_environment(
    allowed: bool | None, variable: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSERVE_ALLOW_PICKLE", variable)

    assert is_pickle_allowed(allowed) is expected


def test_pickles_are_allowed_by_a_flag() -> None:
    parser = argparse.ArgumentParser()
    add_allow_pickle(parser)

    assert parser.parse_args(["--allow_pickle"]).allow_pickle is True
    assert parser.parse_args([]).allow_pickle is False
