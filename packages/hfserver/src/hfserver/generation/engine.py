"""An engine on a thread of its own, which owns the model; requests come from event loops."""

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import torch

from hfserver.generation.event_stream import EventStream
from hfserver.generation.executors.base import Executor
from hfserver.generation.interface import (
    MAX_N,
    ContextLengthExceeded,
    EngineStats,
    Event,
    GenerationRequest,
)
from hfserver.generation.metrics import GenerationMetrics
from hfserver.generation.scheduler import DeviceLost, Scheduler
from hfserver.generation.sequence import DecodeText, GrowingSequence, Job
from hfserver.generation.settings import EngineConfig, TokenRules, count_that_fits
from kserve.errors import InferenceServerError, InvalidInput, ModelNotReady, TooManyRequests
from kserve.logging import logger

# Steps that fail for no request's fault, one after the other, until the engine gives up.
_MAX_FAILED_STEPS: Final = 5

# An answer without a limit of its own gets this part of the KV cache, so that as many run at a
# time, and room for at least so many tokens.
_IMPLIED_SHARE: Final = 8
_IMPLIED_MIN_TOKENS: Final = 256

_Item = Event | BaseException


class _Outbox:
    """Brings what happens in a step to the event loops, in one call for each of them.

    A loop is woken once a step, not once a token.
    """

    def __init__(self) -> None:
        self._items: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[_Item], _Item]]] = {}

    def sink(
        self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[_Item]
    ) -> Callable[[_Item], None]:
        return lambda item: self._items.setdefault(loop, []).append((queue, item))

    def send(self) -> None:
        items, self._items = self._items, {}
        for loop, pairs in items.items():
            try:
                loop.call_soon_threadsafe(_deliver, pairs)
            except RuntimeError:
                # The loop is closed, and nobody waits any more.
                logger.debug("%d events of a closed loop are dropped", len(pairs))


def _deliver(pairs: Sequence[tuple[asyncio.Queue[_Item], _Item]]) -> None:
    for queue, item in pairs:
        queue.put_nowait(item)


class Engine:
    """Runs requests side by side; see `GenerationEngine`.

    Args:
        name: The model's name, for metrics, the log and errors.
        executor: What computes; from now on it is this engine's.
        config: The limits.
        rules: What the model says of some of its tokens.
        decode: Decodes tokens, with or without special ones; called on the engine's thread.
        on_failure: Called there with the reason when it can answer no more.
    """

    def __init__(
        self,
        name: str,
        executor: Executor,
        config: EngineConfig,
        rules: TokenRules,
        decode: DecodeText,
        on_failure: Callable[[str], object] = lambda reason: None,
    ) -> None:
        # Configuration.
        self._on_failure = on_failure
        self._name = name
        self._executor = executor
        self._config = config
        self._rules = rules
        self._decode = decode
        # For the engine's thread.
        self._outbox = _Outbox()
        self._scheduler = Scheduler(executor, config, GenerationMetrics(name))
        # For both sides, behind the lock.
        self._changed = threading.Condition()
        self._commands: deque[Job | str] = deque()
        self._stats = self._scheduler.stats()
        self._n_queued = 0
        self._failure: str | None = None
        self._is_stopping = False
        # When the step that runs began, on `perf_counter`'s clock; 0 between steps.
        self._step_began = 0.0
        self._thread = threading.Thread(target=self._work, name=f"generate-{name}", daemon=True)
        self._thread.start()

    @property
    def max_model_len(self) -> int:
        """The tokens of a prompt and its answer together, at most."""
        return self._config.max_model_len

    @property
    def step_seconds(self) -> float:
        """How long the step that runs has taken so far; 0 while there is none."""
        began = self._step_began
        return time.perf_counter() - began if began else 0.0

    def stack(self) -> str:
        """Give what the engine's thread is doing, for the log."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame))

    def submit(self, request: GenerationRequest) -> EventStream:
        """Queue a request; see `GenerationEngine.submit`."""
        queue: asyncio.Queue[_Item] = asyncio.Queue()
        sink = self._outbox.sink(asyncio.get_running_loop(), queue)
        job = self._make_job(request, sink)
        with self._changed:
            self._check_open()
            n_waiting = self._stats.n_waiting + self._n_queued
            if n_waiting >= self._config.max_waiting_requests:
                raise TooManyRequests(
                    f"{n_waiting} requests wait for this model, which is as many as may "
                    "(--max_waiting_requests)"
                )
            self._n_queued += 1
            self._commands.append(job)
            self._changed.notify()
        name = request.request_id
        return EventStream(queue, request.params.n, lambda: self.cancel(name))

    def cancel(self, request_id: str) -> None:
        """End a request; see `GenerationEngine.cancel`."""
        with self._changed:
            self._commands.append(request_id)
            self._changed.notify()

    def stats(self) -> EngineStats:
        """Say what the engine is doing, as of its last step."""
        with self._changed:
            return self._stats

    def health(self) -> str | None:
        """Give why the engine cannot answer, or None where it can."""
        with self._changed:
            return self._failure

    def stop(self, timeout_s: float = 30.0) -> None:
        """End the thread; requests that are left fail. Waits for the step that runs."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _make_job(self, request: GenerationRequest, sink: Callable[[_Item], None]) -> Job:
        """Check whether a request could ever run, and make a job of it.

        Raises:
            ContextLengthExceeded: It is too long for the model.
            InvalidInput: It could not.
        """
        params = request.params
        if not request.prompt_ids:
            raise InvalidInput("expected a prompt of at least one token, got none")
        if not 1 <= params.n <= MAX_N or params.n > self._config.max_num_seqs:
            limit = min(MAX_N, self._config.max_num_seqs)
            raise InvalidInput(f"n: expected 1 to {limit}, got {params.n}")
        if params.prompt_logprobs is not None and self._rules.decoder_start_ids:
            raise InvalidInput(
                "this model has an encoder: it gives no log probabilities of prompts"
            )
        max_tokens = self._max_tokens(request)
        n_tokens = max_tokens + len(self._rules.decoder_start_ids or request.prompt_ids)
        reserved = params.n * self._executor.kv_bytes(n_tokens, len(request.prompt_ids))
        if reserved > self._config.kv_cache_bytes:
            raise InvalidInput(
                f"a prompt of {len(request.prompt_ids)} tokens, {max_tokens} tokens to generate "
                f"and n = {params.n} take {reserved} bytes of the KV cache, which has "
                f"{self._config.kv_cache_bytes} (--kv_cache_bytes): expected fewer tokens"
            )
        sequences = [
            GrowingSequence(index, request, max_tokens, self._rules, self._decode)
            for index in range(params.n)
        ]
        return Job(request, max_tokens, sink, sequences, time.perf_counter(), reserved)

    def _max_tokens(self, request: GenerationRequest) -> int:
        n_prompt, limit = len(request.prompt_ids), self._config.max_model_len
        wanted = request.params.max_tokens
        # With an encoder the answer is not behind the prompt, and has a context of its own.
        n_before = len(self._rules.decoder_start_ids) or n_prompt
        # One token at least has to have room, unless none is wanted.
        n_least = 1 if wanted is None else wanted
        if n_prompt > limit or n_before + n_least > limit:
            wish = "" if wanted is None else f" and {wanted} to generate"
            raise ContextLengthExceeded(
                f"this model's context has {limit} tokens: expected no more, got a prompt of "
                f"{n_prompt}{wish}"
            )
        return self._implied_max_tokens(request, n_before) if wanted is None else wanted

    def _implied_max_tokens(self, request: GenerationRequest, n_before: int) -> int:
        """Give how long an answer may be that has no limit of its own.

        That is what is left of the context. But an answer holds its room in the KV cache from the
        beginning, so where the context is a large part of it, it gets a share.
        """
        n_prompt, most = len(request.prompt_ids), self._config.max_model_len - n_before
        if self._config.default_max_tokens is not None:
            most = min(most, self._config.default_max_tokens)

        def n_fit(n_bytes: int) -> int:
            return count_that_fits(
                most,
                n_bytes // request.params.n,
                lambda count: self._executor.kv_bytes(n_before + count, n_prompt),
            )

        cache = self._config.kv_cache_bytes
        return max(1, n_fit(cache // _IMPLIED_SHARE), min(_IMPLIED_MIN_TOKENS, n_fit(cache)))

    def _check_open(self) -> None:
        if self._failure is not None:
            raise ModelNotReady(self._name, self._failure)
        if self._is_stopping:
            raise ModelNotReady(self._name, "It is being unloaded.")

    def _work(self) -> None:
        """Run steps until the end; the thread dies of nothing that a request does."""
        n_failed = 0
        with torch.inference_mode():
            while (commands := self._next_commands()) is not None:
                self._step_began = time.perf_counter()
                try:
                    self._step(commands)
                    n_failed = 0
                except DeviceLost as exc:
                    self._give_up(str(exc))
                except Exception as exc:
                    logger.exception("Model %s: a step of the engine failed", self._name)
                    self._scheduler.fail_running(_hidden(exc))
                    n_failed += 1
                    if n_failed >= _MAX_FAILED_STEPS:
                        self._give_up(f"{n_failed} steps failed one after the other")
                self._step_began = 0.0
                self._publish()
                self._outbox.send()
        self._scheduler.fail_all(ModelNotReady(self._name, "It is being unloaded."))
        self._publish()
        self._outbox.send()

    def _next_commands(self) -> Sequence[Job | str] | None:
        """Take what has come, waiting for it where there is nothing to do; None is the end."""
        with self._changed:
            while not (self._commands or self._is_stopping or self._scheduler.has_work):
                self._changed.wait()
            commands = list(self._commands)
            if self._is_stopping:
                # They fail as all others do.
                for command in commands:
                    if isinstance(command, Job):
                        self._scheduler.add(command)
                return None
            return commands

    def _step(self, commands: Sequence[Job | str]) -> None:
        for command in commands:
            if isinstance(command, Job):
                self._scheduler.add(command)
            else:
                self._scheduler.cancel(command)
        with self._changed:
            for _ in commands:
                self._commands.popleft()
        self._scheduler.admit()
        with self._changed:
            self._n_queued = sum(isinstance(command, Job) for command in self._commands)
            self._stats = self._scheduler.stats()
            failure = self._failure
        if failure is not None:
            self._scheduler.fail_all(ModelNotReady(self._name, failure))
        self._scheduler.compute()

    def _publish(self) -> None:
        with self._changed:
            self._stats = self._scheduler.stats()

    def _give_up(self, reason: str) -> None:
        logger.critical("Model %s answers no more: %s", self._name, reason)
        with self._changed:
            self._failure = reason
        self._on_failure(reason)
        self._scheduler.fail_all(ModelNotReady(self._name, reason))


def _hidden(error: Exception) -> BaseException:
    """Give what clients are told of an error of the engine's own."""
    return error if isinstance(error, InferenceServerError) else RuntimeError("the engine failed")
