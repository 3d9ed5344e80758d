"""The flags that say how a session is opened."""

import argparse

import pytest

from onnxserver.settings import SessionSettings, add_arguments, config_entry, from_args


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(argv)


def test_flags_become_settings() -> None:
    args = parsed(
        *("--providers", "CUDA", "CPU", "--intra_op_threads", "4", "--inter_op_threads", "2"),
        *("--optimization_level", "basic", "--optimized_model_path", "out.onnx"),
        *("--outputs", "a", "b"),
        *("--session_config", "session.a=1", "--session_config", "session.b=2"),
    )

    assert from_args(args) == SessionSettings(
        providers=["CUDA", "CPU"],
        intra_op_threads=4,
        inter_op_threads=2,
        optimization_level="basic",
        config={"session.a": "1", "session.b": "2"},
        outputs=["a", "b"],
        optimized_model_path="out.onnx",
    )


def test_flags_left_out_are_the_settings_left_out() -> None:
    assert from_args(parsed()) == SessionSettings(providers=["CPUExecutionProvider"], config={})


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--intra_op_threads", "0"], "expected an integer, 1 or more, got '0'"),
        (["--inter_op_threads", "x"], "expected an integer, 1 or more, got 'x'"),
        (["--optimization_level", "most"], "invalid choice: 'most'"),
        (["--session_config", "threads"], "expected KEY=VALUE"),
    ],
)
def test_a_wrong_flag_is_refused(
    argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*argv)

    assert reason in capsys.readouterr().err


def test_config_entries_are_keys_and_values() -> None:
    assert config_entry("session.a.b=x=y") == ("session.a.b", "x=y")
    assert config_entry("mlas.c=") == ("mlas.c", "")
    for text in ("session.a", "=1", "threads=1"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected KEY=VALUE"):
            config_entry(text)
