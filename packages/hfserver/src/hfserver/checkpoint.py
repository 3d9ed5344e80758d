"""Where the files of a model are: a directory, or what was fetched of a model on the hub."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from kserve.artifact import list_directory, local_path
from kserve.errors import ModelLoadError
from kserve.listing import shortened
from kserve.logging import logger
from kserve.pickles import TRUST_ADVICE

# `owner/name`, or the name alone of the oldest models. Source: huggingface_hub's validators.
_MODEL_ID: Final = re.compile(r"[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?")

_TOKENIZER_FILES: Final = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm")
_WEIGHTS: Final = ("*.safetensors",)
_PICKLES: Final = ("*.bin",)
_CODE: Final = ("*.py",)

# The same weights again, for other frameworks or in the format of who trained them.
_OTHER_FORMATS: Final = ("onnx/*", "openvino/*", "coreml/*", "original/*", "consolidated*")

_PROGRESS_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How a model is fetched from the hub.

    Attributes:
        revision: The branch, tag or commit; None is `main`.
        tokenizer_revision: The same of the tokenizer's files; None is that of the model.
        token: An access token; None is what the environment or a login says.
        cache_dir: Where fetched files are kept; None is what the environment says.
        allow_pickle: Whether pickles are fetched where there are no safetensors.
        trust_remote_code: Whether the model's Python files are fetched.
    """

    revision: str | None = None
    tokenizer_revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files of one model, all on this machine.

    Attributes:
        name: What messages call it: the directory, or the name on the hub.
        directory: The files of the model.
        tokenizer_directory: The files of its tokenizer.
        is_from_hub: Whether it was fetched: its code, if that is trusted, may then be fetched from
            other repositories that it names. Nothing is ever fetched for a directory.
    """

    name: str
    directory: Path
    tokenizer_directory: Path
    is_from_hub: bool = False


def open_directory(model_dir: str | os.PathLike[str]) -> Checkpoint:
    """Give the checkpoint that a directory, or a `file://` address of one, holds.

    Raises:
        ModelMissingError: There is no such directory.
        ModelLoadError: It is none, or cannot be read.
    """
    directory = local_path(model_dir)
    list_directory(directory)
    return Checkpoint(str(directory), directory, directory)


def fetch(model_id: str, options: HubOptions) -> Checkpoint:
    """Fetch a model from the hub, or find it in the cache; progress goes to the log.

    Where the hub cannot be reached, or `HF_HUB_OFFLINE` is set, the cache alone is looked at.

    Args:
        model_id: `OWNER/NAME`.
        options: Which revision, and whose.

    Raises:
        ModelLoadError: It is not there, not allowed, not reachable, or holds only pickles.
    """
    if not _MODEL_ID.fullmatch(model_id):
        raise ModelLoadError(
            f"model id: expected OWNER/NAME of the hub, got {shortened(model_id)!r}"
        )
    patterns = [*_TOKENIZER_FILES, *(_CODE if options.trust_remote_code else ())]
    started = perf_counter()
    directory = _fetch_model(model_id, patterns, options)
    tokenizer_directory = directory
    if options.tokenizer_revision not in (None, options.revision):
        tokenizer_directory = _snapshot(model_id, options.tokenizer_revision, patterns, options)
    logger.info(
        "Model %s, revision %s: all files are there after %.1f s",
        *(model_id, directory.name, perf_counter() - started),
    )
    return Checkpoint(model_id, directory, tokenizer_directory, is_from_hub=True)


def _fetch_model(model_id: str, patterns: Sequence[str], options: HubOptions) -> Path:
    directory = _snapshot(model_id, options.revision, [*patterns, *_WEIGHTS], options)
    if _holds(directory, _WEIGHTS):
        return directory
    if not options.allow_pickle:
        raise ModelLoadError(
            f"{model_id}: expected *.safetensors, the hub has none of it; where it has pickles, "
            f"*.bin: {TRUST_ADVICE}"
        )
    _snapshot(model_id, options.revision, [*patterns, *_PICKLES], options)
    if not _holds(directory, _PICKLES):
        raise ModelLoadError(f"{model_id}: expected *.safetensors or *.bin, the hub has neither")
    return directory


def _holds(directory: Path, patterns: Sequence[str]) -> bool:
    return any(True for pattern in patterns for _ in directory.rglob(pattern))


def _snapshot(
    model_id: str, revision: str | None, patterns: Sequence[str], options: HubOptions
) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(model_id, revision):
        return Path(
            snapshot_download(
                model_id,
                revision=revision,
                cache_dir=options.cache_dir,
                token=options.token,
                allow_patterns=list(patterns),
                ignore_patterns=list(_OTHER_FORMATS),
                tqdm_class=_progress_class(model_id),
            )
        )


@contextmanager
def _hub_errors(model_id: str, revision: str | None) -> Iterator[None]:
    """Say of what the hub answers what it means for the model."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as exc:
        raise ModelLoadError(
            f"{model_id}: its owner has to grant access; give the token of an account that has it "
            "with HF_TOKEN"
        ) from exc
    except errors.RepositoryNotFoundError as exc:
        raise ModelLoadError(
            f"{model_id}: the hub has no such model, or one that needs a token (HF_TOKEN)"
        ) from exc
    except errors.RevisionNotFoundError as exc:
        raise ModelLoadError(f"{model_id}: the hub has no revision {revision} of it") from exc
    except errors.LocalEntryNotFoundError as exc:
        raise ModelLoadError(
            f"{model_id}, revision {revision or 'main'}: the hub cannot be reached, and the cache "
            "does not hold all of it"
        ) from exc
    except errors.HfHubHTTPError as exc:
        raise ModelLoadError(f"{model_id}: the hub answered: {one_line(exc)}") from exc


def _progress_class(model_id: str) -> type[Any]:
    """Make what the hub's library tells its progress, in the place of a bar on a terminal."""
    from huggingface_hub.utils import tqdm

    class Progress(tqdm):  # type: ignore[misc]
        """Logs how far a download is, every ten seconds."""

        logged_at = perf_counter()

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            """Draw nothing, and log now and then."""
            now = perf_counter()
            # Files are counted too, but bytes say more.
            if self.unit != "B" or now - type(self).logged_at < _PROGRESS_S:
                return
            type(self).logged_at = now
            logger.info(
                "Model %s: %.0f of %.0f MB are there",
                *(model_id, self.n / 1e6, (self.total or 0) / 1e6),
            )

        def clear(self, *_args: Any, **_kwargs: Any) -> None:
            """Draw nothing."""

        def close(self) -> None:
            """Draw nothing."""
            self.disable = True

    return Progress


def one_line(exc: BaseException, max_characters: int = 300) -> str:
    """Give the text of an exception, which may be pages, as one line of bounded length."""
    lines = (line.strip() for line in str(exc).splitlines())
    text = " ".join(line for line in lines if line) or type(exc).__name__
    return text if len(text) <= max_characters else f"{text[: max_characters - 3]}..."
