"""The flags of models that write text."""

import argparse
from typing import Any

import pytest

from hfserver.generation.options import GenerationOptions, add_arguments


def parse(*argv: str) -> GenerationOptions:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return GenerationOptions.from_args(parser.parse_args(argv))


def test_defaults_are_those_of_the_options() -> None:
    assert parse() == GenerationOptions()


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--device", "cuda:1"], "device", "cuda:1"),
        (["--quantization", "bnb-4bit"], "quantization", "bnb-4bit"),
        (["--kv_cache_bytes", "1000"], "kv_cache_bytes", 1000),
        (["--prefix_cache_bytes", "0"], "prefix_cache_bytes", 0),
        (["--max-num-batched-tokens", "64"], "max_num_batched_tokens", 64),
        (["--max_num_seqs", "3"], "max_num_seqs", 3),
        (["--max_waiting_requests", "9"], "max_waiting_requests", 9),
    ],
)
def test_flag_sets_its_field(argv: list[str], field: str, value: Any) -> None:
    assert getattr(parse(*argv), field) == value


@pytest.mark.parametrize("argv", [["--kv_cache_bytes", "0"], ["--quantization", "gptq"]])
def test_value_that_makes_no_sense_is_refused(argv: list[str]) -> None:
    with pytest.raises(argparse.ArgumentError):
        parse(*argv)
