"""What a model has once, under however many names it is served."""

import weakref
from collections.abc import Callable
from functools import partial

from kserve.admission import Admission
from kserve.batcher import Batcher, BatchLimits, Run, RunAsync
from kserve.config import ServerConfig
from kserve.executor import ModelThreads
from kserve.metrics import BatchMetrics
from kserve.model import BaseKServeModel

OnHang = Callable[[BaseKServeModel, bool], object]


class ModelResources:
    """What the requests of one model share.

    Args:
        model: The model.
        name: The name that its threads and its batches have.
        config: The limits.
        threads: Threads of the model that still live; new ones if None.
        on_hang: Called with the model, and whether it has hung or its call has returned after all.

    Attributes:
        threads: Where its plain handlers run.
        admission: How many of its requests are in flight.
    """

    def __init__(
        self,
        model: BaseKServeModel,
        name: str,
        config: ServerConfig,
        threads: ModelThreads | None = None,
        on_hang: OnHang | None = None,
    ) -> None:
        n_threads = config.max_concurrent_predicts or model.max_concurrent_predicts or 1
        self.threads = threads or ModelThreads(
            name,
            n_threads,
            config.hang_timeout_s,
            None if on_hang is None else partial(_report_hang, weakref.ref(model), on_hang),
        )
        self.admission = Admission(config.max_inflight_requests)
        self._name = name
        self._limits = BatchLimits(
            min(config.max_batch_size, model.max_batch_size or config.max_batch_size),
            config.max_batch_delay_ms / 1000,
            config.max_queued_rows,
            n_threads,
        )
        self._batcher: Batcher | None = None

    def batcher(
        self, run: Run, run_async: RunAsync | None = None, *, may_run_on_loop: bool = False
    ) -> Batcher:
        """Give the model's one queue; the arguments are those of `Batcher`, where it is made."""
        if self._batcher is None:
            self._batcher = Batcher(
                run,
                self.threads,
                self._limits,
                BatchMetrics(self._name),
                may_run_on_loop=may_run_on_loop,
                run_async=run_async,
            )
        return self._batcher


def _report_hang(model_ref: weakref.ref[BaseKServeModel], on_hang: OnHang, has_hung: bool) -> None:
    model = model_ref()
    if model is not None:
        on_hang(model, has_hung)
