"""Finds out which globals scikit-learn artifacts use, and writes sklearnserver's list of them.

`make` starts `record` once per supported scikit-learn, each in a throw-away environment. There
every estimator and typical pipelines are fitted on small data, pickled in every current protocol
and with joblib, and read back by sklearnserver's own restricted unpickler, which reports what it
was asked for. The tests fit the same models.
"""

import argparse
import importlib.util
import inspect
import io
import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path
from types import ModuleType
from typing import Any

SERVER = Path(__file__).resolve().parent.parent / "packages/sklearnserver/src/sklearnserver"
LIST = SERVER / "allowed_globals.txt"

# The oldest also with the numpy and pandas of its time, whose pickles have other names.
ENVIRONMENTS = [
    ["scikit-learn==1.5.2", "numpy<2", "pandas<3", "scipy<1.15"],
    ["scikit-learn==1.5.2"],
    ["scikit-learn==1.6.1"],
    ["scikit-learn==1.7.2"],
    ["scikit-learn==1.8.0"],
    ["scikit-learn==1.9.1"],
]
PROTOCOLS = (2, 3, 4, 5)

# What a fit never leaves in an artifact, or what only costs time here.
SKIPPED_PARAMETERS = {"verbose", "memory", "n_jobs", "copy", "copy_X", "copy_x", "warm_start"}
FAST = {"n_estimators": 3, "max_iter": 250, "n_init": 1, "cv": 2}

# What the general rules get wrong.
OVERRIDES: dict[str, dict[str, Any]] = {
    "GaussianRandomProjection": {"n_components": 2},
    "OrthogonalMatchingPursuitCV": {"max_iter": None},
    "SparseRandomProjection": {"n_components": 2},
}
# Some versions have a default that does not do.
NEEDS_ESTIMATOR = {"ClassifierChain", "RegressorChain", "SelfTrainingClassifier"}

SCORE_FUNCTIONS = {"chi2", "f_classif", "f_regression", "r_regression"} | {
    "mutual_info_classif",
    "mutual_info_regression",
}
SPLITTERS = ("KFold", "StratifiedKFold", "GroupKFold", "ShuffleSplit", "StratifiedShuffleSplit") + (
    "RepeatedKFold",
    "RepeatedStratifiedKFold",
    "TimeSeriesSplit",
    "LeaveOneOut",
    "GroupShuffleSplit",
    "StratifiedGroupKFold",
)
# Discrete ones keep bound methods, which pickle as `getattr`.
DISTRIBUTIONS = {
    "uniform": (0, 1),
    "loguniform": (0.1, 1),
    "norm": (),
    "expon": (),
    "lognorm": (1,),
    "beta": (1, 2),
    "gamma": (1,),
    "truncnorm": (0, 1),
}
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")

HEADER = """\
# The globals that a scikit-learn artifact may use: module, name, and how beyond being referred to
# (new: instantiated; call: called while it is read). Any numpy.ufunc and functools.partial are
# allowed by rule.
# Made by scripts/allowed-globals with {versions}; never edited by hand.
"""


@dataclass
class Fitted:
    """A fitted estimator with the data that it was fitted on."""

    name: str
    estimator: Any
    features: Any


def datasets() -> dict[str, tuple[Any, Any]]:
    """Make features and target by name; a target of None: fit takes one argument."""
    import numpy as np
    import pandas as pd

    rng = np.random.RandomState(0)
    n_rows = 60
    labels = np.arange(n_rows) % 3
    features = rng.uniform(0.1, 2, (n_rows, 4)) + labels[:, None]
    names = np.array(["low", "mid", "top"], dtype=object)[labels]
    amount = features @ np.array([1.0, 2.0, 0.5, 0.1])
    texts = [f"the {name} word number{index % 7}" for index, name in enumerate(names)]
    frame = pd.DataFrame(features, columns=["a", "b", "c", "d"])
    colours = pd.DataFrame({"colour": names, "size": np.arange(n_rows) % 2})
    return {
        "numbers and names": (features, names),
        "numbers and an amount": (features, amount),
        "numbers and two amounts": (features, np.column_stack([amount, features[:, 0]])),
        "numbers and two labels": (features, np.column_stack([labels % 2, labels > 1]).astype(int)),
        "one number and an amount": (features[:, 0], amount),
        "texts": (texts, names),
        "dicts": ([{"name": name, "n": 1.0} for name in names], names),
        "labels": (names, None),
        "sets of labels": ([(name, "all") for name in names], None),
        "categories": (names.reshape(-1, 1), labels % 2),
        "frame": (frame, names),
        "frame and an amount": (frame, pd.Series(amount)),
        "frame of categories": (colours.astype("category"), names),
        "counts and bits": ((features > 1).astype(int), labels % 2),
        "numbers alone": (features, None),
        "square": (features @ features.T, None),
        "images": (rng.uniform(size=(3, 8, 8)), None),
    }


def parts() -> list[dict[str, Any]]:
    """Give what composed estimators need, for classifiers and for regressors."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import MinMaxScaler, StandardScaler
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    def composed(model: Any, tree: Any, grid: dict[str, Any]) -> dict[str, Any]:
        return {
            "estimator": model,
            "base_estimator": model,
            "estimators": [("linear", model), ("tree", tree)],
            "steps": [("scale", StandardScaler()), ("model", model)],
            "transformers": [("a", StandardScaler(), [0, 1]), ("b", MinMaxScaler(), [2, 3])],
            "transformer_list": [("pca", PCA(2)), ("scale", StandardScaler())],
            "param_grid": grid,
            "param_distributions": grid,
            "dictionary": datasets()["numbers and names"][0][:3],
        }

    return [
        composed(LogisticRegression(), DecisionTreeClassifier(), {"C": [0.5, 1.0]}),
        composed(Ridge(), DecisionTreeRegressor(), {"alpha": [0.5, 1.0]}),
    ]


def constructions(cls: type) -> Iterator[dict[str, Any]]:
    """Yield constructor arguments that suffice, small and quick."""
    signature = inspect.signature(cls).parameters
    quick = {name: value for name, value in FAST.items() if name in signature}
    quick |= OVERRIDES.get(cls.__name__, {})
    needed = [p.name for p in signature.values() if p.default is p.empty]
    if cls.__name__ in NEEDS_ESTIMATOR:
        needed.append("estimator" if "estimator" in signature else "base_estimator")
    for part in parts()[: 2 if needed else 1]:
        yield {**quick, **{name: part[name] for name in needed if name in part}}


def variants(cls: Any) -> Iterator[dict[str, Any]]:
    """Yield every documented text or boolean value of every parameter, one at a time."""
    from sklearn.utils._param_validation import StrOptions

    for name, constraints in getattr(cls, "_parameter_constraints", {}).items():
        if name in SKIPPED_PARAMETERS or not isinstance(constraints, list):
            continue
        for constraint in constraints:
            if isinstance(constraint, StrOptions):
                yield from ({name: option} for option in sorted(constraint.options))
            elif constraint == "boolean":
                yield from ({name: option} for option in (True, False))


def try_fit(make: Callable[[], Any], features: Any, target: Any) -> Any:
    """Fit what `make` returns, silently; return the exception if it cannot be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            estimator = make()
            return estimator.fit(features) if target is None else estimator.fit(features, target)
        except Exception as error:  # any error says that the data or the options do not suit
            return error


def describe(error: Exception) -> str:
    """Give the kind and the first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def fitted_estimators(failures: dict[str, str], *, is_thorough: bool = False) -> Iterator[Fitted]:
    """Fit every estimator of scikit-learn on the first data that suit it.

    Args:
        failures: Takes the name of each that nothing suits, and the last reason.
        is_thorough: Fit on all data that suit, and with every option of every parameter, too.
    """
    from sklearn.utils import all_estimators

    for name, cls in all_estimators():
        n_fitted = 0
        for fitted in fits_of(name, cls, failures, is_thorough=is_thorough):
            n_fitted += 1
            yield fitted
        if n_fitted:
            failures.pop(name, None)


def fits_of(
    name: str, cls: Any, failures: dict[str, str], *, is_thorough: bool
) -> Iterator[Fitted]:
    """Fit one estimator, on one data set or on all; the options are tried on the first."""
    options = [{}, *variants(cls)] if is_thorough else [{}]
    for arguments, (data, (features, target)) in product(constructions(cls), datasets().items()):
        for option in options:
            estimator = try_fit(partial(cls, **{**arguments, **option}), features, target)
            if not isinstance(estimator, Exception):
                yield Fitted(f"{name}({option}) on {data}", estimator, features)
            elif not option:
                failures[name] = describe(estimator)
                break
        else:
            if not is_thorough:
                return
            options = [{}]


def typical_models(failures: dict[str, str]) -> Iterator[Fitted]:
    """Fit the models that people serve: pipelines, searches, ensembles, kernels, random state.

    Args:
        failures: Takes each that cannot be fitted, and the reason.
    """
    data = datasets()
    features, names = data["numbers and names"]
    amount = data["numbers and an amount"][1]
    frame, texts = mixed_frame(), data["texts"][0]
    cases = [
        *((make, frame, names) for make in mixed_pipelines()),
        *((make, texts, names) for make in text_pipelines()),
        *((make, features, names) for make in classifiers()),
        *((make, features, amount) for make in regressors()),
    ]
    for number, (make, case_features, target) in enumerate(cases):
        estimator = try_fit(make, case_features, target)
        if isinstance(estimator, Exception):
            failures[f"typical model {number}"] = describe(estimator)
        else:
            yield Fitted(str(estimator), estimator, case_features)


def mixed_frame() -> Any:
    """Make named columns of numbers, texts and categories, with missing values."""
    import numpy as np
    import pandas as pd

    frame = pd.DataFrame(datasets()["numbers and names"][0], columns=["a", "b", "c", "d"])
    frame.loc[::7, "a"] = np.nan
    frame["colour"] = np.array(["red", "green", np.nan], dtype=object)[np.arange(len(frame)) % 3]
    frame["size"] = pd.Categorical(np.array(["S", "M"])[np.arange(len(frame)) % 2])
    frame["when"] = pd.date_range("2024-01-01", periods=len(frame))
    return frame


def mixed_pipelines() -> list[Callable[[], Any]]:
    """Give pipelines over named columns of mixed types."""
    import numpy as np
    from sklearn.compose import ColumnTransformer, make_column_selector
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.impute import KNNImputer, SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import (
        FunctionTransformer,
        KBinsDiscretizer,
        OneHotEncoder,
        OrdinalEncoder,
        StandardScaler,
        TargetEncoder,
    )

    numbers, colour = ["a", "b"], ["colour"]

    def columns(encoder: Any, **options: Any) -> Any:
        sizes = OneHotEncoder(handle_unknown="ignore", dtype=np.float32, sparse_output=False)
        return ColumnTransformer(
            [
                ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
                ("colour", make_pipeline(SimpleImputer(strategy="most_frequent"), encoder), colour),
                ("size", sizes, ["size"]),
                (
                    "log",
                    FunctionTransformer(np.log1p, np.expm1, feature_names_out="one-to-one"),
                    ["c"],
                ),
                ("bins", KBinsDiscretizer(3, encode="ordinal"), slice("d", "d")),
            ],
            **options,
        )

    def selected() -> Any:
        selector = make_column_selector(dtype_include=np.number)
        return make_pipeline(
            ColumnTransformer([("numbers", KNNImputer(), selector)]), LogisticRegression()
        )

    return [
        lambda: make_pipeline(columns(OneHotEncoder(sparse_output=False)), LogisticRegression()),
        lambda: make_pipeline(columns(OneHotEncoder(min_frequency=2)), RandomForestClassifier(3)),
        lambda: make_pipeline(
            columns(OrdinalEncoder()), HistGradientBoostingClassifier(max_iter=3)
        ),
        lambda: make_pipeline(columns(TargetEncoder(cv=2)), LogisticRegression()),
        lambda: make_pipeline(
            columns(OrdinalEncoder()).set_output(transform="pandas"), LogisticRegression()
        ),
        selected,
    ]


def text_pipelines() -> list[Callable[[], Any]]:
    """Give pipelines over texts."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import (
        CountVectorizer,
        HashingVectorizer,
        TfidfTransformer,
        TfidfVectorizer,
    )
    from sklearn.feature_selection import SelectKBest, chi2
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline, make_union

    return [
        lambda: make_pipeline(TfidfVectorizer(stop_words="english"), LogisticRegression()),
        lambda: make_pipeline(CountVectorizer(), TfidfTransformer(), MultinomialNB()),
        lambda: make_pipeline(HashingVectorizer(n_features=64), SGDClassifier()),
        lambda: make_pipeline(TfidfVectorizer(), SelectKBest(chi2, k=3), SGDClassifier()),
        lambda: make_pipeline(
            make_union(TfidfVectorizer(), CountVectorizer(analyzer="char")),
            TruncatedSVD(2),
            LogisticRegression(),
        ),
    ]


def classifiers() -> list[Callable[[], Any]]:
    """Give searches, ensembles and parameters that are objects, for labels."""
    import numpy as np
    import sklearn
    from scipy import stats
    from sklearn import ensemble, feature_selection, gaussian_process, metrics, model_selection
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.gaussian_process import kernels
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    from sklearn.svm import SVC, LinearSVC
    from sklearn.tree import DecisionTreeClassifier

    def routed() -> Any:
        with sklearn.config_context(enable_metadata_routing=True):
            return LogisticRegression().set_fit_request(sample_weight=True)

    def frozen() -> Any:
        from sklearn.frozen import FrozenEstimator

        model = LogisticRegression().fit(*datasets()["numbers and names"])
        return CalibratedClassifierCV(FrozenEstimator(model))

    grid = {"C": [0.1, 1.0]}
    scorer = metrics.make_scorer(metrics.f1_score, average="macro")
    shuffle = model_selection.StratifiedKFold(2, shuffle=True, random_state=0)
    pair = [("a", LogisticRegression()), ("b", GaussianNB())]
    selections = [
        feature_selection.SelectKBest(feature_selection.f_classif, k=2),
        feature_selection.SelectPercentile(feature_selection.mutual_info_classif),
        feature_selection.SelectFromModel(DecisionTreeClassifier()),
        feature_selection.RFE(LogisticRegression(), n_features_to_select=2),
        FunctionTransformer(np.sqrt),
        FunctionTransformer(partial(np.power, 2.0)),
        FunctionTransformer(np.nan_to_num),
    ]
    kernel = kernels.ConstantKernel() * kernels.RBF() + kernels.WhiteKernel()
    return [
        lambda: model_selection.GridSearchCV(
            LogisticRegression(), grid, scoring=scorer, cv=shuffle
        ),
        lambda: model_selection.GridSearchCV(LogisticRegression(), grid, scoring="accuracy", cv=2),
        lambda: model_selection.GridSearchCV(
            SVC(), {"C": [1], "kernel": ["rbf"]}, scoring=["accuracy", "f1_macro"], refit="accuracy"
        ),
        lambda: model_selection.RandomizedSearchCV(
            LogisticRegression(), {"C": stats.loguniform(0.1, 1)}, n_iter=2, cv=2, random_state=0
        ),
        lambda: model_selection.RandomizedSearchCV(
            LogisticRegression(), {"C": stats.uniform(0.1, 1)}, n_iter=2, cv=2, random_state=0
        ),
        lambda: CalibratedClassifierCV(LinearSVC(), cv=2),
        frozen,
        lambda: CalibratedClassifierCV(DecisionTreeClassifier(), method="isotonic", cv=2),
        lambda: ensemble.VotingClassifier(pair, voting="soft"),
        lambda: ensemble.StackingClassifier(pair, cv=2),
        lambda: ensemble.BaggingClassifier(SVC(), n_estimators=2),
        lambda: ensemble.AdaBoostClassifier(DecisionTreeClassifier(max_depth=1), n_estimators=2),
        lambda: ensemble.RandomForestClassifier(2, random_state=np.random.RandomState(0)),
        lambda: ensemble.GradientBoostingClassifier(
            n_estimators=2, init=LogisticRegression(), random_state=np.random.RandomState(0)
        ),
        lambda: gaussian_process.GaussianProcessClassifier(kernel),
        lambda: KNeighborsClassifier(algorithm="kd_tree", metric="minkowski", p=3),
        lambda: KNeighborsClassifier(algorithm="ball_tree", metric="manhattan"),
        lambda: KNeighborsClassifier(metric="mahalanobis", metric_params={"V": np.eye(4)}),
        lambda: MLPClassifier(hidden_layer_sizes=(8,), max_iter=20, early_stopping=True),
        lambda: SGDClassifier(loss="modified_huber", early_stopping=True, random_state=0),
        lambda: SVC(probability=True, random_state=0),
        lambda: make_pipeline(StandardScaler(), SVC(kernel="linear")).set_output(
            transform="pandas"
        ),
        routed,
        *(partial(make_pipeline, selection, LogisticRegression()) for selection in selections),
    ]


def regressors() -> list[Callable[[], Any]]:
    """Give searches, ensembles and parameters that are objects, for amounts."""
    import numpy as np
    from scipy import special
    from sklearn import compose, ensemble, gaussian_process, linear_model, model_selection
    from sklearn.gaussian_process import kernels
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import (
        FunctionTransformer,
        PolynomialFeatures,
        PowerTransformer,
        QuantileTransformer,
        SplineTransformer,
        StandardScaler,
    )
    from sklearn.tree import DecisionTreeRegressor

    pair = [("a", Ridge()), ("b", DecisionTreeRegressor(max_depth=2))]
    kinds = [
        kernels.Matern(),
        kernels.RationalQuadratic(),
        kernels.ExpSineSquared() * kernels.RBF() + kernels.WhiteKernel(),
        kernels.DotProduct() ** 2,
        kernels.PairwiseKernel() + kernels.WhiteKernel(),
    ]
    transformers = [
        PolynomialFeatures(),
        PowerTransformer(),
        QuantileTransformer(n_quantiles=5),
        SplineTransformer(),
        FunctionTransformer(special.expit),
    ]
    splits = [
        model_selection.KFold(2),
        model_selection.ShuffleSplit(2, random_state=np.random.RandomState(0)),
        model_selection.TimeSeriesSplit(2),
        model_selection.RepeatedKFold(n_splits=2, n_repeats=1),
    ]
    return [
        lambda: compose.TransformedTargetRegressor(Ridge(), func=np.log, inverse_func=np.exp),
        lambda: compose.TransformedTargetRegressor(Ridge(), transformer=StandardScaler()),
        lambda: ensemble.VotingRegressor(pair),
        lambda: ensemble.StackingRegressor(pair, cv=2),
        lambda: ensemble.HistGradientBoostingRegressor(max_iter=3, loss="quantile", quantile=0.5),
        lambda: ensemble.GradientBoostingRegressor(n_estimators=2, loss="huber"),
        lambda: KNeighborsRegressor(weights="distance", algorithm="brute"),
        lambda: KernelRidge(kernel="rbf"),
        lambda: MLPRegressor(hidden_layer_sizes=(4,), solver="lbfgs", max_iter=20),
        lambda: linear_model.RidgeCV(scoring="r2"),
        lambda: linear_model.RANSACRegressor(random_state=np.random.RandomState(0)),
        lambda: linear_model.TweedieRegressor(power=1.5),
        *(
            partial(gaussian_process.GaussianProcessRegressor, kernel, alpha=1.0)
            for kernel in kinds
        ),
        *(partial(make_pipeline, transformer, Ridge()) for transformer in transformers),
        *(partial(model_selection.GridSearchCV, Ridge(), {"alpha": [1.0]}, cv=cv) for cv in splits),
    ]


def parameters() -> Iterator[Fitted]:
    """Yield objects that people give to estimators and searches: they stay in the artifact."""
    import collections

    import numpy as np
    from scipy import sparse, stats
    from sklearn import feature_selection, metrics, model_selection
    from sklearn.metrics import pairwise

    numbers = datasets()["numbers and names"][0]
    objects: list[Any] = [
        *(metrics.get_scorer(name) for name in metrics.get_scorer_names()),
        *(value for name, value in vars(feature_selection).items() if name in SCORE_FUNCTIONS),
        *pairwise.PAIRWISE_KERNEL_FUNCTIONS.values(),
        *(f for f in pairwise.PAIRWISE_DISTANCE_FUNCTIONS.values() if callable(f)),
        *(getattr(model_selection, name)() for name in SPLITTERS),
        *(getattr(stats, name)(*given) for name, given in DISTRIBUTIONS.items()),
        *(kind(numbers) for kind in (sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix)),
        *(kind(numbers) for kind in (sparse.csr_array, sparse.csc_array, sparse.coo_array)),
        *(np.dtype(code).type for code in "?bBhHiIlLqQefdgSUOmM"),
        *(kind for kind in (bool, int, float, str, object)),
        *(np.random.Generator(getattr(np.random, name)(0)) for name in BIT_GENERATORS),
        np.random.RandomState(0),
        collections.OrderedDict(a=1),
        collections.defaultdict(int, a=1),
        collections.Counter("aab"),
        {1, 2},
        frozenset({1}),
        bytearray(b"a"),
        range(3),
        1j,
        np.array([("a", 1.5, None)], dtype=[("n", "U3"), ("f", "f8"), ("o", "O")]),
        np.array(["2024-01-01", "NaT"], dtype="M8[ns]"),
        np.float64(1.5),
    ]
    yield from (Fitted("parameter", value, None) for value in objects)


class Learned(dict[tuple[str, str], "LearnedUse"]):
    """Stands in for the list: allows everything, and keeps what was asked for."""

    def get(self, name: tuple[str, str], default: object = None) -> "LearnedUse":
        """Return the use of a global, new if it has not been asked for."""
        return self.setdefault(name, LearnedUse())


class LearnedUse:
    """Allows every use of one global, and keeps which."""

    def __init__(self) -> None:
        self.verbs: set[str] = set()

    def __getattr__(self, verb: str) -> bool:
        self.verbs.add(verb)
        return True


def restricted_unpickler() -> ModuleType:
    """Import the module by its path: the environment has nothing of ours installed."""
    path = SERVER / "restricted_unpickler.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forms(estimator: Any) -> Iterator[bytes]:
    """Yield an estimator as pickles of every current protocol and as joblib writes it."""
    import joblib

    for protocol in PROTOCOLS:
        yield pickle.dumps(estimator, protocol)
    stream = io.BytesIO()
    joblib.dump(estimator, stream)
    yield stream.getvalue()


def record() -> dict[str, Any]:
    """Fit, pickle and read everything in this environment; return what reading asked for."""
    import sklearn

    unpickler = restricted_unpickler().RestrictedUnpickler
    learned = Learned()
    failures: dict[str, str] = {}
    names = []
    for fitted in chain(
        fitted_estimators(failures, is_thorough=True), typical_models(failures), parameters()
    ):
        names.append(fitted.name.split("(")[0])
        for form in forms(fitted.estimator):
            unpickler(io.BytesIO(form), learned).load()
    return {
        "version": sklearn.__version__,
        "n_estimators": len(set(names)),
        "n_models": len(names),
        "failures": failures,
        "globals": {" ".join(name): sorted(use.verbs) for name, use in learned.items()},
    }


def make(uv: str) -> None:
    """Record in every environment, and write the union."""
    uses: dict[str, set[str]] = {}
    versions = []
    for requirements in ENVIRONMENTS:
        found = record_in(uv, requirements)
        versions.append(found["version"])
        sys.stderr.write(
            f"{' '.join(requirements)}: {found['n_models']} models of {found['n_estimators']}"
            f" estimators, {len(found['globals'])} globals;"
            f" not fitted: {found['failures'] or 'none'}\n"
        )
        for name, verbs in found["globals"].items():
            uses.setdefault(name, set()).update(verbs)
    lines = [" ".join([name, *sorted(verbs)]) for name, verbs in sorted(uses.items())]
    header = HEADER.format(versions="scikit-learn " + ", ".join(sorted(set(versions))))
    LIST.write_text(header + "".join(f"{line}\n" for line in lines), encoding="utf-8")


def record_in(uv: str, requirements: list[str]) -> dict[str, Any]:
    """Run `record` in an environment of its own."""
    extra = [part for requirement in [*requirements, "pandas"] for part in ("--with", requirement)]
    command = [uv, "run", "--no-project", "--quiet", "--python", sys.executable, *extra]
    output = subprocess.run(
        [*command, "python", "-W", "ignore", __file__, "record"], check=True, stdout=subprocess.PIPE
    ).stdout
    found: dict[str, Any] = json.loads(output)
    return found


def main() -> None:
    """Run `make --uv UV` or `record`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["make", "record"])
    parser.add_argument("--uv", default="uv")
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.uv)
    else:
        sys.stdout.write(json.dumps(record()))


if __name__ == "__main__":
    main()
