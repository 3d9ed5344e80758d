"""What makes an embedding of a text's hidden states: the modules of sentence-transformers.

`modules.json` lists them: the transformer, how its tokens are pooled, and layers on top. They are
few and small, so they are read here, and sentence-transformers is not needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from hfserver.checkpoint import Checkpoint
from hfserver.encoder.layout import Layout
from hfserver.loading import LoadOptions, read_json, read_weights
from kserve.errors import InvalidInput, ModelLoadError
from kserve.listing import listing

MODULES_FILE: Final = "modules.json"
_SETTINGS_FILE: Final = "config_sentence_transformers.json"

# The file beside the transformer has had the name of its family.
_TRANSFORMER_FILES: Final = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
POOLING_MODES: Final[tuple[PoolingMode, ...]] = get_args(PoolingMode)

# Each mode as a flag, as files before sentence-transformers 5.5 have it; the results of several are
# put one behind the other in this order.
_POOLING_FLAGS: Final[Mapping[str, PoolingMode]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_SENTENCE: Final = "sentence_embedding"

# (n_texts, dimension) -> (n_texts, dimension)
Layer = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the hidden states of a text's tokens become one vector.

    Attributes:
        modes: One or more; the vectors of several are put one behind the other.
        includes_prompt: Whether the tokens of a prompt count.
    """

    modes: tuple[PoolingMode, ...] = ("mean",)
    includes_prompt: bool = True

    def __call__(self, hidden: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Pool the hidden states of a batch, shape (n_tokens, size), to (n_texts, dimension)."""
        prompts = np.zeros_like(layout.lengths)
        if not self.includes_prompt:
            prompts = np.array([text.n_prompt_tokens for text in layout.texts], np.int64)
            # Of a text that was cut within its prompt nothing would be left.
            prompts = np.where(prompts < layout.lengths, prompts, 0)
        # Sums of half precision would lose what a text of some length adds last.
        tokens = _Tokens(hidden.float(), layout, prompts)
        return torch.cat([_POOLINGS[mode](tokens) for mode in self.modes], dim=-1)


@dataclass(frozen=True, slots=True)
class SentencePipeline:
    """What makes embeddings of hidden states, and what belongs to the texts before.

    Attributes:
        pooling: How tokens are pooled.
        layers: What comes behind, in order.
        is_normalized: Whether embeddings have the length 1.
        transformer_folder: The folder of the transformer's files in the checkpoint; empty for its
            own.
        max_length: Tokens of a text; None is what the model takes.
        lowers_case: Whether texts are put into lower case before they are tokenized.
        prompts: Texts to put before those of a kind, such as `query`.
        default_prompt: The name of the one for texts of no kind; None for none.
        dimensions: What an embedding may be cut to; empty for any.
        similarity: How two embeddings are compared: `cosine`, `dot`, `euclidean` or `manhattan`.
    """

    pooling: Pooling = field(default_factory=Pooling)
    layers: Sequence[Layer] = ()
    is_normalized: bool = False
    transformer_folder: str = ""
    max_length: int | None = None
    lowers_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default_prompt: str | None = None
    dimensions: tuple[int, ...] = ()
    similarity: str = "cosine"

    def __call__(self, hidden: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Make the embeddings of a batch, shape (n_texts, dimension), in float32.

        Args:
            hidden: The hidden states of all texts in a row, shape (n_tokens, size).
            layout: Where each text is.
        """
        embeddings = self.pooling(hidden, layout)
        for layer in self.layers:
            embeddings = layer(embeddings)
        return embeddings

    def to(self, device: torch.device) -> "SentencePipeline":
        """Move the layers to where the model is."""
        for layer in self.layers:
            if isinstance(layer, nn.Module):
                layer.to(device)
        return self

    def prompt(self, name: str | None = None) -> str:
        """Give the prompt of a name; of None the default one, if there is one.

        Raises:
            InvalidInput: There is none of this name.
        """
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            raise InvalidInput(f"prompt_name: expected {listing(self.prompts)}, got {name!r}")
        return self.prompts[name]


def read_pipeline(
    checkpoint: Checkpoint, options: LoadOptions, pooling: str | None = None
) -> SentencePipeline:
    """Read what makes the embeddings of a checkpoint.

    A checkpoint without `modules.json` is pooled by `mean`, and the embeddings are normalized, as
    KServe's server has it.

    Args:
        checkpoint: The files.
        options: Whether pickles are trusted.
        pooling: One of `POOLING_MODES`, in place of what the files say.

    Raises:
        ModelLoadError: A file is missing or damaged, or a module is of a type that is not known.
    """
    if pooling is not None and pooling not in POOLING_MODES:
        raise ModelLoadError(f"pooling: expected one of {listing(POOLING_MODES)}, got {pooling!r}")
    modes: tuple[PoolingMode, ...] | None = None if pooling is None else (pooling,)
    if not (checkpoint.directory / MODULES_FILE).exists():
        return SentencePipeline(Pooling(modes or ("mean",)), (_normalize,), is_normalized=True)
    return _Reader(checkpoint, options, modes).read()


def cut(
    embedding: NDArray[np.float32], dimensions: int, allowed: Sequence[int] = ()
) -> NDArray[np.float32]:
    """Give the first so many numbers of an embedding, at the length 1.

    That is what embeddings of a Matryoshka training are for; those of others lose more.

    Args:
        embedding: Shape (dimension,).
        dimensions: How many.
        allowed: What the model was trained for; empty for any.

    Raises:
        InvalidInput: The embedding has not so many, or the model was not trained for it.
    """
    if allowed and dimensions not in allowed and dimensions != len(embedding):
        raise InvalidInput(
            f"dimensions: expected {listing([str(number) for number in allowed])}, which the model "
            f"was trained for, got {dimensions}"
        )
    if not 1 <= dimensions <= len(embedding):
        raise InvalidInput(f"dimensions: expected 1 to {len(embedding)}, got {dimensions}")
    return normalized(embedding[:dimensions])


def normalized(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give an embedding at the length 1; one of zeros as it is."""
    length = np.linalg.norm(embedding)
    return embedding / max(length, np.float32(1e-12))


class _Reader:
    """Reads the modules of a checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: LoadOptions,
        modes: tuple[PoolingMode, ...] | None,
    ) -> None:
        self._directory = checkpoint.directory
        self._path = checkpoint.directory / MODULES_FILE
        self._options = options
        self._modes = modes
        self._pooling: Pooling | None = None
        self._transformer: tuple[str, Mapping[str, Any]] | None = None
        self._layers: list[Layer] = []
        self._readers: Mapping[str, Callable[[str], None]] = {
            "Transformer": self._read_transformer,
            "Pooling": self._read_pooling,
            "Dense": self._read_dense,
            "LayerNorm": self._read_layer_norm,
            "Normalize": self._read_normalize,
            # It does nothing but in training.
            "Dropout": lambda _folder: None,
        }

    def read(self) -> SentencePipeline:
        for kind, folder in self._modules():
            reader = self._readers.get(kind)
            if reader is None:
                raise ModelLoadError(
                    f"{self._path}: expected modules of the types {listing(self._readers)}, "
                    f"got {kind}"
                )
            reader(folder)
        if self._transformer is None or self._pooling is None:
            raise ModelLoadError(f"{self._path}: expected a Transformer, and Pooling behind it")
        folder, transformer = self._transformer
        settings = self._optional(_SETTINGS_FILE)
        prompts = {str(name): str(text or "") for name, text in _items(settings, "prompts")}
        default = settings.get("default_prompt_name")
        return SentencePipeline(
            self._pooling,
            self._layers,
            is_normalized=bool(self._layers) and self._layers[-1] is _normalize,
            transformer_folder=folder,
            max_length=transformer.get("max_seq_length"),
            lowers_case=bool(transformer.get("do_lower_case")),
            prompts=MappingProxyType(prompts),
            default_prompt=default if default in prompts else None,
            dimensions=self._dimensions(folder),
            similarity=settings.get("similarity_fn_name") or "cosine",
        )

    def _modules(self) -> list[tuple[str, str]]:
        """Give the type of each module, without where sentence-transformers has it, and folder."""
        import orjson

        try:
            entries = orjson.loads(self._path.read_bytes())
            return [(entry["type"].rpartition(".")[2], entry["path"]) for entry in entries]
        except (OSError, orjson.JSONDecodeError, TypeError, KeyError, AttributeError) as exc:
            raise ModelLoadError(
                f"{self._path}: expected a list of modules with `type` and `path`: {exc!r}"
            ) from exc

    def _read_transformer(self, folder: str) -> None:
        if self._transformer is not None:
            raise ModelLoadError(f"{self._path}: expected one Transformer, got several")
        files = (f"{folder}/{name}".lstrip("/") for name in _TRANSFORMER_FILES)
        found = (self._optional(name) for name in files)
        self._transformer = folder, next(filter(None, found), {})

    def _read_pooling(self, folder: str) -> None:
        if self._pooling is not None or self._layers:
            raise ModelLoadError(f"{self._path}: expected Pooling once, before other modules")
        config = read_json(self._directory / folder / "config.json")
        self._pooling = Pooling(
            self._modes or self._modes_of(config, folder), bool(config.get("include_prompt", True))
        )

    def _modes_of(self, config: Mapping[str, Any], folder: str) -> tuple[PoolingMode, ...]:
        if "pooling_mode" in config:
            value = config["pooling_mode"]
            names = tuple(value) if isinstance(value, list) else (value,)
        else:
            names = tuple(mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag))
            names = names or ("mean",)
        unknown = [name for name in names if name not in POOLING_MODES]
        if unknown or not names:
            raise ModelLoadError(
                f"{self._directory / folder}: pooling_mode: expected one or more of "
                f"{listing(POOLING_MODES)}, got {config['pooling_mode']!r}"
            )
        return names

    def _read_dense(self, folder: str) -> None:
        path = self._directory / folder
        config = read_json(path / "config.json")
        self._check_input(config, path)
        weights = read_weights(path, allow_pickle=self._options.allow_pickle)
        activation = _activation(config.get("activation_function"), f"{path}/config.json")
        try:
            layer = _Dense(
                config["in_features"],
                config["out_features"],
                activation,
                has_bias=bool(config.get("bias", True)),
                is_residual=bool(config.get("use_residual")),
            )
            layer.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError) as exc:
            raise ModelLoadError(f"{path}: {_flat(exc)}") from exc
        self._layers.append(layer.float().eval())

    def _read_layer_norm(self, folder: str) -> None:
        path = self._directory / folder
        weights = read_weights(path, allow_pickle=self._options.allow_pickle)
        try:
            layer = nn.LayerNorm(read_json(path / "config.json")["dimension"])
            layer.load_state_dict(
                {name.removeprefix("norm."): value for name, value in weights.items()}
            )
        except (KeyError, TypeError, RuntimeError) as exc:
            raise ModelLoadError(f"{path}: {_flat(exc)}") from exc
        self._layers.append(layer.float().eval())

    def _read_normalize(self, folder: str) -> None:
        self._check_input(self._optional(f"{folder}/config.json"), self._directory / folder)
        self._layers.append(_normalize)

    def _check_input(self, config: Mapping[str, Any], path: Any) -> None:
        """Refuse what makes vectors of tokens, for late interaction: that is no embedding."""
        for key in ("module_input_name", "module_output_name"):
            if (config.get(key) or _SENTENCE) != _SENTENCE:
                raise ModelLoadError(f"{path}: {key}: expected {_SENTENCE}, got {config[key]!r}")

    def _dimensions(self, folder: str) -> tuple[int, ...]:
        """Give the dimensions of a Matryoshka training, by the name that vLLM reads them by."""
        path = f"{folder}/config.json".lstrip("/")
        value = self._optional(path).get("matryoshka_dimensions") or ()
        return tuple(sorted(int(number) for number in value))

    def _optional(self, name: str) -> Mapping[str, Any]:
        path = self._directory / name
        value: Mapping[str, Any] = read_json(path) if path.exists() else {}
        return value


class _Dense(nn.Module):  # type: ignore[misc]
    """A linear layer, its activation, and the input added to it where it is residual."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: nn.Module,
        *,
        has_bias: bool,
        is_residual: bool,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=has_bias)
        self.activation = activation
        self.is_residual = is_residual
        if is_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.activation(self.linear(embeddings))
        if not self.is_residual:
            return output
        residual = getattr(self, "residual", None)
        return output + (embeddings if residual is None else residual(embeddings))


class _Tokens:
    """The hidden states of a batch, without those of prompts that do not count."""

    def __init__(self, hidden: torch.Tensor, layout: Layout, prompts: NDArray[np.int64]) -> None:
        self._all = hidden
        self._layout = layout
        self._prompts = prompts
        self._kept: NDArray[np.int64] | None = None
        if prompts.any():
            self._kept = np.flatnonzero(layout.positions >= np.repeat(prompts, layout.lengths))
        self.hidden = hidden if self._kept is None else hidden[layout.tensor(self._kept)]
        self.lengths = self.tensor(layout.lengths - prompts)[:, None]

    @property
    def segments(self) -> torch.Tensor:
        segments = self._layout.segments
        return segments if self._kept is None else segments[self._layout.tensor(self._kept)]

    @property
    def weights(self) -> torch.Tensor:
        """The position of each in its text, from 1; a prompt that does not count moves none."""
        positions = self._layout.positions + 1
        return self.tensor(positions if self._kept is None else positions[self._kept])[:, None]

    def tensor(self, array: NDArray[np.int64]) -> torch.Tensor:
        return self._layout.tensor(array).to(self._all.dtype)

    def first(self) -> torch.Tensor:
        return self._all[self._layout.tensor(self._layout.starts + self._prompts)]

    def last(self) -> torch.Tensor:
        return self._all[self._layout.tensor(self._layout.starts + self._layout.lengths - 1)]

    def sums(self, rows: torch.Tensor) -> torch.Tensor:
        totals = rows.new_zeros(len(self._layout.texts), rows.shape[-1])
        return totals.index_add_(0, self.segments, rows)

    def maxima(self) -> torch.Tensor:
        index = self.segments[:, None].expand_as(self.hidden)
        least = self.hidden.new_full((len(self._layout.texts), self.hidden.shape[-1]), -torch.inf)
        return least.scatter_reduce_(0, index, self.hidden, "amax")


_POOLINGS: Final[Mapping[str, Callable[[_Tokens], torch.Tensor]]] = {
    "cls": _Tokens.first,
    "max": _Tokens.maxima,
    "mean": lambda tokens: tokens.sums(tokens.hidden) / tokens.lengths,
    "mean_sqrt_len_tokens": lambda tokens: tokens.sums(tokens.hidden) / tokens.lengths.sqrt(),
    "weightedmean": lambda tokens: (
        tokens.sums(tokens.hidden * tokens.weights) / tokens.sums(tokens.weights)
    ),
    "lasttoken": _Tokens.last,
}


def _normalize(embeddings: torch.Tensor) -> torch.Tensor:
    return functional.normalize(embeddings, p=2, dim=-1)


def _activation(name: str | None, path: str) -> nn.Module:
    """Make the activation of a name; only torch's own, as a name could be of any code."""
    if name is None:
        return nn.Tanh()
    module, _, class_name = name.rpartition(".")
    activation = getattr(nn, class_name, None)
    is_module = isinstance(activation, type) and issubclass(activation, nn.Module)
    if not module.startswith("torch.nn") or not is_module:
        raise ModelLoadError(
            f"{path}: activation_function: expected a module of torch.nn, got {name!r}"
        )
    assert activation is not None
    return activation()


def _items(settings: Mapping[str, Any], key: str) -> Sequence[tuple[Any, Any]]:
    value = settings.get(key) or {}
    return list(value.items()) if isinstance(value, Mapping) else []


def _flat(exc: Exception) -> str:
    return " ".join(str(exc).split())
