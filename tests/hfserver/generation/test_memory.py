"""What is left is the limit without what the process has."""

import pytest
import torch

from hfserver.generation import memory

MEBIBYTE = 1 << 20


def test_memory_that_the_process_takes_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 64 << 30)
    before = memory.memory_left(torch.device("cpu"))

    taken = torch.ones(64 * MEBIBYTE, dtype=torch.uint8)

    after = memory.memory_left(torch.device("cpu"))
    assert 60 * MEBIBYTE < before - after < 80 * MEBIBYTE
    assert before < (64 << 30) - 100 * MEBIBYTE
    del taken
