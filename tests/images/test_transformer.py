"""Does the example of a transformer work, before a real predictor?"""

import pytest
from tests.images import manifests

from kserve.testing import ServerProcess

SCRIPT = manifests.EXAMPLES / "transformer" / "transformer.py"
MODEL_DIR = manifests.ROOT / "examples" / "sklearn-iris" / "model"
NAMES = ("sepal_length_mm", "sepal_width_mm", "petal_length_mm", "petal_width_mm")


@pytest.mark.timeout(90)
def test_flowers_become_species() -> None:
    pytest.importorskip("sklearnserver", reason="sklearnserver is not installed")
    path = "/v1/models/iris-flowers:predict"
    flowers = [dict(zip(NAMES, row, strict=True)) for row in ([51, 35, 14, 2], [68, 28, 48, 14])]
    with ServerProcess(
        "sklearnserver", "--model_dir", str(MODEL_DIR), "--model_name", "iris-flowers"
    ) as predictor:
        host = f"127.0.0.1:{predictor.port}"
        # What the manifest gives it, and what KServe's controller appends.
        arguments = ("--model_name=iris-flowers", f"--predictor_host={host}", "--workers", "1")
        with ServerProcess(str(SCRIPT), *arguments) as transformer:
            good = transformer.request("POST", path, {"instances": flowers})
            missing = transformer.request("POST", path, {"instances": [{"sepal_width_mm": 1}]})
            refused = transformer.request("POST", path, {"instances": []})
            by_predictor = predictor.request("POST", path, {"instances": []})

    assert (good.status, good.json()) == (200, {"predictions": ["setosa", "versicolor"]})
    assert (missing.status, missing.json()) == (
        400,
        {
            "error": "expected sepal_length_mm, sepal_width_mm, petal_length_mm, petal_width_mm, "
            "got no sepal_length_mm, petal_length_mm, petal_width_mm"
        },
    )
    assert (refused.status, refused.json()) == (400, by_predictor.json())
