"""Reads the configuration, the tokenizer and the weights of a checkpoint."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import orjson
import torch

from hfserver.checkpoint import Checkpoint, HubOptions, fetch, one_line, open_directory
from kserve.artifact import list_directory
from kserve.errors import ModelLoadError, ModelMissingError, StartError
from kserve.listing import listing
from kserve.pickles import TRUST_ADVICE

CONFIG_FILE: Final = "config.json"

DTYPES: Final = {
    "float32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
}

# What the CPU multiplies in bfloat16 itself; torch does it with any CPU, and took 3 times as long
# as in float32 on one that has neither. By torch's names, those of Arm included.
_BFLOAT16_CAPABILITIES: Final = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
        dtype: `auto`, `float32` (`float`), `bfloat16` or `float16` (`half`). `auto` is that of the
            checkpoint on a GPU; on a CPU bfloat16 if both are of it, else float32.
        device: As torch names it; `auto` is the first GPU where there is one, else the CPU.
        revision: The branch, tag or commit of a model on the hub; None is `main`.
        tokenizer_revision: The same of its tokenizer; None is that of the model.
        token: The access token for the hub; None is what the environment or a login says.
        cache_dir: Where files of the hub are kept; None is what the environment says.
        trust_remote_code: Whether Python code of the checkpoint may run.
        allow_pickle: Whether weights may be read from pickles, where there are no safetensors.
        do_lower_case: Whether the tokenizer puts text into lower case; None leaves it as it is.
        max_length: Tokens of a text, at most; None is what the model takes.
    """

    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    tokenizer_revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    do_lower_case: bool | None = None
    max_length: int | None = None


def open_checkpoint(
    model_dir: str | os.PathLike[str] | None, model_id: str | None, options: LoadOptions
) -> Checkpoint:
    """Find the files of a model; with an id they are fetched from the hub or found in its cache.

    Args:
        model_dir: The directory of the model, used where there is no id.
        model_id: `OWNER/NAME` of the hub.
        options: How to fetch it.

    Raises:
        ModelMissingError: There is no such directory.
        ModelLoadError: It cannot be read, or the model cannot be fetched.
    """
    if model_id is None:
        if model_dir is None:
            raise ModelLoadError("expected a model directory or a model id, got neither")
        return open_directory(model_dir)
    return fetch(
        model_id,
        HubOptions(
            revision=options.revision,
            tokenizer_revision=options.tokenizer_revision,
            token=options.token,
            cache_dir=options.cache_dir,
            allow_pickle=options.allow_pickle,
            trust_remote_code=options.trust_remote_code,
        ),
    )


def read_config(checkpoint: Checkpoint, options: LoadOptions, subfolder: str = "") -> Any:
    """Read `config.json`: transformers' class of the configuration of the model's type.

    Args:
        checkpoint: The files.
        options: Whether the checkpoint's own class may run.
        subfolder: The folder in the checkpoint; the checkpoint's own if empty.

    Raises:
        ModelMissingError: There is none.
        ModelLoadError: It is damaged, or of a type that transformers does not know.
    """
    from transformers import AutoConfig

    directory = checkpoint.directory / subfolder
    read_json(directory / CONFIG_FILE)
    with _load_errors(directory / CONFIG_FILE):
        return AutoConfig.from_pretrained(directory, **_origin(checkpoint, options))


def load_tokenizer(
    checkpoint: Checkpoint, options: LoadOptions, subfolder: str = "", **kwargs: Any
) -> Any:
    """Load the tokenizer; it is changed in nothing that the options do not say.

    Args:
        checkpoint: The files.
        options: Lower case, and whether the checkpoint's own class may run.
        subfolder: The folder in the checkpoint; the checkpoint's own if empty.
        kwargs: For transformers' `from_pretrained`.

    Returns:
        A `transformers.PreTrainedTokenizerBase`.

    Raises:
        ModelLoadError: There is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    # A value, even that of the checkpoint, would replace the tokenizer's normalizer.
    if options.do_lower_case is not None:
        kwargs["do_lower_case"] = options.do_lower_case
    directory = checkpoint.tokenizer_directory / subfolder
    with _load_errors(directory, "the tokenizer: "):
        return AutoTokenizer.from_pretrained(directory, **_origin(checkpoint, options), **kwargs)


def load_model(
    auto_class: Any,
    checkpoint: Checkpoint,
    options: LoadOptions,
    *,
    config: Any = None,
    subfolder: str = "",
    optional_weights: Sequence[str] = (),
    **kwargs: Any,
) -> Any:
    """Load the weights into the model that a class of transformers makes, for inference.

    Args:
        auto_class: Such as `transformers.AutoModel`.
        checkpoint: The files.
        options: Device, type, and what is trusted.
        config: What `read_config` gave; it is read if None.
        subfolder: The folder in the checkpoint; the checkpoint's own if empty.
        optional_weights: Patterns, as a shell has them, of the weights that the checkpoint may
            lack. Of any other that it lacks the model would be made of chance.
        kwargs: For transformers' `from_pretrained`.

    Returns:
        A `transformers.PreTrainedModel` on its device, in evaluation mode.

    Raises:
        ModelMissingError: The checkpoint holds no weights.
        ModelLoadError: They are damaged, are pickles, do not fit the configuration, or lack some.
    """
    from transformers.utils import logging as transformers_logging

    directory = checkpoint.directory / subfolder
    if config is None:
        config = read_config(checkpoint, options, subfolder)
    _check_weights(directory, allow_pickle=options.allow_pickle)
    device = resolve_device(options.device)
    # The log is ours: no bars, and no table of weights that are refused below by name.
    transformers_logging.disable_progress_bar()
    with _load_errors(directory):
        model, info = auto_class.from_pretrained(
            directory,
            config=config,
            dtype=resolve_dtype(options.dtype, device, config),
            # None takes pickles only where there are no safetensors.
            use_safetensors=None if options.allow_pickle else True,
            weights_only=True,
            output_loading_info=True,
            **_origin(checkpoint, options),
            **kwargs,
        )
    _check_complete(directory, info, optional_weights)
    return model.to(device).eval()


def resolve_device(name: str) -> torch.device:
    """Give the device of a name; `auto` is the first GPU where there is one, else the CPU.

    Raises:
        ModelLoadError: Torch does not know it, or has none such.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        raise ModelLoadError(f"device {name!r}: {one_line(exc)}") from exc
    return device


def resolve_dtype(name: str, device: torch.device, config: Any) -> torch.dtype:
    """Give the type that the weights are loaded in.

    Args:
        name: As of `LoadOptions`.
        device: Where they go.
        config: The model's configuration; its `dtype` is that of the checkpoint.

    Raises:
        ModelLoadError: There is no such type.
    """
    if name != "auto":
        if name not in DTYPES:
            raise ModelLoadError(f"dtype: expected auto or one of {listing(DTYPES)}, got {name!r}")
        return DTYPES[name]
    of_checkpoint = getattr(config, "dtype", None) or torch.float32
    if device.type != "cpu":
        return of_checkpoint
    if of_checkpoint is torch.bfloat16 and has_bfloat16():
        return torch.bfloat16
    return torch.float32


def has_bfloat16() -> bool:
    """Say whether this CPU multiplies in bfloat16 itself."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BFLOAT16_CAPABILITIES)


def read_json(path: Path) -> Any:
    """Read a JSON object of a checkpoint.

    Raises:
        ModelMissingError: There is no such file.
        ModelLoadError: It cannot be read, or is not a JSON object.
    """
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError as exc:
        names = list_directory(path.parent)
        raise ModelMissingError(
            path.parent, f"expected {path.name}, found {listing(names)}"
        ) from exc
    except (OSError, orjson.JSONDecodeError) as exc:
        raise ModelLoadError(f"{path}: {one_line(exc)}") from exc
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_weights(directory: Path, *, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """Read `model.safetensors`, or `pytorch_model.bin`, of a part of a model.

    Raises:
        ModelMissingError: There is neither.
        ModelLoadError: It is damaged, or a pickle.
    """
    from safetensors.torch import load_file

    _check_weights(directory, allow_pickle=allow_pickle)
    path = directory / "model.safetensors"
    with _load_errors(path):
        if path.exists():
            return dict(load_file(path))
        path = directory / "pytorch_model.bin"
        return dict(torch.load(path, map_location="cpu", weights_only=True))


def _origin(checkpoint: Checkpoint, options: LoadOptions) -> dict[str, Any]:
    """Give the arguments that say what may be fetched, and what may run."""
    may_fetch = checkpoint.is_from_hub and options.trust_remote_code
    return {
        # Without a value transformers asks on the terminal.
        "trust_remote_code": options.trust_remote_code,
        "local_files_only": not may_fetch,
        **({"token": options.token} if may_fetch else {}),
    }


def _check_weights(directory: Path, *, allow_pickle: bool) -> None:
    """See whether weights are there, and whether the files of them are whole."""
    names = list_directory(directory)
    safetensors = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(".bin")]
    if not safetensors and pickles and not allow_pickle:
        raise ModelLoadError(
            f"{directory}: expected *.safetensors, found {listing(pickles)}, pickles: "
            f"{TRUST_ADVICE}"
        )
    if not safetensors and not pickles:
        raise ModelMissingError(directory, f"expected *.safetensors, found {listing(names)}")
    for name in safetensors:
        _check_safetensors(directory / name)


def _check_safetensors(path: Path) -> None:
    """Read the header, which says how long the file is."""
    from safetensors import safe_open

    with _load_errors(path), safe_open(path, "pt") as file:
        file.keys()


def _check_complete(directory: Path, info: dict[str, Any], optional: Sequence[str]) -> None:
    missing = sorted(
        name
        for name in info.get("missing_keys", ())
        if not any(fnmatch(name, pattern) for pattern in optional)
    )
    if missing:
        raise ModelLoadError(
            f"{directory}: the weights {listing(missing)} are not there: is it a model for "
            "another task?"
        )


@contextmanager
def _load_errors(path: Path, part: str = "") -> Iterator[None]:
    """Make one line of whatever a library raises over a damaged file."""
    try:
        yield
    except StartError:
        raise
    except Exception as exc:
        text = one_line(exc)
        if "trust_remote_code" in str(exc):
            text = (
                "it is made by code of its own: start with --trust_remote_code if you trust the "
                "source"
            )
        raise ModelLoadError(f"{path}: {part}{text}") from exc
