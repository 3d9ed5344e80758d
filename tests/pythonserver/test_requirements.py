"""What a `requirements.txt` asks for, and what of it is there."""

from importlib.metadata import version
from pathlib import Path

import pytest

from kserve.errors import ModelLoadError
from pythonserver.requirements import ensure_installed, find_lacks, read

NUMPY = version("numpy")


def write(tmp_path: Path, text: str, name: str = "requirements.txt") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def lacks(tmp_path: Path, text: str) -> list[tuple[str, str]]:
    found = find_lacks(read(write(tmp_path, text)))
    return [(lack.wanted.line, lack.reason) for lack in found]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("\n# only a comment\n   \n", id="comments"),
        pytest.param("numpy", id="a name"),
        pytest.param("NumPy>=1.20,<99  # the maths", id="a range, another spelling, a comment"),
        pytest.param(f"numpy=={NUMPY}", id="pinned"),
        pytest.param("numpy>=1.0 ; python_version >= '3.11'", id="a marker that holds"),
        pytest.param("no-such-thing ; sys_platform == 'win32'", id="a marker that does not"),
        pytest.param("numpy \\\n  >=1.20 \\\n  --hash=sha256:abc", id="lines joined, with a hash"),
        pytest.param("kserve==0.15.0\nkserve-core\nKServe[storage]", id="what serves"),
        pytest.param("--extra-index-url x\n-i y\nnumpy", id="options"),
        pytest.param("numpy @ file:///somewhere/numpy.whl", id="an address"),
        pytest.param("uvicorn[no-such-extra]", id="an extra that is not there"),
    ],
)
def test_nothing_lacks_where_all_is_met(tmp_path: Path, text: str) -> None:
    assert lacks(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("no-such-thing>=2", [("no-such-thing>=2", "not installed")], id="missing"),
        pytest.param("numpy<1", [("numpy<1", f"installed: {NUMPY}")], id="another version"),
        pytest.param(
            "numpy\nno-such-a\nno-such-b==1 --hash=sha256:1",
            [("no-such-a", "not installed"), ("no-such-b==1", "not installed")],
            id="several",
        ),
        pytest.param(
            "uvicorn[standard]",
            [("uvicorn[standard]", "its extra needs ")],
            id="what an extra needs",
        ),
        pytest.param(
            "./src", [("{tmp_path}/src", "whether it is there cannot be told")], id="path"
        ),
        pytest.param(
            "-e ./src", [("{tmp_path}/src", "whether it is there cannot be told")], id="editable"
        ),
        pytest.param(
            "./w/no_such-1.0-py3-none-any.whl",
            [("{tmp_path}/w/no_such-1.0-py3-none-any.whl", "not installed")],
            id="a wheel",
        ),
    ],
)
def test_says_what_lacks_and_why(
    tmp_path: Path, text: str, expected: list[tuple[str, str]]
) -> None:
    found = lacks(tmp_path, text)

    assert [line for line, _ in found] == [
        line.replace("{tmp_path}", str(tmp_path)) for line, _ in expected
    ]
    for (_, reason), (_, start) in zip(found, expected, strict=True):
        assert reason.startswith(start)


def test_reads_the_files_that_it_includes_once(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    write(tmp_path, "no-such-a\n-r ../requirements.txt\n", "more/base.txt")

    found = lacks(tmp_path, "-r more/base.txt\n--requirement=more/base.txt\nno-such-b\n")

    assert [line for line, _ in found] == ["no-such-a", "no-such-b"]


def test_constraints_limit_what_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "numpy<1\nno-such-thing==1\n", "limits.txt")

    found = lacks(tmp_path, "-c limits.txt\nnumpy\n")

    assert found == [("numpy", f"installed: {NUMPY}, {tmp_path}/limits.txt:1 asks for numpy<1")]


def test_options_and_paths_are_kept_for_the_installer(tmp_path: Path) -> None:
    requirements = read(
        write(
            tmp_path, "--no-index\n-f ./wheels\n--pre\nno-such==1 --hash=sha256:a --hash sha256:b"
        )
    )

    assert requirements.options == ("--no-index", f"--find-links {tmp_path}/wheels", "--pre")
    assert [each.hashes for each in requirements.wanted] == [("sha256:a", "sha256:b")]


def test_variables_stand_for_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHEEL_FOLDER", "here")

    requirements = read(write(tmp_path, "--find-links ${WHEEL_FOLDER}\n--index-url ${NOT_SET_X}"))

    assert requirements.options == (f"--find-links {tmp_path}/here", "--index-url ${NOT_SET_X}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("numpy\nfoo bar\n", ":2: 'foo bar' is no requirement: Expected", id="no name"),
        pytest.param("numpy=1.2", ":1: 'numpy=1.2' is no requirement: Expected", id="one ="),
        pytest.param("-r none.txt", "none.txt: cannot be read: [Errno 2]", id="no such file"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read(write(tmp_path, text))

    assert reason in str(caught.value)


def test_what_is_missing_is_listed_with_how_to_get_it(tmp_path: Path) -> None:
    path = write(tmp_path, "numpy<1\nno-such-thing\n")

    with pytest.raises(ModelLoadError) as caught:
        ensure_installed(path, may_install=False)

    assert str(caught.value) == (
        f"{path}: not there: numpy<1 (installed: {NUMPY}); no-such-thing (not installed). Start "
        f"with --install_requirements, or install them where the server runs: pip install -r {path}"
    )
