"""What `python -m hfserver` makes its models with: finds the task, and the class that serves it."""

import argparse
from pathlib import Path
from typing import Final

from hfserver import options as flags
from hfserver.chat import options as chat_flags
from hfserver.chat.options import ChatOptions
from hfserver.checkpoint import Checkpoint, HubOptions, fetch, open_directory
from hfserver.detect import CONFIG_FILE, ENCODER_TASKS, MODULES_FILE, Detected, Task, detect
from hfserver.environment import prepare_environment
from hfserver.generation import options as generation_flags
from hfserver.generation.options import GenerationOptions
from hfserver.gguf_files import SUFFIX, find_gguf
from hfserver.options import Options
from kserve.errors import ModelLoadError
from kserve.listing import quoted
from kserve.logging import logger
from kserve.model import BaseKServeModel
from kserve.protocol.rest.openai.proxy_server import make_proxy

_GENERATION: Final = GenerationOptions()
_CHAT: Final = ChatOptions()


class HuggingFaceServer:
    """Makes the model of a directory, or of a name on the hub."""

    artifact_suffixes = (CONFIG_FILE, MODULES_FILE, SUFFIX)
    # Beside it, `config.json` is that of its first module.
    preferred_artifact = MODULES_FILE
    default_model_dir = flags.DEFAULT_MODEL_DIR

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        flags.add_arguments(parser)
        generation_flags.add_arguments(parser)
        chat_flags.add_arguments(parser)

    @classmethod
    def check_arguments(cls, args: argparse.Namespace) -> None:
        """Check that flags fit together.

        Raises:
            ValueError: They do not.
        """
        flags.is_upstream(args)

    @classmethod
    def remote_model(cls, name: str, args: argparse.Namespace) -> BaseKServeModel | None:
        """Make a proxy where another server has the model; neither torch nor a file is loaded."""
        return make_proxy(name, args) if flags.is_upstream(args) else None

    @classmethod
    def fetch(cls, args: argparse.Namespace) -> str | None:
        """Fetch the model of `--model_id`, or find it in the cache; None without the flag.

        Raises:
            ModelLoadError: It cannot be fetched.
        """
        if args.model_id is None:
            return None
        prepare_environment()
        args.checkpoint = fetch(
            args.model_id,
            HubOptions(
                revision=args.model_revision,
                tokenizer_revision=args.tokenizer_revision,
                allow_pickle=args.allow_pickle,
                trust_remote_code=args.trust_remote_code,
            ),
        )
        return str(args.checkpoint.directory)

    @classmethod
    def from_args(cls, name: str, model_dir: str, args: argparse.Namespace) -> BaseKServeModel:
        """Make an unloaded model as the command line says.

        Raises:
            ModelMissingError: The directory is not there, or holds no model of transformers.
            ModelLoadError: Its task cannot be told, or is not served.
        """
        prepare_environment()
        generation = GenerationOptions.from_args(args)
        return make_model(
            name,
            _checkpoint(model_dir, args),
            Options.from_args(args),
            generation,
            ChatOptions.from_args(args),
        )


def make_model(
    name: str,
    checkpoint: Checkpoint,
    options: Options,
    generation: GenerationOptions = _GENERATION,
    chat: ChatOptions = _CHAT,
) -> BaseKServeModel:
    """Make the unloaded model of a checkpoint.

    Args:
        name: The name under which it is served.
        checkpoint: Its files.
        options: What the command line says.
        generation: What it says about a model that writes text.
        chat: What it says about its chats.

    Raises:
        ModelLoadError: Its task cannot be told, or is not served.
    """
    detected = _detect(checkpoint.directory, options.task)
    logger.info("Model %s: %s, as %s", name, detected.task, detected.reason)
    if detected.is_generative:
        return _make_generative(name, checkpoint, options, generation, chat, detected.task)
    if detected.task not in ENCODER_TASKS:
        raise ModelLoadError(
            f"{checkpoint.name}: {detected.task} is not served; expected a model for "
            f"{quoted([task.value for task in ENCODER_TASKS])}"
        )
    # It imports torch and transformers.
    from hfserver.model import HuggingfaceEncoderModel

    return HuggingfaceEncoderModel(name, checkpoint, options=options, task=detected.task)


def _detect(directory: Path, task: Task | None) -> Detected:
    # A GGUF file has the configuration in itself, and is always for a model that writes text.
    if task is None and find_gguf(directory) is not None:
        return Detected(Task.TEXT_GENERATION, f"it has a file *{SUFFIX} and no safetensors")
    return detect(directory, task)


def _make_generative(
    name: str,
    checkpoint: Checkpoint,
    options: Options,
    generation: GenerationOptions,
    chat: ChatOptions,
    task: Task,
) -> BaseKServeModel:
    """Make a model that writes text."""
    # They import torch and transformers.
    from hfserver.generation.model import HuggingfaceGenerativeModel
    from hfserver.reader import load_options

    return HuggingfaceGenerativeModel(
        name,
        checkpoint,
        options=load_options(options),
        generation=generation,
        task=task,
        chat=chat,
        log_requests=options.log_requests,
        max_log_len=options.max_log_len,
        hang_timeout_s=options.hang_timeout_s,
    )


def _checkpoint(model_dir: str, args: argparse.Namespace) -> Checkpoint:
    fetched: Checkpoint | None = getattr(args, "checkpoint", None)
    if fetched is not None and Path(model_dir) == fetched.directory:
        return fetched
    return open_directory(model_dir)
