"""Is the recipe of the images sound, without building one?"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import images
import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")


def _lint(path: Path) -> str:
    if not HADOLINT.exists():
        pytest.skip("hadolint is not in this environment")
    done = subprocess.run([HADOLINT, str(path)], check=False, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", sorted(DOCKERFILE.parent.glob("*Dockerfile")), ids=lambda p: p.name
)
def test_hadolint_finds_nothing(path: Path) -> None:
    assert _lint(path) == ""


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    copy = tmp_path / "Dockerfile"
    shutil.copy(DOCKERFILE, copy)
    copy.write_text(copy.read_text() + "RUN cd /tmp && pip install numpy\n")

    assert "DL3013" in _lint(copy)


def test_uv_is_the_one_of_the_scripts() -> None:
    recipes = "".join(path.read_text() for path in DOCKERFILE.parent.glob("*Dockerfile"))
    ours = re.findall(r"^ARG UV_VERSION=(\S+)$", recipes, re.M)
    theirs = re.findall(r"^uv_version=(\S+)$", (ROOT / "scripts/env.sh").read_text(), re.M)

    assert ours == theirs * 2


def test_the_frameworks_version_is_that_of_the_lock_and_in_the_tag() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    locked = {row["version"] for row in lock["package"] if row["name"] == "scikit-learn"}
    row = images.read_rows()["sklearnserver"]

    version = row.args["FRAMEWORK"].removeprefix("scikit-learn==")
    assert version == max(locked, key=lambda text: tuple(map(int, text.split("."))))
    assert row.tags[-1].endswith(f"-scikit-learn{version}")


def test_a_variable_chooses_the_frameworks_version_and_the_tag() -> None:
    row = images.read_rows({"SCIKIT_LEARN_VERSION": "1.6.1", "PREFIX": "mine/"})["sklearnserver"]

    assert row.args["FRAMEWORK"] == "scikit-learn==1.6.1"
    assert row.tags[-1] == f"mine/sklearnserver:{_version()}-scikit-learn1.6.1"


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(images.ImageError, match=r"no variable SKLEARN; there are PREFIX, VERSION"):
        images.read_rows({"SKLEARN": "1.6.1"})


def test_images_have_the_version_of_the_packages() -> None:
    assert images.read_rows()["sklearnserver"].args["VERSION"] == _version()
    assert f"ARG VERSION={_version()}\n" in DOCKERFILE.read_text()


def _version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def test_an_image_is_made_of_nothing_but_what_it_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.M)

    assert "*" in ignored
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert kept == {name for line in copied for name in line.split()}
