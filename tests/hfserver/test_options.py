"""The flags beside those of every server."""

import argparse
import re
from typing import Any

import pytest
from tests.hfserver.asking import parse

from hfserver.detect import Task, supported_tasks
from hfserver.options import Options, add_arguments, is_upstream
from hfserver.server import HuggingFaceServer


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


# Each flag of KServe's Hugging Face server, as its manual writes it, and what it changes here.
UPSTREAM_FLAGS: list[tuple[str, dict[str, Any]]] = [
    ("--model_id owner/name", {"model_id": "owner/name"}),
    ("--model_revision v1", {"model_revision": "v1"}),
    ("--tokenizer_revision v2", {"tokenizer_revision": "v2"}),
    ("--max_length 128", {"max_length": 128}),
    ("--max_model_len 128", {"max_length": 128}),
    ("--max-model-len=128", {"max_length": 128}),
    ("--disable_lower_case", {"do_lower_case": False}),
    ("--disable_special_tokens", {"add_special_tokens": False}),
    ("--trust_remote_code", {"trust_remote_code": True}),
    # A filter of what a transformer sends to a predictor, which there is none of.
    ("--tensor_input_names input_ids,attention_mask", {}),
    ("--backend auto", {}),
    ("--backend huggingface", {}),
    # A model that takes token types gets them.
    ("--return_token_type_ids", {}),
    ("--return_offsets_mapping", {"return_offsets_mapping": True}),
    ("--return_probabilities", {"return_probabilities": True}),
    ("--return_raw_logits", {"return_raw_logits": True}),
    # As is the default.
    ("--disable_log_requests", {}),
    *((f"--task {task}", {"task": Task(task)}) for task in supported_tasks()),
    ("--max_log_len 10", {"max_log_len": 10}),
    ("--max-log-len 10", {"max_log_len": 10}),
    *(
        (f"--dtype {dtype}", {"dtype": dtype})
        for dtype in ("auto", "float16", "float32", "bfloat16", "float", "half")
    ),
]


@pytest.mark.parametrize(
    ("flag", "changes"), UPSTREAM_FLAGS, ids=[row[0] for row in UPSTREAM_FLAGS]
)
def test_each_flag_of_the_original_changes_what_it_names(
    flag: str, changes: dict[str, Any]
) -> None:
    assert parse(*flag.split()) == Options(**changes)


def test_the_directory_is_that_of_the_original_where_none_is_named() -> None:
    assert HuggingFaceServer.default_model_dir == "/mnt/models"


def test_vllm_is_not_to_be_installed_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hfserver.options.find_spec", lambda name: object())

    with pytest.raises(SystemExit):
        parse("--backend", "vllm", "--tensor-parallel-size", "2")

    said = capsys.readouterr().err
    assert "start `vllm serve MODEL`, and pass requests on to it with --backend upstream" in said
    assert "install" not in said


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
