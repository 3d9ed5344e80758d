"""A fitted estimator: the methods that can be served, and the tensors that each takes and gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kserve.errors import ModelLoadError
from kserve.logging import logger
from kserve.methods import OUTPUT_NAME, Methods, spec_of
from kserve.protocol.codec.dtypes import NUMPY_DTYPES, from_np_dtype
from kserve.signature import TABLE_NAME, Signature, Tensors, TensorSpec
from kserve.tables import column_names, table_inputs
from sklearnserver.columns import Table, table_of, takes_records, takes_texts
from sklearnserver.features import MakeFeatures, anything, records, table_features, texts
from sklearnserver.parts import forget_feature_names
from sklearnserver.results import to_tensors

METHODS: Final = (
    "predict",
    "predict_proba",
    "predict_log_proba",
    "decision_function",
    "transform",
    "score_samples",
)
_OUTPUT_STEM: Final = "output"

# Have nothing to fit, and do not say so in scikit-learn 1.5.
_STATELESS: Final = ("FeatureHasher", "HashingVectorizer", "PatchExtractor")

# So many rows are tried at load, to tell the axis of the rows from the others.
_N_TRIAL_ROWS: Final = 2

# features -> result
Call = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class ServedEstimator:
    """An estimator, looked at once.

    Attributes:
        signature: What it takes and gives.
        make_features: Makes of tensors what its methods take.
        methods: The methods that it has.
        example_row: One row that its methods can take; None where nothing can be invented.
    """

    signature: Signature
    make_features: MakeFeatures
    methods: Methods
    example_row: Tensors | None


def describe(estimator: Any, method: str | None, owner: str) -> ServedEstimator:
    """Look at a fitted estimator, and try its methods on invented rows.

    Args:
        estimator: What an artifact held.
        method: The method that is to answer; None for `predict`, or else `transform`.
        owner: What errors and log lines call the estimator.

    Raises:
        ModelLoadError: It is no estimator, is not fitted, or lacks the method.
    """
    _check_fitted(estimator, owner)
    calls = _calls(estimator, owner)
    method = _choose(calls, method, owner)
    inputs = _inputs(estimator)
    outputs = _Outputs(estimator, calls, inputs.trial_features())
    optional = {name: outputs.specs(name, name, name) for name in calls}
    return ServedEstimator(
        signature=Signature(
            inputs=inputs.specs,
            outputs=outputs.specs(method, OUTPUT_NAME, _OUTPUT_STEM),
            optional_outputs=tuple(spec for specs in optional.values() for spec in specs),
            is_table=inputs.is_table,
        ),
        make_features=inputs.make_features,
        methods=Methods(
            calls,
            method,
            {spec.name: name for name, specs in optional.items() for spec in specs},
            _name_result,
        ),
        example_row=inputs.example and {name: rows[:1] for name, rows in inputs.example.items()},
    )


def _name_result(result: Any, method: str | None) -> Tensors:
    return to_tensors(result, method or OUTPUT_NAME, method or _OUTPUT_STEM)


def _calls(estimator: Any, owner: str) -> dict[str, Call]:
    calls = {name: getattr(estimator, name) for name in METHODS if hasattr(estimator, name)}
    if "predict_log_proba" in calls:
        calls["predict_log_proba"] = _without_division_warnings(calls["predict_log_proba"])
    if calls:
        return calls
    if hasattr(estimator, "fit_predict"):
        raise ModelLoadError(
            f"{owner}: {type(estimator).__name__} has only fit_predict, which labels the data that "
            "it is fitted on; serve an estimator that can predict for new rows"
        )
    raise ModelLoadError(
        f"{owner}: holds a {type(estimator).__name__}, expected an estimator with one of the "
        f"methods {', '.join(METHODS)}"
    )


def _without_division_warnings(call: Call) -> Call:
    # The logarithm of a probability of 0 is -inf, which is meant.
    def quiet(features: Any) -> Any:
        with np.errstate(divide="ignore"):
            return call(features)

    return quiet


def _check_fitted(estimator: Any, owner: str) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import check_is_fitted

    last = estimator
    while isinstance(last, Pipeline):
        last = last.steps[-1][1]
    # The check goes by attribute names, which classes of other packages need not follow.
    if not type(last).__module__.startswith("sklearn.") or type(last).__name__ in _STATELESS:
        return
    try:
        check_is_fitted(last)
    except NotFittedError as exc:
        raise ModelLoadError(
            f"{owner}: {type(last).__name__} is not fitted; save it after fit"
        ) from exc


def _choose(calls: Mapping[str, Call], method: str | None, owner: str) -> str:
    if method is not None and method not in calls:
        raise ModelLoadError(f"{owner}: has no method {method}; it has {', '.join(calls)}")
    if method is not None or "predict" in calls:
        return method or "predict"
    chosen = "transform" if "transform" in calls else next(iter(calls))
    logger.info("%s: has no method predict, %s answers requests", owner, chosen)
    return chosen


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The inputs, what makes features of them, and tensors to try it with."""

    specs: tuple[TensorSpec, ...]
    make_features: MakeFeatures
    is_table: bool = False
    example: Tensors | None = None

    def trial_features(self) -> Any:
        return None if self.example is None else self.make_features(self.example)


def _inputs(estimator: Any) -> _Inputs:
    if takes_texts(estimator):
        example = np.full(_N_TRIAL_ROWS, "", dtype=np.object_)
        spec = TensorSpec(TABLE_NAME, "BYTES", (-1,))
        return _Inputs((spec,), texts, example={TABLE_NAME: example})
    table = table_of(estimator)
    if table is None:
        return _Inputs((), records if takes_records(estimator) else anything)
    if table.names is not None and not table.needs_frame:
        forget_feature_names(estimator)
    return _table_inputs(table)


def _table_inputs(table: Table) -> _Inputs:
    kinds = [(column.datatype, column.exact) for column in table.columns]
    specs = table_inputs(kinds, table.names)
    names = column_names(table.names, len(kinds))
    is_table = specs[0].shape == (-1,)
    columns = {
        name: np.full(_N_TRIAL_ROWS, column.example, NUMPY_DTYPES[column.datatype])
        for name, column in zip(names, table.columns, strict=True)
    }
    matrix = {} if is_table else {TABLE_NAME: np.column_stack(list(columns.values()))}
    return _Inputs(specs, table_features(table), is_table, columns if is_table else matrix)


class _Outputs:
    """The outputs of each method, found by trying it.

    Args:
        estimator: The estimator.
        calls: Its methods.
        features: Invented rows; None where nothing can be invented.
    """

    def __init__(self, estimator: Any, calls: Mapping[str, Call], features: Any) -> None:
        self._classes = getattr(estimator, "classes_", None)
        self._results = {name: _try(call, features) for name, call in calls.items()}

    def specs(self, method: str, name: str, stem: str) -> tuple[TensorSpec, ...]:
        result = self._results[method]
        if result is None:
            return (self._guess(method, name),)
        tensors = to_tensors(result, name, stem)
        return tuple(spec_of(each, array) for each, array in tensors.items())

    def _guess(self, method: str, name: str) -> TensorSpec:
        classes = np.asarray(self._classes) if isinstance(self._classes, np.ndarray) else None
        if method == "predict" and classes is not None:
            return TensorSpec(name, from_np_dtype(classes.dtype) or "FP64", (-1,))
        if method in ("predict", "score_samples"):
            return TensorSpec(name, "FP64", (-1,))
        if method in ("predict_proba", "predict_log_proba") and classes is not None:
            return TensorSpec(name, "FP64", (-1, len(classes)))
        return TensorSpec(name, "FP64", (-1, -1))


def _try(call: Call, features: Any) -> Any:
    if features is None:
        return None
    try:
        return call(features)
    except Exception as exc:
        # Invented rows need not make sense to the model.
        logger.debug("A trial prediction failed: %s", exc)
        return None
