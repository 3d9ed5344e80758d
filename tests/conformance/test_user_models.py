"""Models as users write them for KServe's SDK, served as they stand and asked over a socket."""

import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kserve import InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InferenceError, InvalidInput, ModelNotReady, NoModelReady
from kserve.testing import Response, ServerProcess, request, serving
from kserve.utils.utils import get_predict_input, get_predict_response

V2_BODY = {
    "id": "1",
    "inputs": [{"name": "x", "shape": [2], "datatype": "FP64", "data": [1.0, 2.0]}],
}


def predict(port: int, name: str = "m", body: Any = None) -> Response:
    return request(port, "POST", f"/v1/models/{name}:predict", body or {"instances": [1, 2]})


def infer(port: int, name: str = "m") -> Response:
    return request(port, "POST", f"/v2/models/{name}/infer", V2_BODY)


def test_preprocess_may_return_numpy_instances() -> None:
    class ArrayModel(Model):
        def preprocess(self, payload: Any, headers: Any = None) -> Any:
            return {"instances": np.array(payload["instances"])}

        def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
            return {"predictions": payload["instances"] * 2}

    with serving([ArrayModel("m")]) as port:
        response = predict(port)

    assert (response.status, response.body) == (200, b'{"predictions":[2,4]}')


def test_load_and_predict_may_be_async() -> None:
    class AsyncModel(Model):
        async def load(self) -> bool:  # type: ignore[override]
            self.factor = 3
            self.ready = True
            return self.ready

        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            return {"predictions": [self.factor * value for value in payload["instances"]]}

    with serving([AsyncModel("m")]) as port:
        response = predict(port)

    assert (response.status, response.json()) == (200, {"predictions": [3, 6]})


def test_two_models_are_served_each_under_its_name() -> None:
    with serving([Constant("a", 1), Constant("b", 2)]) as port:
        names = request(port, "GET", "/v1/models").json()["models"]
        answers = [predict(port, name).json() for name in ("a", "b")]

    assert sorted(names) == ["a", "b"]
    assert answers == [{"predictions": [1]}, {"predictions": [2]}]


def test_models_may_be_given_by_the_name_to_serve_them_under() -> None:
    with serving({"alias": Constant("a", 1)}) as port:
        statuses = [predict(port, name).status for name in ("alias", "a")]

    assert statuses == [200, 404]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        pytest.param(InvalidInput("no such colour"), 400, "no such colour", id="InvalidInput"),
        pytest.param(
            ModelNotReady("m"), 503, "Model with name m is not ready.", id="ModelNotReady"
        ),
        pytest.param(InferenceError("it broke"), 500, "it broke", id="InferenceError"),
        pytest.param(NotImplementedError("not yet"), 501, "not yet", id="NotImplementedError"),
        pytest.param(KeyError("secret"), 500, "Internal server error", id="any other"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_an_error_raised_in_predict_has_its_status(
    error: Exception, status: int, text: str, is_async: bool
) -> None:
    class Plain(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
            raise error

    class Async(Model):
        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            raise error

    with serving([(Async if is_async else Plain)("m")]) as port:
        v1, v2 = predict(port), infer(port)

    assert (v1.status, v1.json()) == (status, {"error": text})
    assert (v2.status, v2.json()) == (status, {"error": text})


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_sys_exit_in_predict_fails_its_request_alone(is_async: bool) -> None:
    class Plain(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
            sys.exit(3)

    class Async(Model):
        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            sys.exit(3)

    with serving([(Async if is_async else Plain)("m")]) as port:
        response = predict(port)
        live = request(port, "GET", "/")

    assert (response.status, response.json()) == (500, {"error": "Internal server error"})
    assert live.status == 200


def test_predict_and_postprocess_may_set_response_headers() -> None:
    class HeaderModel(Model):
        def predict(self, payload: Any, headers: Any, response_headers: Any) -> Any:  # type: ignore[override]
            response_headers["X-From-Predict"] = headers["x-colour"]
            return {"predictions": [1]}

        async def postprocess(
            self, result: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            response_headers["x-from-postprocess"] = "2"
            return result

    with serving([HeaderModel("m", return_response_headers=True)]) as port:
        response = request(
            port, "POST", "/v1/models/m:predict", {"instances": []}, {"X-Colour": "red"}
        )

    assert response.json() == {"predictions": [1]}
    assert response.headers["x-from-predict"] == "red"
    assert response.headers["x-from-postprocess"] == "2"
    assert response.headers["content-type"] == "application/json"


def test_explain_may_return_a_dict() -> None:
    class Explainer(Model):
        async def explain(self, payload: Any, headers: Any = None) -> Any:
            return {"explanations": {"colour": 0.75, "n": len(payload["instances"])}}

    with serving([Explainer("m")]) as port:
        response = request(port, "POST", "/v1/models/m:explain", {"instances": [1, 2]})
        predicted = predict(port)

    assert (response.status, response.body) == (
        200,
        b'{"explanations":{"colour":0.75,"n":2}}',
    )
    assert (predicted.status, predicted.json()) == (
        501,
        {"error": "model m does not implement predict"},
    )


def test_validate_may_raise_or_return_nothing() -> None:
    class Validated(Model):
        def validate(self, payload: Any) -> None:
            if "instances" not in payload:
                raise InvalidInput("instances are missing")

        def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
            return {"predictions": payload["instances"]}

    with serving([Validated("m")]) as port:
        kept = predict(port)
        refused = predict(port, body={"rows": []})

    assert (kept.status, kept.json()) == (200, {"predictions": [1, 2]})
    assert (refused.status, refused.json()) == (400, {"error": "instances are missing"})


@pytest.mark.parametrize(
    ("key", "status"),
    [
        # A V2 request has what a validate that was written for V1 asks for.
        pytest.param("instances", 200, id="instances"),
        pytest.param("inputs", 200, id="inputs"),
        pytest.param("x", 200, id="a tensor's name"),
        pytest.param("y", 400, id="no tensor's name"),
    ],
)
def test_validate_may_test_what_is_in_a_v2_request(key: str, status: int) -> None:
    class Validated(Model):
        def validate(self, payload: Any) -> None:
            if key not in payload:
                raise InvalidInput("it is missing")

        def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
            return get_predict_response(payload, get_predict_input(payload), self.name)

    with serving([Validated("m")]) as port:
        response = infer(port)

    assert response.status == status


def test_validate_that_returns_nothing_keeps_a_v2_request() -> None:
    class Validated(Model):
        def validate(self, payload: Any) -> None:
            return None

        def predict(self, payload: InferRequest, headers: Any = None) -> Any:  # type: ignore[override]
            output = InferOutput("y", [1], "FP64", [sum(payload.inputs[0].data)])
            return InferResponse(payload.id, self.name, [output])

    with serving([Validated("m")]) as port:
        response = infer(port)

    assert (response.status, response.json()) == (
        200,
        {
            "model_name": "m",
            "model_version": None,
            "id": "1",
            "parameters": None,
            "outputs": [
                {"name": "y", "shape": [1], "datatype": "FP64", "parameters": None, "data": [3.0]}
            ],
        },
    )


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_input_and_output_types_are_the_metadata(is_async: bool) -> None:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    outputs = [{"name": "y", "datatype": "INT64", "shape": [-1]}]

    class Plain(Model):
        def get_input_types(self) -> list[dict[str, Any]]:
            return inputs

        def get_output_types(self) -> list[dict[str, Any]]:
            return outputs

    class Async(Model):
        async def get_input_types(self) -> list[dict[str, Any]]:  # type: ignore[override]
            return inputs

        async def get_output_types(self) -> list[dict[str, Any]]:  # type: ignore[override]
            return outputs

    with serving([(Async if is_async else Plain)("m")]) as port:
        response = request(port, "GET", "/v2/models/m")

    assert (response.status, response.json()) == (
        200,
        {"name": "m", "versions": None, "platform": "", "inputs": inputs, "outputs": outputs},
    )


def test_chunks_of_a_generator_pass_unchanged() -> None:
    class Plain(Model):
        def predict(self, payload: Any, headers: Any = None) -> Iterator[str]:  # type: ignore[override]
            yield from ("one ", "two ", "three")

    class Async(Model):
        async def predict(  # type: ignore[override]
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> AsyncIterator[bytes]:
            for chunk in (b"one ", b"two ", b"three"):
                yield chunk

    with serving([Plain("plain"), Async("async")]) as port:
        responses = [predict(port, name) for name in ("plain", "async")]

    assert [(r.status, r.body) for r in responses] == [(200, b"one two three")] * 2
    assert [r.headers["transfer-encoding"] for r in responses] == ["chunked"] * 2


def test_a_body_of_another_type_reaches_the_model_as_bytes() -> None:
    class ByteCounter(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
            return {"predictions": [len(payload), type(payload).__name__]}

    with serving([ByteCounter("m")]) as port:
        response = request(
            port, "POST", "/v1/models/m:predict", b"\x89PNG\x00", {"Content-Type": "image/png"}
        )

    assert (response.status, response.json()) == (200, {"predictions": [5, "bytes"]})


def test_probes_and_another_model_answer_while_a_predict_blocks() -> None:
    is_released = threading.Event()
    has_begun = threading.Event()

    class Blocked(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
            has_begun.set()
            is_released.wait(15)
            return {"predictions": ["late"]}

    with serving([Blocked("slow"), Constant("fast", 1)]) as port, ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(predict, port, "slow")
        has_begun.wait(15)
        probes = [
            request(port, "GET", path).status
            for path in ("/", "/v2/health/live", "/v2/health/ready", "/v1/models/slow", "/metrics")
        ]
        other = predict(port, "fast").json()
        was_blocked = not blocked.done()
        is_released.set()
        late = blocked.result(15).json()

    assert probes == [200] * 5
    assert other == {"predictions": [1]}
    assert was_blocked
    assert late == {"predictions": ["late"]}


def test_a_model_of_one_argument_is_loaded_by_start(tmp_path: Path) -> None:
    source = """
        from kserve import Model, ModelServer

        class WordCounter(Model):
            def load(self):
                self.split = str.split
                self.ready = True

            def predict(self, request):
                return {"predictions": [len(self.split(t)) for t in request["instances"]]}

        model = WordCounter("words")
        ModelServer().start(models=[model])
    """

    with _running_script(tmp_path, source) as server:
        body = {"instances": ["one two", "three"]}
        response = server.request("POST", "/v1/models/words:predict", body)

    assert (response.status, response.json()) == (200, {"predictions": [2, 1]})


def test_a_script_may_have_flags_of_its_own_beside_the_servers(tmp_path: Path) -> None:
    source = """
        import argparse
        import kserve

        class Factor(kserve.Model):
            def __init__(self, name, factor):
                super().__init__(name)
                self.factor = factor
                self.ready = True

            def predict(self, payload, headers=None):
                return {"predictions": [self.factor * x for x in payload["instances"]]}

        parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
        parser.add_argument("--factor", type=int, default=1)
        args, _ = parser.parse_known_args()

        if __name__ == "__main__":
            m = Factor(args.model_name, args.factor)
            kserve.ModelServer().start([m])
    """
    flags = ("--model_name", "scaled", "--factor", "5", "--workers", "0", "--unknown")

    with _running_script(tmp_path, source, *flags) as server:
        response = server.request("POST", "/v1/models/scaled:predict", {"instances": [1, 2]})

    assert (response.status, response.json()) == (200, {"predictions": [5, 10]})


def test_middleware_and_routes_of_the_app_take_part_in_every_request(tmp_path: Path) -> None:
    source = """
        import kserve
        from kserve.model_server import app
        from starlette.middleware.base import BaseHTTPMiddleware
        from starlette.responses import PlainTextResponse

        class Stamp(BaseHTTPMiddleware):
            async def dispatch(self, request, call_next):
                response = await call_next(request)
                response.headers["x-stamp"] = request.method
                return response

        class Double(kserve.Model):
            def predict(self, payload, headers=None):
                return {"predictions": [2 * x for x in payload["instances"]]}

        async def hello(request):
            return PlainTextResponse("hello")

        app.add_middleware(Stamp)
        app.add_route("/hello", hello)
        kserve.ModelServer().start([Double("m")])
    """

    with _running_script(tmp_path, source) as server:
        predicted = server.request("POST", "/v1/models/m:predict", {"instances": [4]})
        probe = server.request("GET", "/v2/health/ready")
        hello = server.request("GET", "/hello")
        missing = server.request("GET", "/nothing")

    assert (predicted.status, predicted.json()) == (200, {"predictions": [8]})
    assert (probe.status, probe.json()) == (200, {"ready": True})
    assert (hello.status, hello.body) == (200, b"hello")
    assert (missing.status, missing.json()) == (404, {"detail": "Not Found"})
    assert [r.headers["x-stamp"] for r in (predicted, probe, hello, missing)] == [
        "POST",
        "GET",
        "GET",
        "GET",
    ]


def test_a_model_that_is_not_healthy_is_503_on_every_route_and_so_is_the_server() -> None:
    class Switched(Model):
        is_well = True

        def healthy(self) -> bool:  # type: ignore[override]
            return self.is_well

        def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
            return {"predictions": [1]}

    model = Switched("TestModel")
    get_routes = ("/v1/models/TestModel", "/v2/models/TestModel/ready")
    verbs = ("/v1/models/TestModel:predict", "/v1/models/TestModel:explain")
    post_routes = (*verbs, "/v2/models/TestModel/infer")

    with serving([model]) as port:
        ready_before = request(port, "GET", "/v2/health/ready")
        model.is_well = False
        refused = [request(port, "GET", path) for path in get_routes]
        refused += [request(port, "POST", path, V2_BODY) for path in post_routes]
        not_ready = request(port, "GET", "/v2/health/ready")
        live = request(port, "GET", "/v2/health/live")
        model.is_well = True
        ready_after = request(port, "GET", "/v2/health/ready")

    error = {"error": "Model with name TestModel is not ready."}
    assert [(r.status, r.json()) for r in refused] == [(503, error)] * 5
    assert (not_ready.status, not_ready.json()) == (
        503,
        {"error": "Server is not ready. Model with name TestModel is not ready."},
    )
    assert [ready_before.status, live.status, ready_after.status] == [200, 200, 200]


def test_a_model_that_cannot_load_is_unavailable_beside_one_that_can() -> None:
    class Broken(Model):
        def load(self) -> bool:
            raise ValueError("the file is cut short")

    with serving([Broken("broken"), Constant("good", 1)]) as port:
        names = request(port, "GET", "/v2/models").json()
        ready = request(port, "GET", "/v2/health/ready").status
        refused = predict(port, "broken")
        answered = predict(port, "good")

    assert sorted(names["models"]) == ["broken", "good"]
    assert ready == 503
    assert refused.status == 503
    assert refused.json()["error"].startswith("Model with name broken is not ready.")
    assert (answered.status, answered.json()) == (200, {"predictions": [1]})


def test_a_start_without_any_model_that_loads_is_refused() -> None:
    class Broken(Model):
        def load(self) -> bool:
            raise ValueError("the file is cut short")

    with pytest.raises(NoModelReady) as caught, serving([Broken("broken")]):
        pass

    assert str(caught.value) == (
        "Models with name broken are not ready. ValueError: the file is cut short"
    )


class Constant(Model):
    """Predicts one value."""

    def __init__(self, name: str, value: int) -> None:
        super().__init__(name)
        self._value = value

    def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
        return {"predictions": [self._value]}


def _running_script(folder: Path, source: str, *flags: str) -> ServerProcess:
    script = folder / "server.py"
    script.write_text(textwrap.dedent(source))
    return ServerProcess(str(script), *flags)
