"""A loaded model: the methods that can be served, and the tensors that it takes and gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
import xgboost
from numpy.typing import NDArray

from kserve.errors import InvalidInput, ModelLoadError
from kserve.methods import Methods, try_methods
from kserve.signature import Signature, Tensors
from kserve.tables import as_matrix, by_feature, table_inputs
from xgbserver.iterations import PARAMETER, Rounds
from xgbserver.trial import NO_DUMP, plain

CONTRIBUTIONS: Final = "contributions"
APPROXIMATE_CONTRIBUTIONS: Final = "approximate_contributions"
METHODS: Final = (
    "predict",
    "predict_proba",
    "margin",
    "leaf",
    CONTRIBUTIONS,
    APPROXIMATE_CONTRIBUTIONS,
)

_EXPLANATIONS: Final = (CONTRIBUTIONS, APPROXIMATE_CONTRIBUTIONS)

# XGBoost computes in it, whatever it is given.
_DATATYPE: Final = ("FP32", True)

# So many rows are tried at load, to tell the axis of the rows from the others.
_N_TRIAL_ROWS: Final = 2


@dataclass(frozen=True, slots=True)
class Rows:
    """What a method takes.

    Attributes:
        features: Shape (n_rows, n_features), FP32; NaN is missing.
        iterations: The first round and that after the last one; (0, 0) is all.
    """

    features: NDArray[np.float32]
    iterations: tuple[int, int]

    def __len__(self) -> int:
        return len(self.features)


Call = Callable[[Rows], NDArray[Any]]


class RefusedByXGBoost(Exception):
    """XGBoost cannot do what is asked, or does not take the values; the text says why."""


@dataclass(frozen=True, slots=True)
class ServedBooster:
    """A model, looked at once.

    Attributes:
        signature: What it takes and gives.
        methods: The methods that it has.
        rounds: The rounds of boosting.
        iterations: Those that count where a request does not say which.
        feature_names: In order; XGBoost's f0, f1, ... if it was trained without.
    """

    signature: Signature
    methods: Methods
    rounds: Rounds
    iterations: tuple[int, int]
    feature_names: tuple[str, ...]

    @property
    def can_explain(self) -> bool:
        """Whether the model tells what each feature contributes."""
        return CONTRIBUTIONS in self.methods.calls

    def rows(self, tensors: Tensors, parameters: Mapping[str, Any]) -> Rows:
        """Give what methods take.

        Raises:
            InvalidInput: There are no such rounds.
        """
        iterations = self.iterations
        if PARAMETER in parameters:
            iterations = self.rounds.parse(parameters[PARAMETER], f"parameter {PARAMETER!r}")
        return Rows(as_matrix(tensors), iterations)

    def explain(self, rows: Rows, parameters: Mapping[str, Any]) -> Tensors:
        """Give the SHAP values of each feature, exact or approximate as `method` says.

        Returns:
            By feature, and "bias": shape (n_rows,), or (n_rows, n_groups) for several classes or
            targets. Their sum is the margin.

        Raises:
            InvalidInput: The method is another one, or XGBoost refuses the values.
        """
        method = parameters.get("method", CONTRIBUTIONS)
        if method not in _EXPLANATIONS:
            raise InvalidInput(
                f"parameter 'method': expected {' or '.join(_EXPLANATIONS)}, got {method!r}"
            )
        return by_feature(self.methods.calls[method](rows), self.feature_names)


def describe(
    model: Any, *, method: str | None, iteration_range: str | None, owner: str
) -> ServedBooster:
    """Look at a model, and try its methods on rows of zeros.

    Args:
        model: An `xgboost.Booster` or a fitted `xgboost.XGBModel`.
        method: The method that is to answer; None for `predict`.
        iteration_range: `all`, `best` or `BEGIN:END`; if None, what the object itself does: all
            rounds of a Booster, those up to the best one of an XGBModel.
        owner: What errors call the model.

    Raises:
        ModelLoadError: It is not fitted, has no features, lacks the method or the rounds.
    """
    booster = _booster(model, owner)
    try:
        n_features = booster.num_features()
        rounds = Rounds(booster.num_boosted_rounds(), _best(booster))
    except xgboost.core.XGBoostError as exc:
        raise ModelLoadError(f"{owner}: the model is not trained ({plain(exc)})") from exc
    is_wrapper = model is not booster
    default = "best" if is_wrapper and rounds.best is not None else "all"
    try:
        iterations = rounds.parse(iteration_range or default, "--iteration_range")
    except InvalidInput as exc:
        raise ModelLoadError(f"{owner}: {exc}") from exc
    names = booster.feature_names
    zeros = Rows(np.zeros((_N_TRIAL_ROWS, n_features), np.float32), iterations)
    tried = try_methods(_calls(model, booster), zeros, method or "predict", RefusedByXGBoost, owner)
    return ServedBooster(
        signature=Signature(
            inputs=table_inputs([_DATATYPE] * n_features, names),
            outputs=tried.outputs,
            optional_outputs=tried.optional_outputs,
            is_table=names is not None,
        ),
        methods=tried.methods,
        rounds=rounds,
        iterations=iterations,
        feature_names=tuple(names or (f"f{index}" for index in range(n_features))),
    )


def _booster(model: Any, owner: str) -> Any:
    if isinstance(model, xgboost.Booster):
        return model
    try:
        return model.get_booster()
    except Exception as exc:  # NotFittedError is scikit-learn's, where that is installed
        raise ModelLoadError(
            f"{owner}: {type(model).__name__} is not fitted; save it after fit"
        ) from exc


def _best(booster: Any) -> int | None:
    best = booster.attr("best_iteration")
    return None if best is None else int(best)


def _calls(model: Any, booster: Any) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    if model is booster:
        calls["predict"] = _in_place(booster, "value")
    else:
        n_rounds = booster.num_boosted_rounds()
        calls["predict"] = _wrapper_call(model.predict, n_rounds)
        if hasattr(model, "predict_proba"):
            calls["predict_proba"] = _wrapper_call(model.predict_proba, n_rounds)
    calls["margin"] = _in_place(booster, "margin")
    calls["leaf"] = _by_dmatrix(booster, pred_leaf=True)
    if _has_vector_leaves(booster):
        return calls
    calls[CONTRIBUTIONS] = _by_dmatrix(booster, pred_contribs=True)
    calls[APPROXIMATE_CONTRIBUTIONS] = _by_dmatrix(
        booster, pred_contribs=True, approx_contribs=True
    )
    return calls


def _wrapper_call(predict: Callable[..., NDArray[Any]], n_rounds: int) -> Call:
    @_refusing
    def call(rows: Rows) -> NDArray[Any]:
        begin, end = rows.iterations
        # To a wrapper (0, 0) are those up to the best one.
        iterations = (begin, end or n_rounds)
        return predict(rows.features, iteration_range=iterations, validate_features=False)

    return call


def _in_place(booster: Any, predict_type: str) -> Call:
    """Give what predicts without a copy where that gives the same, or else with a DMatrix.

    Linear boosters have no prediction in place, and that of DART adds up in another order: the last
    bits differ.
    """
    if _kind(booster) != "gbtree":
        return _by_dmatrix(booster, output_margin=predict_type == "margin")

    @_refusing
    def call(rows: Rows) -> NDArray[Any]:
        result: NDArray[Any] = booster.inplace_predict(
            rows.features,
            iteration_range=rows.iterations,
            predict_type=predict_type,
            validate_features=False,
        )
        return result

    return call


def _kind(booster: Any) -> str:
    """Give `gbtree`, `gblinear` or `dart`."""
    config = orjson.loads(booster.save_config())
    return str(config["learner"]["gradient_booster"]["name"])


def _has_vector_leaves(booster: Any) -> bool:
    """Say whether a leaf holds a value for each target (`multi_output_tree`).

    XGBoost 3 has no contributions for such trees. It refuses them from a model that was just
    trained, but for one that was loaded gives zeros. Nor can it write such a tree as text.
    """
    if _kind(booster) == "gblinear":
        return False
    try:
        booster[0:1].get_dump()
    except xgboost.core.XGBoostError as exc:
        return NO_DUMP in str(exc)
    return False


def _by_dmatrix(booster: Any, **options: bool) -> Call:
    @_refusing
    def call(rows: Rows) -> NDArray[Any]:
        # One thread: to build it from an array is a copy.
        data = xgboost.DMatrix(rows.features, nthread=1)
        result: NDArray[Any] = booster.predict(
            data, iteration_range=rows.iterations, validate_features=False, **options
        )
        return result

    return call


def _refusing(call: Call) -> Call:
    def refuse(rows: Rows) -> NDArray[Any]:
        try:
            return call(rows)
        except xgboost.core.XGBoostError as exc:
            raise RefusedByXGBoost(plain(exc)) from exc

    return refuse
