"""Who serves the models that code starts."""

from kserve.context import collect_models
from kserve.model import Model
from kserve.model_server import ModelServer


def test_models_that_code_starts_are_given_to_whoever_collects_them() -> None:
    first, second = Model("first"), Model("second")

    with collect_models() as collected:
        ModelServer(http_port=0, enable_grpc=False).start([first])
        ModelServer(http_port=0, enable_grpc=False).start({"other": second})

    assert collected == {"first": first, "other": second}
