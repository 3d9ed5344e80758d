"""Wheels that tests make, and time for those that start processes."""

import base64
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

MakeWheel = Callable[..., Path]


@pytest.fixture
def make_wheel(tmp_path: Path) -> MakeWheel:
    """Give what puts a wheel of one module into a folder `wheels`."""

    def make(
        name: str,
        version: str = "1.0",
        code: str = "",
        requires: tuple[str, ...] = (),
        extras: tuple[str, ...] = (),
    ) -> Path:
        info = f"{name}-{version}.dist-info"
        lines = [*(f"Requires-Dist: {each}" for each in requires)]
        lines += [f"Provides-Extra: {extra}" for extra in extras]
        metadata = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"])
        files = {
            f"{name}.py": code or f"VERSION = {version!r}\n",
            f"{info}/METADATA": "\n".join([metadata, *lines, ""]),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\n"
            "Root-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = [
            f"{path},sha256={_digest(text.encode())},{len(text)}\n" for path, text in files.items()
        ]
        files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"])
        folder = tmp_path / "wheels"
        folder.mkdir(exist_ok=True)
        wheel = folder / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        return wheel

    return make


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give time to the tests that start servers and installers, and a busy machine to them."""
    for item in items:
        is_here = item.path.parent == Path(__file__).parent
        if is_here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(90))
