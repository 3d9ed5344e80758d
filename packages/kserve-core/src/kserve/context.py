"""What code sees of the server around it: its predictor, and who serves the models it starts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from kserve.predictor_config import PredictorConfig

_predictor_config: ContextVar[PredictorConfig | None] = ContextVar(
    "kserve_predictor_config", default=None
)

_handed_over: ContextVar[dict[str, Any] | None] = ContextVar("kserve_handed_over", default=None)


def set_predictor_config(config: PredictorConfig | None) -> None:
    """Set the predictor of everything that runs in this context."""
    _predictor_config.set(config)


def get_predictor_config() -> PredictorConfig | None:
    """Give the predictor of this context, or None."""
    return _predictor_config.get()


@contextmanager
def collect_models() -> Iterator[dict[str, Any]]:
    """Take the models that code in the block wants to serve: no server is started for them.

    Returns:
        By name, those that `ModelServer.start` was called with so far.
    """
    models: dict[str, Any] = {}
    token = _handed_over.set(models)
    try:
        yield models
    finally:
        _handed_over.reset(token)


def hand_over(models: Mapping[str, Any]) -> bool:
    """Give models to whoever collects them in this context; False if nobody does."""
    collected = _handed_over.get()
    if collected is None:
        return False
    collected.update(models)
    return True
