from pathlib import Path

import pytest
from benchmarks.artifacts import train
from benchmarks.footprint import SERVERS, code_lines, count_lines, footprint
from benchmarks.processes import split_cpus

SOURCE = '''"""A docstring
of two lines."""

import os

# A comment.
NAMES = (
    "a",  # a comment beside code

    "b",
)


class Empty:
    """Nothing."""


def text() -> str:
    """Give a text."""
    return """of
two lines"""
'''


def test_lines_of_code_are_no_blank_lines_comments_and_docstrings() -> None:
    assert sorted(code_lines(SOURCE)) == [4, 7, 8, 10, 11, 14, 18, 20, 21]


def test_a_package_has_the_lines_of_its_modules() -> None:
    assert 50 < count_lines("xgbserver") < 1000


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_server_is_measured_beside_its_framework(tmp_path: Path) -> None:
    directory = train("iris", tmp_path).directory

    measured = footprint(SERVERS["sklearnserver"], directory, 1, split_cpus()[0])

    assert measured.package == "sklearnserver"
    assert measured.n_lines == count_lines("sklearnserver")
    assert 0 < measured.import_s < 60
    assert 0 < measured.start_s < 60
