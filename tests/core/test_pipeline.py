"""The handlers of a user's model."""

import asyncio
import functools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
from prometheus_client import REGISTRY

from kserve.executor import ModelThreads, run_in_new_thread
from kserve.model import Model
from kserve.pipeline import HandlerPipeline, is_default_handler

pytestmark = pytest.mark.anyio

_JOIN_S = 10


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def here() -> str:
    return threading.current_thread().name


def model_with(name: str = "m", return_response_headers: bool = False, **handlers: Any) -> Model:
    model = Model(name, return_response_headers)
    for handler, function in handlers.items():
        setattr(model, handler, function)
    return model


async def run(model: Model, payload: Any = "payload", verb: str = "predict") -> Any:
    return await HandlerPipeline(model).run(payload, {"a": "b"}, verb)


async def test_hands_each_handlers_result_to_the_next() -> None:
    model = model_with(
        preprocess=lambda payload: [payload, "preprocess"],
        validate=lambda payload: [*payload, "validate"],
        predict=lambda payload: [*payload, "predict"],
        postprocess=lambda result: [*result, "postprocess"],
    )

    response = await run(model)

    assert response == (["payload", "preprocess", "validate", "predict", "postprocess"], {})


async def test_explains_between_the_same_handlers() -> None:
    model = model_with(
        preprocess=lambda payload: [payload, "preprocess"],
        explain=lambda payload: [*payload, "explain"],
        postprocess=lambda result: [*result, "postprocess"],
    )

    response = await run(model, verb="explain")

    assert response == (["payload", "preprocess", "explain", "postprocess"], {})


def every(*args: Any, **kwargs: Any) -> Any:
    return [*args, kwargs] if kwargs else list(args)


class Arguments:
    def __call__(self, payload: Any, headers: Any) -> Any:
        return [payload, headers]


def with_keyword_only(payload: Any, *, headers: Any) -> Any:
    return [payload, headers]


def with_both_keyword_only(payload: Any, *, response_headers: Any, headers: Any) -> Any:
    return [payload, headers, response_headers]


def with_headers_and_keyword(payload: Any, headers: Any, *, response_headers: Any) -> Any:
    return [payload, headers, response_headers]


def with_any_keyword(payload: Any, **kwargs: Any) -> Any:
    return [payload, kwargs]


def with_headers_named_payload(headers: Any, **kwargs: Any) -> Any:
    return [headers, kwargs]


def with_optional(payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
    return [payload, headers, response_headers]


def with_three(payload: Any, headers: Any, response_headers: Any) -> Any:
    return [payload, headers, response_headers]


def with_positional_only(payload: Any, headers: Any, /) -> Any:
    return [payload, headers]


class Untold:
    """A callable that does not tell its parameters, as functions of compiled modules."""

    @property
    def __signature__(self) -> None:
        raise ValueError("no signature found")

    def __call__(self, *args: Any) -> Any:
        return list(args)


H: dict[str, str] = {"a": "b"}
R: dict[str, str] = {}


@pytest.mark.parametrize(
    ("handler", "plain", "with_response_headers"),
    [
        pytest.param(lambda p: [p], ["p"], ["p"], id="payload"),
        pytest.param(lambda p, h: [p, h], ["p", H], ["p", H], id="headers"),
        pytest.param(lambda p, h=None: [p, h], ["p", H], ["p", H], id="optional headers"),
        pytest.param(with_optional, ["p", H, None], ["p", H, R], id="optional response headers"),
        pytest.param(with_three, ["p", H, R], ["p", H, R], id="three"),
        pytest.param(with_positional_only, ["p", H], ["p", H], id="positional only"),
        pytest.param(with_keyword_only, ["p", H], ["p", H], id="keyword only"),
        pytest.param(with_both_keyword_only, ["p", H, R], ["p", H, R], id="both keyword only"),
        pytest.param(
            with_headers_and_keyword, ["p", H, R], ["p", H, R], id="response headers keyword only"
        ),
        pytest.param(every, ["p", H], ["p", H, R], id="*args, **kwargs"),
        pytest.param(lambda *args: list(args), ["p", H], ["p", H, R], id="*args"),
        pytest.param(
            with_any_keyword,
            ["p", {"headers": H}],
            ["p", {"headers": H, "response_headers": R}],
            id="**kwargs",
        ),
        pytest.param(
            with_headers_named_payload,
            ["p", {}],
            ["p", {"response_headers": R}],
            id="payload named headers",
        ),
        pytest.param(functools.partial(every, 0), [0, "p", H], [0, "p", H, R], id="partial"),
        pytest.param(Arguments(), ["p", H], ["p", H], id="callable object"),
        pytest.param(Untold(), ["p"], ["p"], id="no signature"),
    ],
)
async def test_gives_a_handler_as_many_arguments_as_it_takes(
    handler: Callable[..., Any], plain: list[Any], with_response_headers: list[Any]
) -> None:
    results = [
        (await run(model_with("m", wants, predict=handler), "p"))[0] for wants in (False, True)
    ]

    assert results == [plain, with_response_headers]


@pytest.mark.parametrize("name", ["preprocess", "explain", "postprocess"])
async def test_other_handlers_take_as_few_arguments(name: str) -> None:
    verb = "explain" if name == "explain" else "predict"
    handlers = {"predict": lambda payload: payload, name: lambda payload: [name, payload]}

    result, _ = await run(model_with("m", False, **handlers), verb=verb)

    assert result == [name, "payload"]


async def test_preprocess_is_given_no_response_headers_for_an_argument_of_its_own() -> None:
    def preprocess(payload: Any, headers: Any, scale: int = 3) -> int:
        return scale

    model = model_with("m", True, preprocess=preprocess, predict=lambda payload: payload)

    assert await run(model) == (3, {})


async def test_all_handlers_of_a_request_share_one_mutable_headers_dict() -> None:
    def preprocess(payload: Any, headers: dict[str, str]) -> Any:
        headers["kind"] = "image"
        return payload

    async def predict(payload: Any, headers: dict[str, str]) -> Any:
        headers["kind"] += "/png"
        return payload

    model = model_with(
        preprocess=preprocess,
        predict=predict,
        postprocess=lambda result, headers: headers["kind"],
    )
    headers: dict[str, str] = {}

    response, _ = await HandlerPipeline(model).run("p", headers, "predict")

    assert (response, headers) == ("image/png", {"kind": "image/png"})


async def test_gives_the_response_headers_that_predict_and_postprocess_set() -> None:
    def predict(payload: Any, headers: Any, response_headers: dict[str, str]) -> Any:
        response_headers["x-first"] = "1"
        return payload

    async def postprocess(result: Any, headers: Any, response_headers: dict[str, str]) -> Any:
        response_headers["x-second"] = response_headers["x-first"] + "2"
        return result

    model = model_with("m", True, predict=predict, postprocess=postprocess)

    assert await run(model) == ("payload", {"x-first": "1", "x-second": "12"})


async def as_coroutine(value: Any) -> Any:
    return value


async def coroutine_none(payload: Any) -> None:
    return None


@pytest.mark.parametrize(
    ("validate", "expected"),
    [
        pytest.param(lambda payload: None, "payload", id="nothing keeps the payload"),
        pytest.param(lambda payload: "other", "other", id="a result replaces it"),
        pytest.param(lambda payload: [], [], id="an empty result replaces it"),
        pytest.param(coroutine_none, "payload", id="async, nothing"),
        pytest.param(lambda payload: coroutine_none(payload), "payload", id="gives a coroutine"),
    ],
)
async def test_validate_may_return_nothing(validate: Callable[..., Any], expected: Any) -> None:
    model = model_with(validate=validate, predict=lambda payload: payload)

    assert await run(model) == (expected, {})


async def test_a_result_of_none_is_a_result_for_every_other_handler() -> None:
    model = model_with(predict=lambda payload: None, postprocess=lambda result: [result])

    assert await run(model) == ([None], {})


async def test_plain_handlers_run_on_the_models_thread_and_async_ones_on_the_loop() -> None:
    seen = []

    async def validate(payload: Any) -> None:
        seen.append(("validate", here()))

    def preprocess(payload: Any) -> Any:
        seen.append(("preprocess", here()))
        return payload

    def predict(payload: Any) -> Any:
        seen.append(("predict", here()))
        return payload

    async def postprocess(result: Any) -> Any:
        seen.append(("postprocess", here()))
        return result

    model = model_with(
        "placed",
        preprocess=preprocess,
        validate=validate,
        predict=predict,
        postprocess=postprocess,
    )
    await run(model)

    assert seen == [
        ("preprocess", "placed-0"),
        ("validate", here()),
        ("predict", "placed-0"),
        ("postprocess", here()),
    ]


async def test_consecutive_plain_handlers_run_in_one_visit_to_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visits = []
    submit = ModelThreads.submit

    def counting(self: ModelThreads, function: Callable[..., Any], *args: Any) -> Any:
        visits.append(function)
        return submit(self, function, *args)

    monkeypatch.setattr(ModelThreads, "submit", counting)
    model = model_with(
        preprocess=lambda payload: [payload],
        predict=lambda payload: payload + [1],
        postprocess=lambda result: result + [2],
    )

    response, _ = await run(model, 0)

    assert response == [0, 1, 2]
    assert len(visits) == 1


async def test_a_plain_handler_that_gives_a_coroutine_is_awaited_before_the_next() -> None:
    model = model_with(
        preprocess=lambda payload: as_coroutine([payload, here()]),
        predict=lambda payload: [*payload, here()],
        postprocess=lambda result: as_coroutine([*result, "end"]),
        name="mixed",
    )

    response, _ = await run(model)

    assert response == ["payload", "mixed-0", "mixed-0", "end"]


async def test_handlers_may_be_objects_partials_and_static_methods() -> None:
    class Shapes(Model):
        @staticmethod
        def preprocess(payload: Any) -> Any:  # type: ignore[override]
            return [payload, here()]

        @classmethod
        async def predict(cls, payload: Any) -> Any:  # type: ignore[override]
            return [*payload, cls.__name__]

    model = Shapes("shapes")
    model.postprocess = functools.partial(every, "fixed")  # type: ignore[method-assign]

    response, _ = await run(model, "p")

    assert response == ["fixed", ["p", "shapes-0", "Shapes"], {"a": "b"}]


async def test_a_wrapper_around_a_default_handler_is_called() -> None:
    seen = []

    class Traced(Model):
        @functools.wraps(Model.preprocess)
        async def preprocess(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
            seen.append(payload)
            return await super().preprocess(payload, headers)

        def predict(self, payload: Any) -> Any:  # type: ignore[override]
            return payload

    response = await run(Traced("traced"))

    assert (seen, response) == (["payload"], ("payload", {}))


async def test_a_mock_is_a_handler_like_any_other() -> None:
    preprocess = MagicMock(return_value="mocked")
    model = model_with(preprocess=preprocess, predict=lambda payload: payload)

    response = await run(model)

    assert response == ("mocked", {})


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        pytest.param(Model("m").preprocess, True, id="bound"),
        pytest.param(Model.validate, True, id="function"),
        pytest.param(Model("m").predict, False, id="predict"),
        pytest.param(functools.partial(Model.validate), False, id="partial"),
        pytest.param(MagicMock(), False, id="mock"),
    ],
)
def test_tells_default_handlers(handler: Callable[..., Any], expected: bool) -> None:
    assert is_default_handler(handler) is expected


async def test_a_plain_generator_is_drawn_chunk_by_chunk_on_the_models_thread() -> None:
    def predict(payload: Any) -> Iterator[str]:
        for number in range(3):
            yield f"{here()} {number}"

    chunks, headers = await run(model_with("drawn", predict=predict))

    assert [chunk async for chunk in chunks] == ["drawn-0 0", "drawn-0 1", "drawn-0 2"]
    assert headers == {}


async def test_an_async_generator_is_given_as_it_is() -> None:
    async def predict(payload: Any) -> AsyncIterator[str]:
        yield here()

    chunks, _ = await run(model_with("streams", predict=predict))

    assert [chunk async for chunk in chunks] == [here()]


async def test_an_iterator_that_an_async_predict_returns_is_drawn_on_the_thread() -> None:
    async def predict(payload: Any) -> Any:
        return (here() for _ in range(2))

    chunks, _ = await run(model_with("mapped", predict=predict))

    assert [chunk async for chunk in chunks] == ["mapped-0", "mapped-0"]


async def test_an_error_of_a_generator_reaches_the_one_who_draws() -> None:
    def predict(payload: Any) -> Iterator[int]:
        yield 1
        raise LookupError("mine")

    chunks, _ = await run(model_with(predict=predict))
    drawn = []
    with pytest.raises(LookupError, match="^'?mine'?$"):
        async for chunk in chunks:
            drawn.append(chunk)  # noqa: PERF401 - what came before the error counts

    assert drawn == [1]


async def test_a_generator_that_is_left_early_is_closed_on_the_models_thread() -> None:
    threads = ModelThreads("left")
    closed_on = []

    def predict(payload: Any) -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed_on.append(here())

    model = model_with("left", predict=predict)
    chunks, _ = await HandlerPipeline(model, threads).run("p", {}, "predict")
    first = await anext(chunks)
    await chunks.aclose()
    await threads.run(int)

    assert (first, closed_on) == (1, ["left-0"])


async def test_cancelling_does_not_wait_for_a_generator_that_hangs() -> None:
    threads = ModelThreads("hung")
    entered, release = threading.Event(), threading.Event()

    def predict(payload: Any) -> Iterator[int]:
        entered.set()
        release.wait(_JOIN_S)
        yield 1

    model = model_with("hung", predict=predict)
    chunks, _ = await HandlerPipeline(model, threads).run("p", {}, "predict")
    drawing = asyncio.ensure_future(anext(chunks))
    await run_in_new_thread(entered.wait, _JOIN_S)
    drawing.cancel()
    done, _ = await asyncio.wait({drawing}, timeout=_JOIN_S)
    was_hung = not release.is_set()
    release.set()
    await threads.run(int)

    assert (done, was_hung, drawing.cancelled()) == ({drawing}, True, True)


async def test_a_generator_that_cannot_be_closed_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    threads = ModelThreads("stuck")

    def predict(payload: Any) -> Iterator[int]:
        try:
            yield 1
        finally:
            raise LookupError("mine")

    model = model_with("stuck", predict=predict)
    chunks, _ = await HandlerPipeline(model, threads).run("p", {}, "predict")
    await anext(chunks)
    await chunks.aclose()
    await threads.run(int)

    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("ERROR", "The generator of a response could not be closed")
    ]


async def test_an_iterator_without_close_is_drawn_to_its_end() -> None:
    model = model_with(predict=lambda payload: iter([1, 2]))

    chunks, _ = await run(model)

    assert [chunk async for chunk in chunks] == [1, 2]


@pytest.mark.parametrize(
    ("verb", "handler"),
    [
        ("predict", "preprocess"),
        ("predict", "predict"),
        ("predict", "postprocess"),
        ("explain", "explain"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
async def test_records_the_seconds_of_each_handler(
    verb: str, handler: str, is_async: bool, fails: bool
) -> None:
    def plain(payload: Any) -> Any:
        if fails:
            raise LookupError
        return payload

    async def asynchronous(payload: Any) -> Any:
        return plain(payload)

    handlers: dict[str, Any] = {"predict": lambda payload: payload}
    handlers[handler] = asynchronous if is_async else plain
    name = f"timed-{handler}-{is_async}-{fails}"
    pipeline = HandlerPipeline(model_with(name, **handlers))

    try:
        await pipeline.run("p", {}, verb)
    except LookupError:
        pass

    count = REGISTRY.get_sample_value(f"request_{handler}_seconds_count", {"model_name": name})
    assert count == 1


@pytest.mark.parametrize("verb", ["predict", "explain"])
async def test_a_model_without_the_handler_says_so(verb: str) -> None:
    with pytest.raises(NotImplementedError, match=f"^model m does not implement {verb}$"):
        await run(Model("m"), verb=verb)
