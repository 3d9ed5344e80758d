"""Models in directories: which versions are loaded, and what has changed since."""

import logging
import shutil
import threading
from pathlib import Path

import pytest

from kserve.directory_repository import DirectoryRepository, LoadedRepository
from kserve.errors import (
    InvalidInput,
    ModelLoadError,
    ModelMissingError,
    ModelNotFound,
    NoModelReady,
    UserCodeError,
)
from kserve.model import Model
from kserve.model_repository import IndexEntry, ModelRepository, ModelState, ModelStatus

pytestmark = pytest.mark.anyio

READY, UNAVAILABLE = ModelState.READY, ModelState.UNAVAILABLE


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Number(Model):
    """The number in its file."""

    artifact_suffixes = (".num",)

    def __init__(self, name: str, model_dir: str) -> None:
        super().__init__(name)
        self.path = Path(model_dir) / "m.num"

    def load(self) -> bool:
        if not self.path.exists():
            raise ModelMissingError(self.path.parent, "no model file")
        self.number = int(self.path.read_text())
        self.ready = True
        return True


def write(directory: Path, number: int | str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "m.num").write_text(str(number))
    return directory


def numbers(repository: ModelRepository, name: str) -> dict[str, int]:
    """Give what serves under a name, by version."""
    return {
        model.version or "": model.number
        for model in repository.objects_of(name)
        if isinstance(model, Number)
    }


async def test_loads_the_newest_version_alone_by_default(tmp_path: Path) -> None:
    for version in (9, 10, 2):
        write(tmp_path / "m" / str(version), version)
    repository = DirectoryRepository(Number, str(tmp_path))

    await repository.load("m")

    assert numbers(repository, "m") == {"10": 10}
    assert repository.versions("m") == ["10"]
    assert repository.get_model("m") is repository.get_version("m", "10")


@pytest.mark.parametrize(
    ("max_versions", "versions"),
    [pytest.param(2, ["9", "10"], id="two"), pytest.param(None, ["2", "9", "10"], id="all")],
)
async def test_loads_as_many_versions_as_it_may(
    tmp_path: Path, max_versions: int | None, versions: list[str]
) -> None:
    for version in (9, 10, 2):
        write(tmp_path / "m" / str(version), version)
    repository = DirectoryRepository(Number, str(tmp_path), max_versions=max_versions)

    await repository.load("m")

    assert repository.versions("m") == versions
    model = repository.get_model("m")
    assert model is not None and model.version == "10"


async def test_loads_versions_on_the_calling_thread_too(tmp_path: Path) -> None:
    write(tmp_path / "m" / "1", 1)
    repository = DirectoryRepository(Number, str(tmp_path))

    is_ready = repository.load_model("m")

    assert (is_ready, numbers(repository, "m")) == (True, {"1": 1})


@pytest.mark.parametrize("blocks", [False, True], ids=["on the loop", "on the calling thread"])
async def test_a_model_that_cannot_be_made_fails_its_version_alone(
    tmp_path: Path, blocks: bool
) -> None:
    write(tmp_path / "m" / "1", 1)
    write(tmp_path / "m" / "2", 2)

    def make(name: str, model_dir: str) -> Number:
        if model_dir.endswith("2"):
            raise ModelLoadError("made of nothing")
        return Number(name, model_dir)

    repository = DirectoryRepository(make, str(tmp_path), max_versions=None)

    with pytest.raises(ModelLoadError, match="made of nothing"):
        repository.load_model("m") if blocks else await repository.load("m")

    assert numbers(repository, "m") == {"1": 1}
    assert repository.failures("m") == {"2": "made of nothing"}


async def test_a_model_is_made_off_the_event_loop(tmp_path: Path) -> None:
    write(tmp_path / "m", 1)
    threads = []

    def make(name: str, model_dir: str) -> Number:
        threads.append(threading.current_thread())
        return Number(name, model_dir)

    await DirectoryRepository(make, str(tmp_path)).load("m")

    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_the_log_shows_the_traceback_of_the_users_code_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    write(tmp_path, 1)

    def make(name: str, model_dir: str) -> Number:
        raise UserCodeError("model.py, line 1: KeyError: 'x'", KeyError("x"))

    with pytest.raises(NoModelReady):
        await DirectoryRepository(make, str(tmp_path), suffixes=(".num",)).load_at_start()

    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == ("Model model cannot be loaded: model.py, line 1: KeyError: 'x'")
    assert record.exc_info is not None and type(record.exc_info[1]) is KeyError


async def test_the_old_version_serves_while_the_newest_cannot_be_loaded(tmp_path: Path) -> None:
    write(tmp_path / "m" / "1", 1)
    repository = DirectoryRepository(Number, str(tmp_path))
    await repository.load("m")
    write(tmp_path / "m" / "2", "x")

    with pytest.raises(ValueError, match="invalid literal"):
        await repository.load("m")

    reason = "Its load raised ValueError; the log says more."
    assert numbers(repository, "m") == {"1": 1}
    assert repository.index() == [
        IndexEntry("m", "1", READY),
        IndexEntry("m", "2", UNAVAILABLE, reason),
    ]


async def test_other_versions_are_loaded_beside_one_that_cannot_be(tmp_path: Path) -> None:
    write(tmp_path / "m" / "1", 1)
    write(tmp_path / "m" / "2", "x")
    repository = DirectoryRepository(Number, str(tmp_path), max_versions=None)

    with pytest.raises(ValueError, match="invalid literal"):
        await repository.load("m")

    assert numbers(repository, "m") == {"1": 1}
    assert repository.status("m") == ModelStatus(READY)


async def test_a_rewritten_version_serves_its_old_self_until_it_can_be_loaded(
    tmp_path: Path,
) -> None:
    write(tmp_path / "m" / "1", 1)
    repository = DirectoryRepository(Number, str(tmp_path))
    await repository.load("m")
    write(tmp_path / "m" / "1", "x")
    with pytest.raises(ValueError, match="invalid literal"):
        await repository.load("m")
    while_broken = (numbers(repository, "m"), repository.index()[0].reason != "")
    write(tmp_path / "m" / "1", 11)
    await repository.load("m")

    assert while_broken == ({"1": 1}, True)
    assert numbers(repository, "m") == {"1": 11}
    assert repository.index() == [IndexEntry("m", "1", READY)]


async def test_a_version_whose_directory_is_gone_goes_with_the_next_load(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        write(tmp_path / "m" / str(version), version)
    repository = DirectoryRepository(Number, str(tmp_path), max_versions=None)
    await repository.load("m")
    shutil.rmtree(tmp_path / "m" / "1")
    shutil.rmtree(tmp_path / "m" / "3")
    write(tmp_path / "m" / "2", "x")
    with pytest.raises(ValueError, match="invalid literal"):
        await repository.load("m")

    assert numbers(repository, "m") == {"2": 2}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param("m", "m/2", {"2": 7}, id="versions come"),
        pytest.param("m/2", "m", {"": 7}, id="an artifact comes"),
    ],
)
async def test_a_model_may_take_up_versions_and_leave_them(
    tmp_path: Path, before: str, after: str, expected: dict[str, int]
) -> None:
    write(tmp_path / before, 1)
    repository = DirectoryRepository(Number, str(tmp_path))
    await repository.load("m")
    shutil.rmtree(tmp_path / "m")
    write(tmp_path / after, 7)

    await repository.load("m")

    assert numbers(repository, "m") == expected
    assert repository.versions("m") == [version for version in expected if version]


async def test_an_artifact_at_the_top_is_the_single_model(tmp_path: Path) -> None:
    write(tmp_path, 5)
    repository = DirectoryRepository(Number, str(tmp_path), model_name="iris")

    required = await repository.load_at_start()

    assert (required, repository.loads_by_name) == (["iris"], False)
    assert numbers(repository, "iris") == {"": 5}


async def test_numbers_at_the_top_are_versions_of_the_single_model(tmp_path: Path) -> None:
    write(tmp_path / "1", 1)
    write(tmp_path / "2", 2)
    repository = DirectoryRepository(Number, str(tmp_path), model_name="iris")

    required = await repository.load_at_start()

    assert (required, numbers(repository, "iris")) == (["iris"], {"2": 2})


async def test_names_at_the_top_are_models_each_with_versions_or_not(tmp_path: Path) -> None:
    write(tmp_path / "plain", 1)
    write(tmp_path / "versioned" / "3", 3)
    write(tmp_path / "broken", "x")
    repository = DirectoryRepository(Number, str(tmp_path))

    required = await repository.load_at_start()

    assert (required, repository.loads_by_name) == ([], True)
    assert repository.index() == [
        IndexEntry("broken", "", UNAVAILABLE, repository.failures("broken")[""]),
        IndexEntry("plain", "", READY),
        IndexEntry("versioned", "3", READY),
    ]


async def test_a_single_model_that_cannot_be_loaded_fails_the_start(tmp_path: Path) -> None:
    write(tmp_path / "2", "x")
    repository = DirectoryRepository(Number, str(tmp_path), model_name="iris")

    with pytest.raises(NoModelReady) as caught:
        await repository.load_at_start()

    assert str(caught.value) == (
        "Models with name iris are not ready. "
        "ValueError: invalid literal for int() with base 10: 'x'"
    )


async def test_a_single_model_starts_with_the_versions_that_can_be_loaded(tmp_path: Path) -> None:
    write(tmp_path / "1", 1)
    write(tmp_path / "2", "x")
    repository = DirectoryRepository(Number, str(tmp_path), model_name="iris", max_versions=None)

    required = await repository.load_at_start()

    assert (required, numbers(repository, "iris")) == (["iris"], {"1": 1})


@pytest.mark.parametrize("wait_s", [0, 0.02])
async def test_a_start_without_a_directory_fails_when_the_wait_is_over(
    tmp_path: Path, wait_s: float
) -> None:
    with pytest.raises(ModelMissingError) as caught:
        await DirectoryRepository(Number, str(tmp_path / "none")).load_at_start(wait_s)

    assert str(caught.value) == f"{tmp_path}/none: no such directory"


async def test_a_single_model_answers_to_its_name_alone(tmp_path: Path) -> None:
    write(tmp_path, 5)
    repository = DirectoryRepository(Number, str(tmp_path), model_name="iris")
    await repository.load_at_start()

    with pytest.raises(ModelNotFound):
        await repository.load("other")
    with pytest.raises(InvalidInput):
        await repository.load("../iris")


async def test_a_name_without_a_directory_leaves_no_trace(tmp_path: Path) -> None:
    repository = DirectoryRepository(Number, str(tmp_path))

    with pytest.raises(ModelMissingError):
        await repository.load("none")

    assert (repository.names(), repository.index(), repository.find_changed()) == ([], [], {})


async def test_the_index_shows_what_could_be_loaded_and_no_paths(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "other", 1)
    repository = DirectoryRepository(Number, str(tmp_path))
    with pytest.raises(ModelMissingError):
        await repository.load("empty")

    assert repository.index() == [
        IndexEntry("empty", "", UNAVAILABLE, "empty: no model file"),
        IndexEntry("other", "", UNAVAILABLE, "not loaded"),
    ]
    assert repository.status("empty") == ModelStatus(UNAVAILABLE, "empty: no model file")


async def test_what_was_loaded_has_not_changed(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    write(tmp_path / "b" / "1", 1)
    write(tmp_path / "broken", "x")
    repository = DirectoryRepository(Number, str(tmp_path))
    await repository.load_at_start()

    assert repository.find_changed() == {}


async def test_finds_what_changed_what_is_new_and_what_is_gone(tmp_path: Path) -> None:
    for name in ("changed", "gone", "same"):
        write(tmp_path / name / "1", 1)
    repository = DirectoryRepository(Number, str(tmp_path))
    await repository.load_at_start()
    write(tmp_path / "changed" / "2", 2)
    write(tmp_path / "new", 1)
    shutil.rmtree(tmp_path / "gone")

    changed = repository.find_changed()

    assert {name: list(prints) for name, prints in changed.items()} == {
        "changed": ["2"],
        "new": [""],
        "gone": [],
    }


async def test_loads_only_the_versions_that_changed(tmp_path: Path) -> None:
    for version in (1, 2):
        write(tmp_path / "m" / str(version), version)
    repository = DirectoryRepository(Number, str(tmp_path), max_versions=None)
    await repository.load("m")
    first = {version: repository.get_version("m", version) for version in ("1", "2")}
    write(tmp_path / "m" / "2", 22)
    write(tmp_path / "m" / "3", 3)

    await repository.load_changed("m")

    assert numbers(repository, "m") == {"1": 1, "2": 22, "3": 3}
    assert repository.get_version("m", "1") is first["1"]
    assert repository.get_version("m", "2") is not first["2"]


async def test_a_model_that_was_removed_comes_back_whole(tmp_path: Path) -> None:
    for version in (1, 2):
        write(tmp_path / "m" / str(version), version)
    repository = DirectoryRepository(Number, str(tmp_path), max_versions=None)
    await repository.load("m")
    repository.remove("m")
    write(tmp_path / "m" / "2", 22)

    await repository.load_changed("m")

    assert numbers(repository, "m") == {"1": 1, "2": 22}


async def test_a_failure_is_remembered_while_other_versions_change(tmp_path: Path) -> None:
    write(tmp_path / "m" / "1", "x")
    write(tmp_path / "m" / "2", 2)
    repository = DirectoryRepository(Number, str(tmp_path), max_versions=None)
    with pytest.raises(ValueError, match="invalid literal"):
        await repository.load("m")
    write(tmp_path / "m" / "2", 22)

    await repository.load_changed("m")

    assert numbers(repository, "m") == {"2": 22}
    assert [(entry.version, entry.state) for entry in repository.index()] == [
        ("1", UNAVAILABLE),
        ("2", READY),
    ]


async def test_a_mixture_within_a_model_is_told_once_until_it_changes(tmp_path: Path) -> None:
    write(tmp_path / "m" / "1", 1)
    (tmp_path / "m" / "extra").mkdir()
    repository = DirectoryRepository(Number, str(tmp_path))

    await repository.load_at_start()
    before = (repository.status("m"), repository.find_changed())
    (tmp_path / "m" / "extra").rmdir()
    changed = list(repository.find_changed())
    await repository.load_changed("m")

    assert before == (
        ModelStatus(
            UNAVAILABLE,
            "m: expected versions (directories named by a number) or models (other names), "
            "found both: 1, extra",
        ),
        {},
    )
    assert (changed, numbers(repository, "m")) == (["m"], {"1": 1})


def test_a_load_on_the_calling_thread_that_fails_leaves_the_old_model(tmp_path: Path) -> None:
    write(tmp_path / "m", 1)
    repository = DirectoryRepository(Number, str(tmp_path))
    repository.load_model("m")
    write(tmp_path / "m", "x")

    with pytest.raises(ValueError, match="invalid literal"):
        repository.load_model("m")

    assert numbers(repository, "m") == {"": 1}


def test_an_index_of_a_directory_that_is_not_there_is_what_is_loaded(tmp_path: Path) -> None:
    write(tmp_path / "models" / "m", 1)
    repository = DirectoryRepository(Number, str(tmp_path / "models"))
    repository.load_model("m")
    shutil.rmtree(tmp_path / "models")

    assert repository.index() == [IndexEntry("m", "", READY)]


async def test_a_single_model_whose_directory_went_is_no_change(tmp_path: Path) -> None:
    write(tmp_path / "model" / "1", 1)
    repository = DirectoryRepository(Number, str(tmp_path / "model"))
    await repository.load_at_start()
    shutil.rmtree(tmp_path / "model" / "1")

    with pytest.raises(ModelLoadError):
        repository.find_changed()


async def test_a_single_model_that_became_many_is_no_change(tmp_path: Path) -> None:
    write(tmp_path, 1)
    repository = DirectoryRepository(Number, str(tmp_path))
    await repository.load_at_start()
    (tmp_path / "m.num").unlink()
    write(tmp_path / "a", 1)

    with pytest.raises(ModelLoadError) as caught:
        repository.find_changed()

    assert str(caught.value) == f"{tmp_path}: no model file, and no versions of one"


async def test_a_preferred_artifact_may_have_others_beside_it(tmp_path: Path) -> None:
    class Preferring(Number):
        preferred_artifact = "m.num"

    for directory in (tmp_path, tmp_path / "1", tmp_path / "2"):
        write(directory, 7)
        (directory / "part.num").touch()
    repository = DirectoryRepository(Preferring, str(tmp_path))

    assert await repository.load_at_start() == ["model"]
    assert numbers(repository, "model") == {"": 7}
    assert repository.find_changed() == {}


def test_a_loaded_repository_has_its_models_at_once(tmp_path: Path) -> None:
    write(tmp_path / "one", 1)
    write(tmp_path / "two", 2)

    repository = LoadedRepository(Number, str(tmp_path))

    assert (numbers(repository, "one"), numbers(repository, "two")) == ({"": 1}, {"": 2})


def test_a_loaded_repository_may_have_no_directory_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = LoadedRepository(Number, str(tmp_path / "later"))

    assert repository.get_models() == {}
    assert "No model is loaded" in caplog.text
