"""The flags."""

import argparse
from typing import Any

import pytest

from tfserver import Settings
from tfserver.settings import add_arguments, from_args


def parsed(*argv: str) -> Settings:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return from_args(parser.parse_args(argv))


def test_without_flags_the_settings_are_the_default_ones() -> None:
    assert parsed() == Settings()


def test_every_flag_is_a_setting() -> None:
    settings = parsed(
        *("--signature_name", "s", "--inputs", "a", "b:1", "--outputs", "c"),
        *("--intra_op_threads", "2", "--inter_op_threads", "3", "--allow_lambda"),
    )

    assert settings == Settings("s", ["a", "b:1"], ["c"], 2, 3, True)


@pytest.mark.parametrize("flag", ["--intra_op_threads", "--inter_op_threads"])
def test_there_is_at_least_one_thread(flag: str, capsys: Any) -> None:
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parsed(flag, "0")
