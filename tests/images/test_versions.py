"""Does the build argument choose the framework's version?"""

import json
from pathlib import Path

import images

VERSION = "1.6.1"


def test_an_image_of_another_scikit_learn_serves_what_that_has_made(
    engine: None, tmp_path: Path
) -> None:
    row = images.read_rows({"SCIKIT_LEARN_VERSION": VERSION})["sklearnserver"]
    image = images.build(row)
    images.make_model(image, "sklearnserver", tmp_path)
    options = [f"--volume={tmp_path}:/mnt/models:ro"]
    with images.container(image, options, "--model_name=m", "--drain_delay_s=0") as served:
        served.wait_until_ready()
        answers = images.ask(served, "m", images.SMOKE["sklearnserver"])
        code = "import json, sklearn, kserve; print(json.dumps(sklearn.__version__))"
        version = json.loads(served.execute("python", "-c", code))
        log = served.logs()

    assert image.endswith(f"-scikit-learn{VERSION}")
    assert version == VERSION
    assert answers == ([0, 1], [0, 1], 2)
    assert "InconsistentVersionWarning" not in log
