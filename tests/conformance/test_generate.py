"""The routes `generate` and `generate_stream`, of models that write text and of others."""

from typing import TYPE_CHECKING, Any

import orjson
import pytest

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer

    from kserve.testing import Response

ROUTES = ("generate", "generate_stream")


def post(server: "RunningServer", route: str, body: Any) -> "Response":
    return server.request("POST", f"{server.entry.v2}/{route}", body)


def written(server: "RunningServer") -> tuple[dict[str, Any], str]:
    if server.entry.generation is None:
        pytest.skip("it writes no text")
    return server.entry.generation


def test_writes_a_text(server: "RunningServer") -> None:
    body, text = written(server)

    response = post(server, "generate", {"id": "one", **body})

    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    answer.pop("details", None)
    assert answer == {"id": "one", "model_name": server.entry.model_name, "text_output": text}


def test_writes_a_text_in_events(server: "RunningServer") -> None:
    body, text = written(server)

    response = post(server, "generate_stream", {"id": "one", **body})

    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *lines, nothing = response.body.split(b"\n\n")
    assert nothing == b"" and all(line.startswith(b"data: {") for line in lines)
    events = [orjson.loads(line.removeprefix(b"data: ")) for line in lines]
    assert "".join(event["text_output"] for event in events) == text
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]
    assert {(event["id"], event["model_name"]) for event in events} == {
        ("one", server.entry.model_name)
    }


@pytest.mark.parametrize("route", ROUTES)
def test_text_that_is_none_is_a_400(server: "RunningServer", route: str) -> None:
    written(server)

    response = post(server, route, {"text_input": 1})

    assert response.status == 400
    assert response.json() == {"error": "'text_input': expected a text, got 1"}


@pytest.mark.parametrize("route", ROUTES)
def test_model_that_writes_no_text_says_so(server: "RunningServer", route: str) -> None:
    if server.entry.generation is not None:
        pytest.skip("it writes text")

    response = post(server, route, {"text_input": "a"})

    assert response.status == 501
    name = server.entry.model_name
    reason = f"model {name} does not implement generate: it writes no text"
    assert response.json() == {"error": reason}
