"""The requests of a `TensorModel` as one call of it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve.errors import InferenceError, InvalidInput, RowCountError
from kserve.model import PredictOptions, TensorModel
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput
from kserve.signature import Signature, Tensors, TensorSpec
from kserve.tensor_batch import TensorBatches, has_rows

X = TensorSpec("x", "FP64", (-1, -1))
Y = TensorSpec("y", "FP64", (-1,))


class Sums(TensorModel):
    """Sums rows; keeps what it was called with."""

    def __init__(self, *outputs: TensorSpec, n_missing: int = 0) -> None:
        super().__init__("sums")
        self.signature = Signature((X,), outputs or (Y, TensorSpec("z", "FP64", (-1,))))
        self.calls: list[tuple[Tensors, PredictOptions]] = []
        self.n_missing = n_missing

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        self.calls.append((tensors, options))
        sums = tensors["x"].sum(axis=1)
        return {"y": sums, "z": -sums[self.n_missing :]}


def request(
    array: Any,
    *outputs: str,
    datatype: str = "FP64",
    name: str = "x",
    parameters: dict[str, Any] | None = None,
) -> InferRequest:
    array = np.asarray(array)
    return InferRequest(
        "sums",
        [InferInput.from_array(name, list(array.shape), datatype, array)],
        parameters=parameters,
        request_outputs=[RequestedOutput(output) for output in outputs] or None,
    )


def test_a_shape_given_as_a_list_has_rows_as_well() -> None:
    x, y = TensorSpec("x", "FP64", [-1, 4]), TensorSpec("y", "FP64", [-1])  # type: ignore[arg-type]

    found = has_rows(Signature((x,), (y,)))

    assert found
    assert (x.shape, y.shape) == ((-1, 4), (-1,))


ONE = request([[1.0, 2.0]])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(request([[3.0, 4.0], [5.0, 6.0]]), id="rows"),
        pytest.param(request([[1.0, 2.0]], name="any"), id="name of a single input"),
        pytest.param(request([[1, 2]], datatype="INT64"), id="datatype that is converted"),
        pytest.param(request([[1.0, 2.0]], parameters={"binary_data_output": True}), id="wire"),
        pytest.param(request([[1.0, 2.0]], parameters={}), id="no parameters"),
    ],
)
def test_requests_that_join(other: InferRequest) -> None:
    batches = TensorBatches(Sums())

    first, second = batches.check(ONE), batches.check(other)

    assert first.key == second.key is not None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(ONE, request([[1.0]]), id="shape"),
        pytest.param(ONE, request([[1.0, 2.0]], "y"), id="requested output"),
        pytest.param(request([[1.0]], "y"), request([[1.0]], "z"), id="requested outputs"),
        *(
            pytest.param(
                request([[1.0]], parameters={"method": one}),
                request([[1.0]], parameters={"method": other}),
                id=f"{one!r} and {other!r}",
            )
            for one, other in [
                ("a", "b"),
                (1, True),
                (1, 1.0),
                (1, "1"),
                ([1], [2]),
                (None, "None"),
            ]
        ),
        pytest.param(ONE, request([[1.0, 2.0]], parameters={"method": "a"}), id="parameter"),
    ],
)
def test_requests_that_never_mix(first: InferRequest, second: InferRequest) -> None:
    batches = TensorBatches(Sums())

    keys = [batches.check(first).key, batches.check(second).key]

    assert None not in keys
    assert keys[0] != keys[1]
    assert len({*keys}) == 2


def test_the_datatype_of_an_input_whose_own_is_a_guess_keeps_requests_apart() -> None:
    model = Sums()
    model.signature = Signature((TensorSpec("x", "FP64", (-1, -1), exact=False),), (Y,))
    batches = TensorBatches(model)

    keys = [
        batches.check(request([[1]], datatype="INT64")).key,
        batches.check(request([[1.0]])).key,
    ]

    assert keys[0] != keys[1]


def test_texts_and_bytes_never_mix() -> None:
    model = Sums()
    model.signature = Signature((TensorSpec("x", "BYTES", (-1,)),), (Y,))
    batches = TensorBatches(model)

    keys = [
        batches.check(request(np.array([value], object), datatype="BYTES")).key
        for value in ("a", b"a", "b")
    ]

    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def test_the_order_of_parameters_does_not_matter() -> None:
    batches = TensorBatches(Sums())

    keys = [
        batches.check(request([[1.0]], parameters=parameters)).key
        for parameters in ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    ]

    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("array", "n_rows", "size"),
    [([[1.0, 2.0]], 1, 2), ([[1.0], [2.0], [3.0]], 3, 3), (np.zeros((0, 2)), 1, 1)],
    ids=["one row", "three rows", "none"],
)
def test_rows_and_elements_are_counted(array: Any, n_rows: int, size: int) -> None:
    call = TensorBatches(Sums()).check(request(array))

    assert (call.n_rows, call.size) == (n_rows, size)


def test_a_request_without_rows_runs_alone() -> None:
    assert TensorBatches(Sums()).check(request(np.zeros((0, 2)))).key is None


def test_a_request_that_does_not_fit_is_refused() -> None:
    batches = TensorBatches(Sums())

    with pytest.raises(InvalidInput, match=r"^input 'x': expected shape \[-1, -1\], got \[1\]$"):
        batches.check(request([1.0]))
    with pytest.raises(InvalidInput, match="^Unexpected inference output 'w'"):
        batches.check(request([[1.0]], "w"))


def test_a_model_that_says_so_is_not_batched() -> None:
    model = Sums()
    model.batching = False

    assert TensorBatches(model).check(ONE).key is None


def test_a_model_that_was_loaded_again_with_another_signature_is_taken_as_it_is_now() -> None:
    model = Sums()
    batches = TensorBatches(model)

    before = batches.check(ONE).key
    model.signature = Signature((TensorSpec("x", "FP64", (1, 2)),), (Y,))
    after = batches.check(ONE).key

    assert before is not None
    assert after is None


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        pytest.param(Signature((X,), (Y,)), True, id="rows"),
        pytest.param(Signature((X, Y), (Y,), (Y,)), True, id="several"),
        pytest.param(Signature(), False, id="nothing known"),
        pytest.param(Signature((X,)), False, id="no outputs known"),
        pytest.param(Signature((), (Y,)), False, id="no inputs known"),
        pytest.param(Signature((TensorSpec("x", "FP64", (1, 4)),), (Y,)), False, id="fixed axis"),
        pytest.param(Signature((X,), (TensorSpec("y", "FP64", ()),)), False, id="scalar output"),
        pytest.param(
            Signature((X,), (Y,), (TensorSpec("w", "FP64", (3,)),)), False, id="optional output"
        ),
    ],
)
def test_a_model_has_rows_if_axis_0_of_everything_is_one(
    signature: Signature, expected: bool
) -> None:
    assert has_rows(signature) is expected


def test_calls_run_as_one_and_each_has_its_rows() -> None:
    model = Sums()
    batches = TensorBatches(model)

    answers = batches.run(
        [batches.check(request([[1.0, 2.0]])), batches.check(request([[3.0, 4.0], [5.0, 6.0]]))]
    )

    ((tensors, options),) = model.calls
    assert tensors["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert options == PredictOptions()
    assert [{name: a.tolist() for name, a in answer.items()} for answer in answers] == [
        {"y": [3], "z": [-3]},
        {"y": [7, 11], "z": [-7, -11]},
    ]


def test_one_call_is_not_copied() -> None:
    model = Sums()
    batches = TensorBatches(model)
    call = batches.check(ONE)

    batches.run([call])

    assert model.calls[0][0]["x"] is call.tensors["x"]


@pytest.mark.parametrize("n_calls", [1, 2])
def test_an_output_without_a_row_for_each_is_refused(n_calls: int) -> None:
    batches = TensorBatches(Sums(n_missing=1))

    with pytest.raises(RowCountError) as refused:
        batches.run([batches.check(ONE)] * n_calls)

    assert str(refused.value) == (
        f"output 'z': expected {n_calls} rows, as many as the inputs have, got shape "
        f"[{n_calls - 1}]"
    )


def test_outputs_that_are_no_rows_are_passed_on_where_nothing_is_batched() -> None:
    model = Sums(n_missing=1)
    model.batching = False
    batches = TensorBatches(model)

    (answer,) = batches.run([batches.check(ONE)])

    assert answer["z"].tolist() == []


def test_values_that_do_not_suit_the_model_are_the_client_s_mistake() -> None:
    model = Sums()
    model.signature = Signature((TensorSpec("x", "BYTES", (-1,)),), (Y,))
    batches = TensorBatches(model)
    call = batches.check(request(np.array(["a"], object), datatype="BYTES"))

    with pytest.raises(InvalidInput):
        batches.run([call])


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 3))
def test_every_request_has_its_own_rows(counts: list[int], n_columns: int) -> None:
    batches = TensorBatches(Sums())
    arrays = [np.full((count, n_columns), float(number + 1)) for number, count in enumerate(counts)]

    answers = batches.run([batches.check(request(array)) for array in arrays])

    expected = [
        {"y": array.sum(axis=1).tolist(), "z": (-array.sum(axis=1)).tolist()} for array in arrays
    ]
    assert [{k: a.tolist() for k, a in answer.items()} for answer in answers] == expected


def test_a_model_that_gives_no_output_is_at_fault() -> None:
    class Empty(Sums):
        def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
            return {}

    batches = TensorBatches(Empty())

    with pytest.raises(InferenceError, match="predict_tensors gave no output"):
        batches.run([batches.check(ONE)])


def test_a_request_that_gives_an_optional_input_runs_alone() -> None:
    model = Sums()
    scale = TensorSpec("scale", "FP64", (1,))
    model.signature = Signature((X,), (Y,), optional_inputs=(scale,))
    batches = TensorBatches(model)
    given = request([[1.0, 2.0]])
    given.inputs.append(InferInput("scale", [1], "FP64", [2.0]))

    with_scale, without = batches.check(given), batches.check(request([[1.0, 2.0]]))

    assert with_scale.key is None
    assert list(with_scale.tensors) == ["x", "scale"]
    assert without.key is not None


def test_axes_that_are_no_rows_are_not_put_together() -> None:
    assert not has_rows(Signature((X,), (Y,), has_rows=False))


class Figures(TensorModel):
    """Has a signature for rows, and one for a single number."""

    def __init__(self) -> None:
        super().__init__("figures")
        self.signature = Signature((X,), (Y,))
        number = TensorSpec("n", "INT64", ())
        self.signatures = {"sums": self.signature, "next": Signature((number,), (number,))}

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        if options.parameters.get("signature_name") == "next":
            return {"n": tensors["n"] + 1}
        return {"y": tensors["x"].sum(axis=1)}


def test_a_request_is_checked_against_the_signature_that_it_chooses() -> None:
    model = Figures()
    batches = TensorBatches(model)
    number = request(np.int64(4), datatype="INT64", name="n")

    calls = [
        batches.check(ONE),
        batches.check(request([[1.0, 2.0]], parameters={"signature_name": "sums"})),
    ]
    number.parameters = {"signature_name": "next"}
    single = batches.check(number)

    assert single.key is None
    assert calls[0].key is not None
    assert calls[1].key is not None
    assert calls[0].key != calls[1].key
    assert batches.run([single])[0]["n"].tolist() == 5
    assert batches.run(calls[:1])[0]["y"].tolist() == [3.0]
    assert model.infer(number).outputs[0].data == [5]


@pytest.mark.parametrize("name", ["other", 1])
def test_a_signature_that_is_not_there_is_refused(name: Any) -> None:
    batches = TensorBatches(Figures())

    with pytest.raises(InvalidInput) as caught:
        batches.check(request([[1.0]], parameters={"signature_name": name}))

    expected = f"the model has no signature {name!r}, it has 'sums', 'next'"
    assert str(caught.value) == expected


def test_requested_outputs_are_those_of_the_signature_that_is_chosen() -> None:
    batches = TensorBatches(Figures())
    number = request(np.int64(4), "y", datatype="INT64", name="n")
    number.parameters = {"signature_name": "next"}

    with pytest.raises(InvalidInput, match="Unexpected inference output 'y': the model has 'n'"):
        batches.check(number)


def test_the_parameter_means_nothing_to_a_model_of_one_signature() -> None:
    call = TensorBatches(Sums()).check(request([[1.0]], parameters={"signature_name": "other"}))

    assert call.options.parameters == {"signature_name": "other"}


def test_a_large_request_is_converted_as_its_own_signature_says() -> None:
    class Casting(Figures):
        def __init__(self) -> None:
            super().__init__()
            narrow = Signature((TensorSpec("x", "FP32", (-1, -1)),), (Y,))
            self.signatures = {**self.signatures, "narrow": narrow}

        def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
            self.dtype = tensors["x"].dtype
            return {"y": tensors["x"].sum(axis=1)}

    model = Casting()
    batches = TensorBatches(model)

    batches.run(
        [batches.check(request(np.ones((100, 100)), parameters={"signature_name": "narrow"}))]
    )

    assert model.dtype == np.float32
