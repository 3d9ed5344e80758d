"""The flags beside those of every server, and what they say; needs neither torch nor transformers.

Source of the names: KServe's Hugging Face server. What it does wrong is not repeated: text is not
put into lower case unless the tokenizer of the model does, and no token is added to a model.
"""

import argparse
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from hfserver.detect import Task, supported_tasks
from kserve.config import positive
from kserve.listing import listing
from kserve.protocol.rest.openai import proxy_server

# What the engine packs into one forward, in tokens. With a MiniLM on two cores 1,024 to 2,048 were
# the fastest, for short and for mixed texts.
DEFAULT_MAX_BATCH_TOKENS: Final = 2048

# Half a minute of work for a small model on two CPUs; longer no client waits.
DEFAULT_MAX_QUEUED_TOKENS: Final = 1 << 19

BACKENDS: Final = ("auto", "huggingface", "upstream")

TRUNCATIONS: Final = ("none", "left", "right")

# How tokens become entities, and logits scores; the words of transformers' pipelines.
STRATEGIES: Final = ("none", "simple", "first", "average", "max")
FUNCTIONS: Final = ("softmax", "sigmoid", "none")

POOLINGS: Final = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

# As in torch, and KServe's words for the same.
DTYPES: Final = ("auto", "float32", "float", "float16", "half", "bfloat16")

# Where KServe puts what it downloads for a storageUri.
DEFAULT_MODEL_DIR: Final = "/mnt/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says about a model.

    Attributes:
        task: The task; None for what the files tell.
        model_id: A name on the hub, `OWNER/NAME`; None for a directory.
        model_revision: The branch, tag or commit of it.
        tokenizer_revision: The same of its tokenizer; None for that of the model.
        max_length: Tokens of a text; None for what the model takes.
        do_lower_case: False where the tokenizer must not put text into lower case; None leaves it
            to the tokenizer.
        add_special_tokens: Whether the tokenizer adds those of the model, such as [CLS].
        trust_remote_code: Whether Python code of the checkpoint may run.
        allow_pickle: Whether weights may be read from pickles.
        dtype: The type of the weights, one of `DTYPES`.
        pooling: How token embeddings become one of the text; None for what the files say.
        max_batch_tokens: Tokens of one forward, 1 or more.
        max_queued_tokens: Tokens of texts that may wait, 1 or more.
        hang_timeout_s: Seconds after which a batch is taken to have hung; 0 is never.
        truncation: Which end of a text that is too long is cut on V1 and V2; `none` refuses it.
        rich_results: Whether V1 and V2 give labels and scores.
        return_probabilities: Whether they give the probability of each class instead of the best.
        return_raw_logits: Whether they give the logits instead.
        return_offsets_mapping: Whether V1 and V2 give where each token stands in the text.
        log_requests: Whether the texts of requests are logged.
        max_log_len: Characters of a text that are logged; None for all.
    """

    task: Task | None = None
    model_id: str | None = None
    model_revision: str | None = None
    tokenizer_revision: str | None = None
    max_length: int | None = None
    do_lower_case: bool | None = None
    add_special_tokens: bool = True
    trust_remote_code: bool = False
    allow_pickle: bool = False
    dtype: str = "auto"
    pooling: str | None = None
    max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS
    max_queued_tokens: int = DEFAULT_MAX_QUEUED_TOKENS
    hang_timeout_s: float = 0.0
    truncation: str = "right"
    rich_results: bool = False
    return_probabilities: bool = False
    return_raw_logits: bool = False
    return_offsets_mapping: bool = False
    log_requests: bool = False
    max_log_len: int | None = None

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "Options":
        """Give what a parsed command line says."""
        return cls(
            task=None if args.task is None else Task(args.task),
            model_id=args.model_id,
            model_revision=args.model_revision,
            tokenizer_revision=args.tokenizer_revision,
            max_length=args.max_length,
            do_lower_case=False if args.disable_lower_case else None,
            add_special_tokens=not args.disable_special_tokens,
            trust_remote_code=args.trust_remote_code,
            allow_pickle=args.allow_pickle,
            dtype=args.dtype,
            pooling=args.pooling,
            max_batch_tokens=args.max_batch_tokens,
            max_queued_tokens=args.max_queued_tokens,
            hang_timeout_s=args.hang_timeout_s,
            truncation=args.truncation,
            rich_results=args.rich_results,
            return_probabilities=args.return_probabilities,
            return_raw_logits=args.return_raw_logits,
            return_offsets_mapping=args.return_offsets_mapping,
            log_requests=args.enable_log_requests,
            max_log_len=args.max_log_len,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser."""
    _add_source(parser)
    _add_model(parser)
    _add_results(parser)
    add = parser.add_argument
    add(
        "--enable_log_requests",
        action="store_true",
        help="log the texts of requests, which may be private (%(default)s)",
    )
    add(
        "--disable_log_requests",
        dest="enable_log_requests",
        action="store_false",
        help="log no texts, as is the default",
    )
    add(
        "--max_log_len",
        "--max-log-len",
        type=positive,
        help="characters of a text that are logged (all)",
    )


def _add_source(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model_id", metavar="OWNER/NAME", help="a model of the hub, in place of --model_dir")
    add("--model_revision", help="branch, tag or commit of --model_id (main)")
    add("--tokenizer_revision", help="the same of its tokenizer (that of the model)")
    add(
        "--backend",
        type=_backend,
        default="auto",
        metavar="{auto,huggingface,upstream}",
        help="what runs the model; auto is upstream where there is --upstream_url (%(default)s)",
    )
    proxy_server.add_arguments(parser, is_required=False)
    add(
        "--trust_remote_code",
        action="store_true",
        help="run the Python code that comes with the model (%(default)s)",
    )
    add(
        "--allow_pickle",
        action="store_true",
        help="read weights from pickles, not from safetensors alone (%(default)s)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--task", choices=supported_tasks(), help="what the model does (what its files tell)")
    add(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="type of the weights; auto is the fastest that the CPU has (%(default)s)",
    )
    add(
        "--pooling", choices=POOLINGS, help="how an embedding is made (what its files say, or mean)"
    )
    add(
        "--max_length",
        "--max_model_len",
        "--max-model-len",
        type=positive,
        help="tokens of a text (what the model takes)",
    )
    add(
        "--truncation",
        choices=TRUNCATIONS,
        default="right",
        help="which end of a longer text is cut on V1 and V2; none refuses it (%(default)s)",
    )
    add(
        "--max_batch_tokens",
        type=positive,
        default=DEFAULT_MAX_BATCH_TOKENS,
        help="tokens of texts that run together (%(default)s)",
    )
    add(
        "--max_queued_tokens",
        type=positive,
        default=DEFAULT_MAX_QUEUED_TOKENS,
        help="tokens of texts that may wait; further requests are refused (%(default)s)",
    )
    add(
        "--disable_lower_case",
        action="store_true",
        help="never put text into lower case (what the tokenizer does)",
    )
    add(
        "--disable_special_tokens",
        action="store_true",
        help="add no tokens such as [CLS] to a text (%(default)s)",
    )
    add(
        "--return_token_type_ids",
        action="store_true",
        help="accepted for KServe's manifests; a model that takes token types gets them",
    )
    add(
        "--tensor_input_names",
        help="accepted for KServe's manifests; the inputs of a predictor, which there is none of",
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rich_results",
        action="store_true",
        help="give labels and scores on V1 and V2, not the numbers of classes (%(default)s)",
    )
    parser.add_argument(
        "--return_offsets_mapping",
        action="store_true",
        help="give where each token stands in the text (%(default)s)",
    )
    only_one = parser.add_mutually_exclusive_group()
    only_one.add_argument(
        "--return_probabilities",
        action="store_true",
        help="give the probability of each class on V1 and V2 (%(default)s)",
    )
    only_one.add_argument(
        "--return_raw_logits",
        action="store_true",
        help="give the logit of each class on V1 and V2 (%(default)s)",
    )


def _backend(text: str) -> str:
    if text == "vllm":
        raise argparse.ArgumentTypeError(_vllm_text())
    if text not in BACKENDS:
        raise argparse.ArgumentTypeError(f"expected {listing(BACKENDS)}, got {text!r}")
    return text


def _vllm_text() -> str:
    install = "" if find_spec("vllm") else "install the package vllm where there is a GPU, "
    return (
        f"vLLM runs in a process of its own: {install}start `vllm serve MODEL`, and pass requests "
        "on to it with --backend upstream --upstream_url http://HOST:8000"
    )


def is_upstream(args: argparse.Namespace) -> bool:
    """Say whether a command line means another server to pass requests on to.

    Raises:
        ValueError: Its flags contradict one another.
    """
    if args.backend == "upstream" and args.upstream_url is None:
        raise ValueError("--backend upstream: expected --upstream_url too, got none")
    if args.backend == "huggingface" and args.upstream_url is not None:
        raise ValueError("--backend huggingface: expected no --upstream_url, got one")
    if args.upstream_url is not None and args.model_id is not None:
        raise ValueError("--upstream_url: expected no --model_id, got one; see --upstream_model")
    return args.upstream_url is not None
