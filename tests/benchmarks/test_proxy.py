"""The benchmark of the proxy asks both, and every answer is right."""

import pytest
from benchmarks.proxy import measure

# It starts processes.
pytestmark = pytest.mark.timeout(90)


def test_asks_directly_and_through_the_proxy() -> None:
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in measure(1, 0.2)]

    assert [(kind, asked) for kind, _, asked, *_ in rows] == [
        ("whole", "directly"),
        ("whole", "through the proxy"),
        ("stream", "directly"),
        ("stream", "through the proxy"),
    ]
    assert all(failures == "0" for *_, failures in rows)
