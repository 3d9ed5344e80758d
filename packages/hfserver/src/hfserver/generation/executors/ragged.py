"""All tokens of a step in one forward, one after the other, without padding.

Every layer of the model sees one row that holds the tokens of all sequences: the parts that treat
each token by itself, nearly all of the work, run on all of them at once. Only attention, which
transformers lets one replace, has to know where a sequence begins; it also keeps the keys and
values.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from hfserver.generation.executors.base import Chunk, Executor

ATTENTION: Final = "hfserver_ragged"

# Of the thread that runs the model: what its attention is to do. A model need not pass it on then.
_current: Final = threading.local()

# What changes attention in ways that are not implemented here.
_UNSUPPORTED: Final = ("position_bias", "cross_attention_states", "indices", "topk_indices")


class NotRagged(Exception):
    """The model cannot be run so; the text says why."""


@dataclass(slots=True)
class _Place:
    """Where the keys or the values of a layer are: which buffer, which entry of it."""

    buffer: int
    entry: int


class _Layout:
    """Which layers a model has, with the shapes of their keys and values.

    Layers of equal shapes share a buffer of shape (n_entries, n_heads, n_tokens, head_dim).
    """

    def __init__(self) -> None:
        self.places: dict[int, tuple[_Place, _Place]] = {}
        self.windows: dict[int, int | None] = {}
        self._shapes: dict[tuple[int, int, torch.dtype], int] = {}
        self._n_entries: list[int] = []

    def add(self, layer: int, key: torch.Tensor, value: torch.Tensor, window: int | None) -> None:
        if layer in self.places:
            raise NotRagged(f"layer {layer} attends more than once")
        self.places[layer] = (self._place(key), self._place(value))
        self.windows[layer] = window

    def _place(self, tensor: torch.Tensor) -> _Place:
        shape = (tensor.shape[1], tensor.shape[3], tensor.dtype)
        buffer = self._shapes.setdefault(shape, len(self._n_entries))
        if buffer == len(self._n_entries):
            self._n_entries.append(0)
        self._n_entries[buffer] += 1
        return _Place(buffer, self._n_entries[buffer] - 1)

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        return sum(
            n_entries * n_heads * dim * dtype.itemsize
            for (n_heads, dim, dtype), n_entries in self._sizes()
        )

    def make_buffers(self, n_tokens: int, device: torch.device) -> list[torch.Tensor]:
        # On the CPU the system gives the memory when it is written to.
        return [
            torch.empty((n_entries, n_heads, n_tokens, dim), dtype=dtype, device=device)
            for (n_heads, dim, dtype), n_entries in self._sizes()
        ]

    def _sizes(self) -> list[tuple[tuple[int, int, torch.dtype], int]]:
        return list(zip(self._shapes, self._n_entries, strict=True))


@dataclass(slots=True, eq=False)
class RaggedState:
    """The keys and values of one sequence.

    Attributes:
        buffers: As `_Layout.make_buffers` gives them.
        length: Tokens that they hold.
        capacity: Tokens that they can hold.
    """

    buffers: list[torch.Tensor]
    length: int
    capacity: int


class RaggedExecutor(Executor):
    """Runs models whose attention can be replaced and is the only part that mixes tokens.

    Args:
        model: Its attention is replaced for good; `restore` puts the former one back.

    Raises:
        NotRagged: The model is none of these.
    """

    name: ClassVar[str] = "ragged"
    has_prefixes = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        reason = _why_not(model)
        if reason:
            raise NotRagged(reason)
        AttentionInterface.register(ATTENTION, _attend)
        self._former = model.config._attn_implementation
        model.set_attn_implementation(ATTENTION)
        try:
            if model.config.get_text_config()._attn_implementation != ATTENTION:
                raise NotRagged("its attention cannot be replaced")
            self._selects_rows = bool(model._supports_logits_to_keep())
            self._layout = self._probe()
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Give the model its former attention back."""
        self.model.set_attn_implementation(self._former)

    def _probe(self) -> _Layout:
        """Find the layers by computing one token."""
        layout = _Layout()
        _current.batch = _Probe(layout)
        try:
            self._forward([0], [0], [0])
        finally:
            _current.batch = None
        expected = _windows(self.model.config)
        for layer, window in layout.windows.items():
            if expected.get(layer) != window:
                raise NotRagged(
                    f"layer {layer} has a window of {window} and says {expected.get(layer)}"
                )
        if len(layout.places) != len(expected):
            raise NotRagged(f"{len(layout.places)} of {len(expected)} layers attend")
        return layout

    def kv_bytes(self, n_tokens: int, n_prompt_tokens: int) -> int:
        """Give the bytes of the keys and values of all layers."""
        return n_tokens * self._layout.token_bytes

    def open(self, n_tokens: int, prompt_ids: Sequence[int]) -> RaggedState:
        """Give a state without tokens."""
        return RaggedState(self._layout.make_buffers(n_tokens, self.device), 0, n_tokens)

    def fork(self, state: RaggedState) -> RaggedState:
        """Copy the keys and values."""
        copy = self.open(state.capacity, ())
        for target, source in zip(copy.buffers, state.buffers, strict=True):
            target[:, :, : state.length] = source[:, :, : state.length]
        copy.length = state.length
        return copy

    def close(self, state: RaggedState) -> None:
        """Drop the buffers."""
        state.buffers = []

    def recover(self, state: RaggedState, n_tokens: int) -> int:
        """None of them is gone: what a failed forward wrote lies behind them."""
        state.length = n_tokens
        return n_tokens

    def read_block(self, state: RaggedState, start: int, stop: int) -> list[torch.Tensor]:
        """Copy the keys and values of some tokens of a sequence."""
        return [buffer[:, :, start:stop].clone() for buffer in state.buffers]

    def write_block(self, state: RaggedState, block: Sequence[torch.Tensor]) -> None:
        """Let a sequence go on with tokens that `read_block` has copied."""
        stop = state.length + block[0].shape[2]
        for buffer, tensor in zip(state.buffers, block, strict=True):
            buffer[:, :, state.length : stop] = tensor
        state.length = stop

    def run(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        """Compute all chunks in one forward."""
        ids: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        spans: list[_Span] = []
        for chunk in chunks:
            start, n = len(ids), len(chunk.token_ids)
            ids.extend(chunk.token_ids)
            length = chunk.state.length
            positions.extend(range(length, length + n))
            rows.extend(range(start + n - chunk.n_logits, start + n))
            spans.append(_Span(chunk.state, start, start + n, length))
        _current.batch = _Batch(self._layout, spans, self.device)
        try:
            logits = self._forward(ids, positions, rows)
        finally:
            _current.batch = None
        for chunk in chunks:
            chunk.state.length += len(chunk.token_ids)
        return list(logits.split([chunk.n_logits for chunk in chunks]))

    def _forward(
        self, ids: Sequence[int], positions: Sequence[int], rows: Sequence[int]
    ) -> torch.Tensor:
        self.n_forwards += 1
        # A forward that gives no logits still has to be asked for one row.
        wanted = torch.tensor(list(rows) or [0], dtype=torch.long, device=self.device)
        options = {"logits_to_keep": wanted} if self._selects_rows else {}
        output = self.model(
            input_ids=self._ids(ids),
            position_ids=self._ids(positions),
            use_cache=False,
            **options,
        )
        logits: torch.Tensor = output.logits[0]
        if not self._selects_rows:
            logits = logits[wanted]
        return logits.float() if rows else logits[:0].float()


def _why_not(model: Any) -> str | None:
    """Say why a model cannot be run so; None where it may be."""
    if model.config.is_encoder_decoder:
        return "it has an encoder"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    if getattr(model, "_is_stateful", False):
        return "it keeps more than keys and values"
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    others = kinds - {"full_attention", "sliding_attention"}
    if others:
        return f"it has layers of {', '.join(sorted(others))}"
    return None


def _windows(config: Any) -> dict[int, int | None]:
    """Give the window of each layer as the model's own cache has it, None for a layer without."""
    from transformers import DynamicCache

    layers = DynamicCache(config=config).layers
    return {
        index: getattr(layer, "sliding_window", None)
        if getattr(layer, "is_sliding", False)
        else None
        for index, layer in enumerate(layers)
    }


class _Probe:
    """Attention that takes note of what it is asked for."""

    def __init__(self, layout: _Layout) -> None:
        self._layout = layout

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        options: "_Options",
    ) -> torch.Tensor:
        self._layout.add(layer, key, value, options.window)
        return value.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))


@dataclass(slots=True)
class _Span:
    """The tokens `start` to `stop` of a row are a sequence's, from `offset` on."""

    state: RaggedState
    start: int
    stop: int
    offset: int


@dataclass(slots=True)
class _Options:
    """What a layer's attention is like.

    Attributes:
        window: A token sees so many, itself included; None sees all.
        softcap: Scores are bounded to it by tanh; None leaves them.
        sinks: A score of each head for no token at all, shape (n_heads,); None has none.
    """

    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


class _Batch:
    """The sequences of one forward."""

    def __init__(self, layout: _Layout, spans: Sequence[_Span], device: torch.device) -> None:
        self._layout = layout
        self._spans = spans
        self._device = device
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        options: _Options,
    ) -> torch.Tensor:
        """Attend within each sequence; arguments and result as of `_attend`."""
        key_place, value_place = self._layout.places[layer]
        result = value.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
        for index, span in enumerate(self._spans):
            end = span.offset + span.stop - span.start
            keys = span.state.buffers[key_place.buffer][key_place.entry]
            values = span.state.buffers[value_place.buffer][value_place.entry]
            keys[:, span.offset : end] = key[0, :, span.start : span.stop]
            values[:, span.offset : end] = value[0, :, span.start : span.stop]
            first = 0
            if options.window is not None:
                first = max(0, span.offset + 1 - options.window)
            rows = _attend_one(
                query[:, :, span.start : span.stop],
                keys[None, :, first:end],
                values[None, :, first:end],
                self._mask(index, options.window, first, end),
                scaling,
                options,
            )
            result[:, span.start : span.stop] = rows.transpose(1, 2)
        return result

    def _mask(self, index: int, window: int | None, first: int, end: int) -> torch.Tensor | None:
        """Give which tokens each one sees, shape (n_queries, n_keys); None is all of them."""
        span = self._spans[index]
        if span.stop - span.start == 1:
            return None
        if (index, window) not in self._masks:
            places = torch.arange(first, end, device=self._device)
            queries = torch.arange(span.offset, end, device=self._device)[:, None]
            mask = places <= queries
            if window is not None:
                mask &= places > queries - window
            self._masks[index, window] = mask
        return self._masks[index, window]


def _attend_one(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    options: _Options,
) -> torch.Tensor:
    """Give the attention of one sequence.

    Args:
        query: Shape (1, n_heads, n_queries, head_dim).
        keys: Shape (1, n_kv_heads, n_keys, head_dim); each serves a group of query heads.
        values: Shape (1, n_kv_heads, n_keys, value_dim).
        mask: Shape (n_queries, n_keys), True where a query sees a key.
        scaling: What scores are multiplied by.
        options: The layer's.

    Returns:
        Shape (1, n_heads, n_queries, value_dim).
    """
    _, n_heads, n_queries, _ = query.shape
    if options.softcap is not None or options.sinks is not None:
        return _attend_by_hand(query, keys, values, mask, scaling, options)
    n_kv_heads = keys.shape[1]
    if n_queries == 1:
        # The heads of a group ask the same keys, so they may stand in the place of queries.
        grouped = query.reshape(1, n_kv_heads, n_heads // n_kv_heads, -1)
        rows = scaled_dot_product_attention(grouped, keys, values, scale=scaling)
        return rows.reshape(1, n_heads, 1, -1)
    return scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=n_heads != n_kv_heads
    )


def _attend_by_hand(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    options: _Options,
) -> torch.Tensor:
    _, n_heads, n_queries, _ = query.shape
    n_kv_heads, n_keys = keys.shape[1:3]
    grouped = query.reshape(n_kv_heads, n_heads // n_kv_heads * n_queries, -1)
    scores = torch.matmul(grouped, keys[0].transpose(1, 2)) * scaling
    scores = scores.view(n_heads, n_queries, n_keys)
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if options.sinks is not None:
        scores = pad(scores, (0, 1))
        scores[:, :, -1] = options.sinks[:, None]
    weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)[:, :, :n_keys]
    weights = weights.reshape(n_kv_heads, -1, n_keys)
    return torch.matmul(weights, values[0]).view(1, n_heads, n_queries, -1)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, as transformers calls it.

    Args:
        module: The layer.
        query: Shape (1, n_heads, n_tokens, head_dim).
        key: Shape (1, n_kv_heads, n_tokens, head_dim), positions already encoded.
        value: Shape (1, n_kv_heads, n_tokens, value_dim).
        attention_mask: None: nobody makes a mask for an attention of this name.
        scaling: What scores are multiplied by.
        sliding_window: A token sees so many, itself included.
        softcap: Scores are bounded to it.
        s_aux: The sinks of the heads.
        **kwargs: What other implementations take.

    Returns:
        Shape (1, n_tokens, n_heads, value_dim), and no weights.

    Raises:
        NotRagged: The layer wants what is not implemented here.
    """
    batch: _Probe | _Batch | None = getattr(_current, "batch", None)
    if batch is None:
        raise NotRagged("the model runs outside of its executor")
    wanted = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if attention_mask is not None:
        wanted.append("attention_mask")
    if wanted or not (kwargs.get("is_causal") or getattr(module, "is_causal", True)):
        raise NotRagged(f"its attention is not plain: {', '.join(wanted) or 'not causal'}")
    sinks = s_aux if s_aux is not None else getattr(module, "sinks", None)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    options = _Options(sliding_window, softcap, sinks)
    return batch.attend(module.layer_idx, query, key, value, scaling, options), None
