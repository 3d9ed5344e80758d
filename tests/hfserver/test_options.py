"""The flags beside those of every server."""

import argparse
import re

import pytest
from tests.hfserver.asking import parse

from hfserver.detect import Task
from hfserver.options import Options, add_arguments, is_upstream


def test_without_flags_all_is_the_default() -> None:
    assert parse() == Options()


def test_the_flags_of_the_original_keep_their_meaning() -> None:
    options = parse(
        *("--model_id", "owner/name", "--model_revision", "v1", "--tokenizer_revision", "v2"),
        *("--max_length", "128", "--disable_lower_case", "--disable_special_tokens"),
        *("--trust_remote_code", "--tensor_input_names", "input_ids", "--backend", "huggingface"),
        *("--return_token_type_ids", "--return_offsets_mapping", "--return_probabilities"),
        *("--disable_log_requests", "--max_log_len", "10", "--task", "fill_mask"),
        *("--dtype", "half"),
    )

    assert options == Options(
        model_id="owner/name",
        model_revision="v1",
        tokenizer_revision="v2",
        max_length=128,
        do_lower_case=False,
        add_special_tokens=False,
        trust_remote_code=True,
        return_offsets_mapping=True,
        return_probabilities=True,
        max_log_len=10,
        task=Task.FILL_MASK,
        dtype="half",
    )


def test_our_own_flags() -> None:
    options = parse(
        *("--pooling", "cls", "--max_batch_tokens", "512", "--truncation", "none"),
        *("--rich_results", "--allow_pickle", "--max_queued_tokens", "7", "--enable_log_requests"),
    )

    assert options == Options(
        pooling="cls",
        max_batch_tokens=512,
        truncation="none",
        rich_results=True,
        allow_pickle=True,
        max_queued_tokens=7,
        log_requests=True,
    )


@pytest.mark.parametrize("flag", ["--max_model_len", "--max-model-len"])
def test_the_length_has_more_names(flag: str) -> None:
    assert parse(flag, "64").max_length == 64


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--backend", "vllm"], "install the package vllm where there is a GPU"),
        (["--backend", "onnx"], "expected auto, huggingface, upstream, got 'onnx'"),
        (["--upstream_url", "h:1"], "expected http://HOST:PORT or https://HOST, got 'h:1'"),
        (["--task", "question_answering"], "invalid choice: 'question_answering'"),
        (
            ["--return_probabilities", "--return_raw_logits"],
            "not allowed with argument --return_probabilities",
        ),
    ],
)
def test_refuses(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*argv)

    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], False),
        (["--backend", "huggingface"], False),
        (["--upstream_url", "http://h:1"], True),
        (["--backend", "upstream", "--upstream_url", "http://h:1"], True),
    ],
)
def test_another_server_is_meant_where_there_is_its_url(argv: list[str], expected: bool) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)

    assert is_upstream(parser.parse_args(argv)) is expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--backend", "upstream"], "--backend upstream: expected --upstream_url too, got none"),
        (
            ["--backend", "huggingface", "--upstream_url", "http://h:1"],
            "--backend huggingface: expected no --upstream_url, got one",
        ),
        (
            ["--model_id", "a/b", "--upstream_url", "http://h:1"],
            "--upstream_url: expected no --model_id, got one; see --upstream_model",
        ),
    ],
)
def test_flags_of_another_server_fit_together(argv: list[str], message: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)

    with pytest.raises(ValueError, match=re.escape(message)):
        is_upstream(parser.parse_args(argv))
