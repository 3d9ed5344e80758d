"""The predictor configuration of the running server, visible to every handler."""

from contextvars import ContextVar

from kserve.predictor_config import PredictorConfig

_predictor_config: ContextVar[PredictorConfig | None] = ContextVar(
    "kserve_predictor_config", default=None
)


def set_predictor_config(config: PredictorConfig | None) -> None:
    """Set the predictor of everything that runs in this context."""
    _predictor_config.set(config)


def get_predictor_config() -> PredictorConfig | None:
    """Give the predictor of this context, or None."""
    return _predictor_config.get()
