"""pandas, where it is and where it is not."""

import sys

import pytest

from kserve.errors import InvalidInput
from kserve.payload import get_predict_input
from kserve.protocol.infer_type import InferInput, InferRequest


def test_rows_as_objects_without_pandas_are_the_clients_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)

    with pytest.raises(InvalidInput, match="need pandas, which this server does not have"):
        get_predict_input({"instances": [{"a": 1}]})


def test_columns_by_name_without_pandas_are_the_clients_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    request = InferRequest("m", [InferInput("a", [1], "INT64", [1])])

    with pytest.raises(InvalidInput, match="send rows as lists"):
        request.as_dataframe()
