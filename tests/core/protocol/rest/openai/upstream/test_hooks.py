"""The forms that a hook may have."""

import asyncio
import threading
from typing import Any

import pytest

from kserve.executor import ModelThreads
from kserve.protocol.rest.openai.types import Completion, CompletionRequest
from kserve.protocol.rest.openai.upstream.hooks import AnswerHook, Hook, Outcome, RequestHook

DOCUMENT = {"model": "m", "choices": [], "x": 1}


def none() -> Completion:
    return Completion(model="none", choices=[])


def one(completion: Completion) -> None:
    completion.model = "one"


def three(completion: Completion, request: Any, raw_request: Any) -> None:
    completion.model = f"three {request} {raw_request}"


def any_number(*args: Any) -> None:
    args[0].model = f"any {len(args)}"


async def asynchronous(completion: Completion, request: Any) -> None:
    await asyncio.sleep(0)
    completion.model = f"async {request}"


@pytest.mark.parametrize(
    ("function", "model"),
    [
        (none, "none"),
        (one, "one"),
        (three, "three r raw"),
        (any_number, "any 3"),
        (asynchronous, "async r"),
    ],
)
@pytest.mark.parametrize("is_validated", [False, True])
def test_gets_as_much_as_it_takes(function: Any, model: str, is_validated: bool) -> None:
    hook = AnswerHook(Hook(function), Completion, is_validated=is_validated)

    for threads in (None, ModelThreads("m")):
        outcome = asyncio.run(hook.apply([DOCUMENT, DOCUMENT], ("r", "raw"), threads))
        assert [each["model"] for each in outcome.documents] == [model] * 2
        assert outcome.documents[0]["x"] == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_keeps_what_was_changed_before_one_failed(is_async: bool) -> None:
    def fail_at_second(completion: Completion) -> None:
        if completion.model == "second":
            raise RuntimeError("no")
        completion.model = "changed"

    async def fail_later(completion: Completion) -> None:
        fail_at_second(completion)

    hook = AnswerHook(
        Hook(fail_later if is_async else fail_at_second), Completion, is_validated=True
    )
    documents = [{**DOCUMENT, "model": name} for name in ("first", "second", "third")]

    outcome = asyncio.run(hook.apply(documents, (), None))

    assert outcome == Outcome([{**DOCUMENT, "model": "changed"}], outcome.failure)
    assert str(outcome.failure) == "no"


@pytest.mark.parametrize("is_async", [False, True])
def test_keeps_what_was_changed_before_one_gave_no_object(is_async: bool) -> None:
    def give(completion: Completion) -> Any:
        return None if completion.model == "first" else {"model": "no object"}

    async def give_later(completion: Completion) -> Any:
        return give(completion)

    hook = AnswerHook(Hook(give_later if is_async else give), Completion, is_validated=True)
    documents = [{**DOCUMENT, "model": name} for name in ("first", "second")]

    outcome = asyncio.run(hook.apply(documents, (), None))

    assert outcome.documents == [{**DOCUMENT, "model": "first"}]
    assert "expected a Completion, got dict" in str(outcome.failure)


def test_the_hook_of_a_request_runs_on_a_thread_of_the_model() -> None:
    names = []

    def hook(request: CompletionRequest) -> None:
        names.append(threading.current_thread().name)
        request.max_tokens = 3

    request = CompletionRequest(model="m", prompt="a")
    applied = RequestHook(Hook(hook)).apply(request, {"y": 1}, None, ModelThreads("own"))

    changed, document = asyncio.run(applied)

    assert changed is request
    assert document == {"y": 1, "max_tokens": 3}
    assert names == ["own-0"]
