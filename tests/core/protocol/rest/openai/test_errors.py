"""Errors that handlers raise and give."""

from http import HTTPStatus

import pytest

from kserve.protocol.rest.openai import (
    OpenAIError,
    create_error_response,
    invalid_request,
    unsupported_api,
)


def test_a_text_is_an_error_of_the_server_s() -> None:
    error = OpenAIError("broken")

    assert (str(error), error.http_status) == ("broken", 500)
    assert error.response.model_dump() == {
        "error": {"message": "broken", "type": "OpenAIError", "param": "", "code": "500"}
    }


def test_makes_the_error_of_the_sdk() -> None:
    response = create_error_response("no", status_code=HTTPStatus.NOT_FOUND)

    assert response.http_status == 404
    assert response.model_dump_json() == (
        '{"error":{"message":"no","type":"BadRequestError","param":"","code":"404"}}'
    )


@pytest.mark.parametrize("status", [400, 422])
def test_says_what_is_wrong_with_a_request(status: int) -> None:
    error = invalid_request("too long", "messages", "context_length_exceeded", status)

    assert error.http_status == status
    assert error.response.model_dump() == {
        "error": {
            "message": "too long",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    }


def test_says_what_a_model_does_not_do() -> None:
    error = unsupported_api("m", "Rerank")

    assert str(error) == "Model m does not support Rerank API"
    assert (error.http_status, error.response.error.code) == (400, "unsupported_api")
