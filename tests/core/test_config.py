"""The settings and the command line that they come from."""

import argparse
from dataclasses import asdict

import pytest

from kserve.config import (
    CloudEventConfig,
    ServerConfig,
    boolean,
    count,
    make_parser,
    port,
    positive,
    threads,
)
from kserve.predictor_config import PredictorConfig

DEFAULTS = {
    "host": "0.0.0.0",
    "http_port": 8080,
    "grpc_port": 8081,
    "enable_grpc": True,
    "grpc_max_send_message_length": 67108864,
    "grpc_max_receive_message_length": None,
    "grpc_max_concurrent_rpcs": None,
    "grpc_keepalive_time_s": 300,
    "grpc_keepalive_timeout_s": 20,
    "grpc_min_ping_interval_s": 10,
    "workers": 1,
    "max_concurrent_predicts": None,
    "max_inflight_requests": 1024,
    "max_batch_size": 512,
    "max_batch_delay_ms": 0.0,
    "max_queued_rows": 131072,
    "request_timeout_s": 300.0,
    "hang_timeout_s": 600.0,
    "max_asyncio_workers": None,
    "event_loop": "auto",
    "timeout_keep_alive_s": 65,
    "listen_early": False,
    "drain_delay_s": 5.0,
    "grace_period_s": 25,
    "max_request_bytes": 64 << 20,
    "max_inflight_bytes": None,
    "header_timeout_s": 10.0,
    "body_timeout_s": 30.0,
    "send_timeout_s": 60.0,
    "max_decompressed_bytes": 64 << 20,
    "cloudevents": {"type": "io.kserve.inference.response", "source": None, "merge": False},
    "enable_latency_logging": True,
    "configure_logging": True,
    "log_config_file": None,
    "log_format": "text",
    "model_name": "model",
    "predictor": None,
    "repository_api": None,
    "watch": False,
    "watch_interval_s": 5.0,
}


def test_no_flags_give_the_defaults() -> None:
    assert asdict(ServerConfig.from_argv([])) == DEFAULTS
    assert ServerConfig() == ServerConfig.from_argv([])


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        pytest.param(["--host", "127.0.0.1"], {"host": "127.0.0.1"}, id="host"),
        pytest.param(["--http_port", "0"], {"http_port": 0}, id="http_port"),
        pytest.param(["--grpc_port=9001"], {"grpc_port": 9001}, id="grpc_port"),
        pytest.param(["--model_name", "iris"], {"model_name": "iris"}, id="model_name"),
        pytest.param(
            ["--workers", "0"], {"workers": 0}, id="workers as KServe's controller has it"
        ),
        pytest.param(
            ["--max_concurrent_predicts", "4"],
            {"max_concurrent_predicts": 4},
            id="max_concurrent_predicts",
        ),
        pytest.param(
            ["--max_inflight_requests", "9"],
            {"max_inflight_requests": 9},
            id="max_inflight_requests",
        ),
        pytest.param(["--max_batch_size", "8"], {"max_batch_size": 8}, id="max_batch_size"),
        pytest.param(
            ["--max_batch_delay_ms", "2.5"], {"max_batch_delay_ms": 2.5}, id="max_batch_delay_ms"
        ),
        pytest.param(["--max_queued_rows", "9"], {"max_queued_rows": 9}, id="max_queued_rows"),
        pytest.param(["--request_timeout_s", "0"], {"request_timeout_s": 0}, id="no timeout"),
        pytest.param(["--hang_timeout_s", "1.5"], {"hang_timeout_s": 1.5}, id="hang_timeout_s"),
        pytest.param(
            ["--max_asyncio_workers", "3"], {"max_asyncio_workers": 3}, id="max_asyncio_workers"
        ),
        pytest.param(["--event-loop", "asyncio"], {"event_loop": "asyncio"}, id="event-loop"),
        pytest.param(["--event_loop", "uvloop"], {"event_loop": "uvloop"}, id="event_loop"),
        pytest.param(
            ["--timeout-keep-alive", "5"], {"timeout_keep_alive_s": 5}, id="timeout-keep-alive"
        ),
        pytest.param(
            ["--max_request_bytes", "1000"], {"max_request_bytes": 1000}, id="max_request_bytes"
        ),
        pytest.param(
            ["--max_inflight_bytes", "1000"],
            {"max_inflight_bytes": 1000},
            id="max_inflight_bytes",
        ),
        pytest.param(
            ["--header_timeout_s", "0.5"], {"header_timeout_s": 0.5}, id="header_timeout_s"
        ),
        pytest.param(["--body_timeout_s", "60"], {"body_timeout_s": 60.0}, id="body_timeout_s"),
        pytest.param(["--send_timeout_s", "9"], {"send_timeout_s": 9.0}, id="send_timeout_s"),
        pytest.param(
            ["--max_decompressed_bytes", "1000"],
            {"max_decompressed_bytes": 1000},
            id="max_decompressed_bytes",
        ),
        pytest.param(["--listen_early"], {"listen_early": True}, id="listen_early"),
        pytest.param(["--drain_delay_s", "0.5"], {"drain_delay_s": 0.5}, id="drain_delay_s"),
        pytest.param(["--grace_period_s", "0"], {"grace_period_s": 0}, id="grace_period_s"),
        pytest.param(["--grace_period", "0"], {"grace_period_s": 0}, id="grace_period"),
        pytest.param(
            ["--grpc_max_send_message_length", "7"],
            {"grpc_max_send_message_length": 7},
            id="grpc_max_send_message_length",
        ),
        pytest.param(
            ["--grpc_max_receive_message_length", "7"],
            {"grpc_max_receive_message_length": 7},
            id="grpc_max_receive_message_length",
        ),
        pytest.param(
            ["--grpc_max_concurrent_rpcs", "7"],
            {"grpc_max_concurrent_rpcs": 7},
            id="grpc_max_concurrent_rpcs",
        ),
        pytest.param(
            ["--grpc_keepalive_time_s", "7"],
            {"grpc_keepalive_time_s": 7},
            id="grpc_keepalive_time_s",
        ),
        pytest.param(
            ["--grpc_keepalive_timeout_s", "7"],
            {"grpc_keepalive_timeout_s": 7},
            id="grpc_keepalive_timeout_s",
        ),
        pytest.param(
            ["--grpc_min_ping_interval_s", "7"],
            {"grpc_min_ping_interval_s": 7},
            id="grpc_min_ping_interval_s",
        ),
        pytest.param(["--enable_grpc", "false"], {"enable_grpc": False}, id="enable_grpc"),
        pytest.param(
            ["--enable_latency_logging", "No"],
            {"enable_latency_logging": False},
            id="enable_latency_logging",
        ),
        pytest.param(
            ["--configure_logging", "off"], {"configure_logging": False}, id="configure_logging"
        ),
        pytest.param(
            ["--log_config_file", "x.yaml"], {"log_config_file": "x.yaml"}, id="log_config_file"
        ),
        pytest.param(["--log_format", "json"], {"log_format": "json"}, id="log_format"),
        pytest.param(["--repository_api", "false"], {"repository_api": False}, id="repository_api"),
        pytest.param(["--watch"], {"watch": True}, id="watch"),
        pytest.param(["--watch", "true"], {"watch": True}, id="watch with a value"),
        pytest.param(["--watch_interval_s", "0.5"], {"watch_interval_s": 0.5}, id="interval"),
        pytest.param(
            ["--predictor_host", "iris.default"],
            {
                "predictor": {
                    "predictor_host": "iris.default",
                    "predictor_protocol": "v1",
                    "predictor_use_ssl": False,
                    "predictor_request_timeout_seconds": 600,
                    "predictor_request_retries": 0,
                    "predictor_health_check": False,
                }
            },
            id="predictor",
        ),
        pytest.param(
            [
                *("--predictor_host", "iris", "--predictor_protocol", "grpc-v2"),
                *("--predictor_use_ssl", "true", "--predictor_request_timeout_seconds", "7"),
                *("--predictor_request_retries", "2", "--enable_predictor_health_check"),
            ],
            {
                "predictor": {
                    "predictor_host": "iris",
                    "predictor_protocol": "grpc-v2",
                    "predictor_use_ssl": True,
                    "predictor_request_timeout_seconds": 7,
                    "predictor_request_retries": 2,
                    "predictor_health_check": True,
                }
            },
            id="predictor with all its flags",
        ),
        pytest.param(["--predictor_protocol", "v2"], {}, id="predictor flags without a host"),
    ],
)
def test_a_flag_changes_its_setting_alone(argv: list[str], changed: dict[str, object]) -> None:
    assert asdict(ServerConfig.from_argv(argv)) == {**DEFAULTS, **changed}


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["--access_log_format", "%h"], id="access_log_format"),
        pytest.param(["--enable_docs_url", "true"], id="enable_docs_url"),
        pytest.param(["--max_threads", "8"], id="max_threads"),
        pytest.param(["--protocol", "v2"], id="protocol"),
        pytest.param(["--epochs", "3", "data.csv"], id="the program's own"),
        pytest.param(["--http", "9"], id="an abbreviation"),
        pytest.param(["-f", "kernel.json"], id="a short flag"),
    ],
)
def test_what_has_no_effect_is_accepted(argv: list[str]) -> None:
    assert asdict(ServerConfig.from_argv(argv)) == DEFAULTS


def test_the_command_line_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["serve.py", "--http_port", "9000", "--mine", "x"])

    config = ServerConfig.from_argv()

    assert asdict(config) == {**DEFAULTS, "http_port": 9000}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(
            ["--http_port", "70000"],
            "argument --http_port: expected an integer, 0 to 65535, got '70000'",
            id="port",
        ),
        pytest.param(
            ["--model_name", ""],
            "argument --model_name: expected a text, got an empty one",
            id="no name",
        ),
        pytest.param(
            ["--workers", "-1"],
            "argument --workers: expected an integer, 0 or more, got '-1'",
            id="count",
        ),
        pytest.param(
            ["--max_concurrent_predicts", "0"],
            "argument --max_concurrent_predicts: expected an integer, 1 or more, got '0'",
            id="positive",
        ),
        pytest.param(
            ["--max_concurrent_predicts", "many"],
            "argument --max_concurrent_predicts: expected an integer, 1 or more, got 'many'",
            id="no integer",
        ),
        pytest.param(
            ["--enable_grpc", "maybe"],
            "argument --enable_grpc: expected true or false, got 'maybe'",
            id="boolean",
        ),
    ],
)
def test_a_value_that_does_not_fit_ends_the_program_with_the_reason(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        ServerConfig.from_argv(argv)

    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f": error: {message}")


def test_the_parser_is_a_parent_of_a_programs_own() -> None:
    own = argparse.ArgumentParser(parents=[make_parser()])
    own.add_argument("--threshold", type=float)

    args = own.parse_args(["--threshold", "0.5", "--model_name", "iris", "--workers", "1"])

    assert args.threshold == 0.5
    assert ServerConfig.from_args(args) == ServerConfig(model_name="iris")


def test_every_flag_has_a_word_of_help_that_renders() -> None:
    text = argparse.ArgumentParser(parents=[make_parser()]).format_help()

    assert "REST port, 0 for a free one (8080)" in text


@pytest.mark.parametrize("text", ["y", "YES", "t", "True", "on", "1"])
def test_reads_a_yes(text: str) -> None:
    assert boolean(text) is True


@pytest.mark.parametrize("text", ["n", "NO", "f", "False", "off", "0"])
def test_reads_a_no(text: str) -> None:
    assert boolean(text) is False


def test_bounds_are_included() -> None:
    assert [count("0"), positive("1"), port("0"), port("65535")] == [0, 1, 0, 65535]


def test_a_predictor_config_has_the_short_names_too() -> None:
    config = PredictorConfig("iris:80", "v2", True, 7, 2, True)

    short = (config.protocol, config.use_ssl, config.timeout, config.retries)

    assert short == ("v2", True, 7, 2)
    assert config.predictor_base_url == "https://iris:80"
    assert PredictorConfig("iris").predictor_base_url == "http://iris"


@pytest.mark.parametrize(
    ("env", "config"),
    [
        pytest.param({}, CloudEventConfig(), id="nothing"),
        pytest.param({"CE_TYPE": "t"}, CloudEventConfig(type="t"), id="type"),
        pytest.param({"CE_SOURCE": "s"}, CloudEventConfig(source="s"), id="source"),
        pytest.param({"CE_MERGE": "True"}, CloudEventConfig(merge=True), id="merge"),
        pytest.param({"CE_MERGE": "false"}, CloudEventConfig(), id="no merge"),
    ],
)
def test_the_environment_says_what_events_answer_events(
    env: dict[str, str], config: CloudEventConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CE_TYPE", "CE_SOURCE", "CE_MERGE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    assert ServerConfig.from_argv([]).cloudevents == config
    assert CloudEventConfig.from_env(env) == config


def test_reads_a_number_of_threads() -> None:
    assert [threads(text) for text in ("1", "3", "-1")] == [1, 3, -1]
    for text in ("0", "-2", "two"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected an integer, 1 or more"):
            threads(text)
