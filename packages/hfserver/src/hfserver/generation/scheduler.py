"""What each step computes: first the next token of every sequence, then parts of prompts.

A request is admitted when the KV cache has room for all that it may ever need, so that nothing
that runs is ever put back. Prompts are computed in parts of a budget of tokens, so that no sequence
waits for another one's long prompt.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import torch

from hfserver.generation.executors.base import Chunk, Executor
from hfserver.generation.interface import EngineStats, PromptEvent
from hfserver.generation.metrics import GenerationMetrics
from hfserver.generation.prefix_cache import BLOCK_TOKENS, PrefixCache, block_names
from hfserver.generation.sampling import token_logprobs
from hfserver.generation.sequence import GrowingSequence, Job
from hfserver.generation.settings import EngineConfig
from kserve.errors import DeadlineExceeded, InferenceError
from kserve.logging import logger

# Decodes leave prompts at least this share of a step's tokens, or they would starve.
_PROMPT_SHARE: Final = 4

# Rows of logits that a forward gives for log probabilities of a prompt; each is as wide as the
# vocabulary.
_MAX_LOGPROB_ROWS: Final = 64


class DeviceLost(Exception):
    """The device works no more, for this process at least."""


class Scheduler:
    """Runs requests on an executor, step by step; for the engine's thread.

    Args:
        executor: What computes.
        config: The limits.
        metrics: Where to count.
    """

    def __init__(
        self, executor: Executor, config: EngineConfig, metrics: GenerationMetrics
    ) -> None:
        # Configuration.
        self._executor = executor
        self._config = config
        self._metrics = metrics
        # Requests.
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        # What is taken.
        self._reserved_bytes = 0
        self._prefixes = PrefixCache(config.prefix_cache_bytes if executor.has_prefixes else 0)
        self._n_steps = 0
        self._n_forward_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._waiting)

    def stats(self) -> EngineStats:
        """Say what it is doing."""
        return EngineStats(
            n_running=len(self._running),
            n_waiting=len(self._waiting),
            n_steps=self._n_steps,
            n_forward_tokens=self._n_forward_tokens,
            kv_used_bytes=self._reserved_bytes,
            kv_total_bytes=self._config.kv_cache_bytes,
            prefix_bytes=self._prefixes.n_bytes,
        )

    def add(self, job: Job) -> None:
        """Queue a request."""
        self._waiting.append(job)

    def cancel(self, request_id: str) -> None:
        """End a request; one that is unknown has ended already."""
        for job in (*self._waiting, *self._running):
            if job.request.request_id == request_id:
                self._drop(job, "cancelled")
                for sequence in job.sequences:
                    if not sequence.is_finished:
                        job.sink(sequence.end("cancelled"))
                return

    def fail_all(self, error: BaseException) -> None:
        """Fail every request."""
        for job in (*self._waiting, *self._running):
            self._fail(job, error)

    def fail_running(self, error: BaseException) -> None:
        """Fail the requests that a step may have left half done."""
        for job in list(self._running):
            self._fail(job, error)

    def admit(self) -> None:
        """Begin a step: fail what is late, and let run what there is room for."""
        self._expire(time.perf_counter())
        self._admit()
        self._record()

    def compute(self) -> None:
        """Compute the next tokens.

        Raises:
            DeviceLost: The device works no more.
        """
        self._n_steps += 1
        plan = self._plan()
        if plan:
            self._compute(plan)
        self._record()

    def _expire(self, now: float) -> None:
        for job in (*self._waiting, *self._running):
            deadline = job.request.deadline
            if deadline is not None and deadline <= now:
                self._fail(job, DeadlineExceeded("the answer was not complete in time"))

    def _admit(self) -> None:
        n_sequences = sum(len(job.sequences) for job in self._running)
        while self._waiting:
            job = self._waiting[0]
            n_sequences += len(job.sequences)
            is_over = n_sequences > self._config.max_num_seqs and len(self._running) > 0
            reserved = self._reserved_bytes + job.reserved_bytes
            if is_over or reserved > self._config.kv_cache_bytes:
                return
            self._waiting.popleft()
            self._reserved_bytes = reserved
            self._running.append(job)
            self._metrics.queue_time(time.perf_counter() - job.arrived_at)
            try:
                self._open(job)
            except Exception as exc:
                self._fail_by(job, exc)

    def _open(self, job: Job) -> None:
        job.prepare(self._executor.device)
        first = job.sequences[0]
        first.state = self._executor.open(
            len(first.tokens) + job.max_tokens, job.request.prompt_ids
        )

    def _plan(self) -> list[tuple[Job, GrowingSequence, Chunk]]:
        """Say what the next forward computes."""
        growing = [(job, sequence) for job in self._running for sequence in job.growing]
        plan = [
            (job, sequence, Chunk(sequence.state, sequence.tokens[-1:]))
            for job, sequence in growing
            if sequence.is_decoding
        ]
        limit = self._config.max_batch_tokens
        budget = max(limit - len(plan), limit // _PROMPT_SHARE, 1)
        for job, sequence in growing:
            if sequence.is_decoding or budget <= 0:
                continue
            if sequence.n_computed == 0:
                self._reuse(job, sequence)
            chunk = self._next_part(job, sequence, budget)
            budget -= max(len(chunk.token_ids), len(job.request.prompt_ids) if _encodes(job) else 0)
            plan.append((job, sequence, chunk))
        return plan

    def _next_part(self, job: Job, sequence: GrowingSequence, budget: int) -> Chunk:
        """Give the next part of a prompt, of at most `budget` tokens where it can be cut."""
        wants_logprobs = job.prompt_logprobs is not None and not job.has_read_prompt
        start, end = sequence.n_computed, len(sequence.tokens)
        if self._executor.can_chunk:
            limit = min(budget, _MAX_LOGPROB_ROWS) if wants_logprobs else budget
            end = min(end, start + limit)
        if wants_logprobs:
            n_logits = end - start
        else:
            n_logits = int(end == len(sequence.tokens))
        return Chunk(sequence.state, sequence.tokens[start:end], n_logits)

    def _reuse(self, job: Job, sequence: GrowingSequence) -> None:
        """Begin with what is known of the prompt; its last token is always computed."""
        if not self._config.prefix_cache_bytes or not self._executor.has_prefixes:
            return
        self._metrics.prefix_queries(len(sequence.tokens))
        if job.prompt_logprobs is not None:
            return
        names = block_names(sequence.tokens[:-1], job.request.cache_salt)
        for block in self._prefixes.find(names):
            self._executor.write_block(sequence.state, block)
            sequence.n_computed += BLOCK_TOKENS
        job.n_cached_tokens = sequence.n_computed
        self._metrics.prefix_hits(sequence.n_computed)

    def _keep(self, job: Job, sequence: GrowingSequence) -> None:
        """Keep what has been computed of a sequence for others."""
        if not self._config.prefix_cache_bytes or not self._executor.has_prefixes:
            return
        names = block_names(sequence.tokens[: sequence.n_computed], job.request.cache_salt)
        if not names or not self._prefixes.has_room(self._executor.kv_bytes(BLOCK_TOKENS, 0)):
            return
        blocks = [
            self._executor.read_block(
                sequence.state, index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS
            )
            for index in range(self._prefixes.n_known(names), len(names))
        ]
        self._prefixes.add(names, blocks)

    def _compute(self, plan: Sequence[tuple[Job, GrowingSequence, Chunk]]) -> None:
        chunks = [chunk for _, _, chunk in plan]
        self._n_forward_tokens += sum(len(chunk.token_ids) for chunk in chunks)
        try:
            logits: Sequence[torch.Tensor | Exception] = self._executor.run(chunks)
        except Exception as exc:
            _check_device(exc)
            logits = [exc] if len(plan) == 1 else self._one_by_one(plan)
        for (job, sequence, chunk), rows in zip(plan, logits, strict=True):
            if isinstance(rows, Exception):
                self._fail_by(job, rows)
            # Another sequence of the same request may have failed before.
            elif job in self._running:
                sequence.n_computed += len(chunk.token_ids)
                self._advance(job, sequence, rows)

    def _one_by_one(
        self, plan: Sequence[tuple[Job, GrowingSequence, Chunk]]
    ) -> list[torch.Tensor | Exception]:
        """Compute alone what failed together, so that only the culprit fails."""
        results: list[torch.Tensor | Exception] = []
        held = [self._executor.recover(chunk.state, grown.n_computed) for _, grown, chunk in plan]
        for (_, sequence, chunk), n_held in zip(plan, held, strict=True):
            try:
                results.append(self._alone(sequence, chunk, n_held))
            except Exception as exc:
                _check_device(exc)
                results.append(exc)
        return results

    def _alone(self, sequence: GrowingSequence, chunk: Chunk, n_held: int) -> torch.Tensor:
        start = sequence.n_computed
        if not self._executor.can_chunk:
            tokens = sequence.tokens[n_held : start + len(chunk.token_ids)]
            return self._executor.run([Chunk(chunk.state, tokens, chunk.n_logits)])[0]
        for begin in range(n_held, start, self._config.max_batch_tokens):
            end = min(start, begin + self._config.max_batch_tokens)
            self._executor.run([Chunk(chunk.state, sequence.tokens[begin:end], 0)])
        return self._executor.run([chunk])[0]

    def _advance(self, job: Job, sequence: GrowingSequence, rows: torch.Tensor) -> None:
        """Take what a forward gave for a sequence."""
        try:
            if job.prompt_logprobs is not None and not job.has_read_prompt:
                self._add_prompt_logprobs(job, sequence, rows)
            if sequence.n_computed < len(sequence.tokens):
                return
            if job.has_read_prompt:
                self._grow(job, sequence, rows[-1])
            else:
                self._finish_prompt(job, sequence, rows[-1])
        except Exception as exc:
            _check_device(exc)
            self._fail_by(job, exc)
            return
        if all(sequence.is_finished for sequence in job.sequences):
            self._drop(job, job.reason)

    def _add_prompt_logprobs(self, job: Job, sequence: GrowingSequence, rows: torch.Tensor) -> None:
        # The row of a token says how likely the next one is; that of the last is the answer's.
        first = sequence.n_computed - len(rows) + 1
        following = sequence.tokens[first : sequence.n_computed + 1]
        assert job.prompt_logprobs is not None
        job.prompt_logprobs.extend(
            token_logprobs(
                rows[: len(following)], following, job.request.params.prompt_logprobs or 0
            )
        )

    def _finish_prompt(self, job: Job, first: GrowingSequence, logits: torch.Tensor) -> None:
        """Let all sequences of a request go on from its prompt."""
        self._keep(job, first)
        self._metrics.prompt_tokens(len(job.request.prompt_ids))
        job.sink(PromptEvent(job.n_cached_tokens, job.prompt_logprobs))
        if job.max_tokens == 0:
            job.reason = "length"
            for sequence in job.sequences:
                job.sink(sequence.end("length"))
            job.has_read_prompt = True
            return
        for sequence in job.sequences[1:]:
            sequence.state = self._executor.fork(first.state)
            sequence.n_computed = first.n_computed
        job.has_read_prompt = True
        self._metrics.first_token(time.perf_counter() - job.arrived_at)
        for sequence in job.sequences:
            self._grow(job, sequence, logits.clone())

    def _grow(self, job: Job, sequence: GrowingSequence, logits: torch.Tensor) -> None:
        event = sequence.grow(logits)
        now = time.perf_counter()
        if sequence.n_chosen > 1:
            self._metrics.inter_token(now - sequence.last_token_at)
        sequence.last_token_at = now
        self._metrics.generation_tokens()
        job.sink(event)
        if sequence.is_finished:
            job.reason = event.finish_reason or job.reason
            self._keep(job, sequence)
            self._close(sequence)

    def _fail_by(self, job: Job, error: Exception) -> None:
        """Fail a request by what it raised."""
        if isinstance(error, ValueError) and not hasattr(error, "http_status"):
            error = InferenceError(str(error))
        if not hasattr(error, "http_status"):
            logger.error("Request %s failed", job.request.request_id, exc_info=error)
        self._fail(job, error)

    def _fail(self, job: Job, error: BaseException) -> None:
        self._drop(job, "error")
        job.sink(error)

    def _drop(self, job: Job, reason: str) -> None:
        """Take a request out, and free what it holds."""
        if job in self._running:
            self._running.remove(job)
            self._reserved_bytes -= job.reserved_bytes
        else:
            self._waiting.remove(job)
        for sequence in job.sequences:
            self._close(sequence)
        self._metrics.finished(reason)
        self._metrics.e2e(time.perf_counter() - job.arrived_at)

    def _close(self, sequence: GrowingSequence) -> None:
        if sequence.state is not None:
            self._executor.close(sequence.state)
            sequence.state = None

    def _record(self) -> None:
        self._metrics.set_running(len(self._running))
        self._metrics.set_waiting(len(self._waiting))
        self._metrics.set_kv_usage(self._reserved_bytes / max(1, self._config.kv_cache_bytes))


def _encodes(job: Job) -> bool:
    """Say whether the next forward of a request runs its encoder."""
    first = job.sequences[0]
    return first.n_computed == 0 and len(first.tokens) < len(job.request.prompt_ids)


def _check_device(error: BaseException) -> None:
    """Tell an error of a request from one of the device.

    Raises:
        DeviceLost: After the like of it nothing that runs on the device works any more.
    """
    if isinstance(error, DeviceLost):
        raise error
    is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    is_device = isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
    if is_device and not is_memory:
        raise DeviceLost(f"the device failed: {error}") from error
