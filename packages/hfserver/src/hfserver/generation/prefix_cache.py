"""The keys and values of prompts that have been computed, for requests that begin alike.

They are kept in blocks of equally many tokens. The name of a block is a hash of its tokens and of
the block before it, so that equal names mean equal beginnings.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

BLOCK_TOKENS: Final = 32

Block = Sequence[torch.Tensor]


def block_names(token_ids: Sequence[int], salt: str) -> list[bytes]:
    """Give the names of the whole blocks that a sequence begins with.

    Args:
        token_ids: The sequence.
        salt: Sequences of other salts get other names.
    """
    # Names decide whose keys and values a request reads, so they must not collide by design.
    name = hashlib.blake2b(salt.encode(), digest_size=32).digest()
    data = np.asarray(token_ids, dtype=np.int64)
    names = []
    for start in range(0, len(data) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        tokens = data[start : start + BLOCK_TOKENS].tobytes()
        name = hashlib.blake2b(name + tokens, digest_size=32).digest()
        names.append(name)
    return names


class PrefixCache:
    """Blocks by name, the least recently used ones dropped; for one thread.

    Args:
        max_bytes: What the blocks may take; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.n_bytes = 0

    def find(self, names: Sequence[bytes]) -> list[Block]:
        """Give the blocks that a sequence of these names begins with, as far as there are any."""
        found = []
        for name in names:
            block = self._blocks.get(name)
            if block is None:
                break
            found.append(block)
        self._touch(names[: len(found)])
        return found

    def n_known(self, names: Sequence[bytes]) -> int:
        """Give how many of the first names are known."""
        n_known = 0
        while n_known < len(names) and names[n_known] in self._blocks:
            n_known += 1
        return n_known

    def add(self, names: Sequence[bytes], blocks: Sequence[Block]) -> None:
        """Keep the last blocks of a sequence, as many as there is room for.

        Args:
            names: Those of the sequence from its beginning on.
            blocks: Those of the last names.
        """
        n_known = len(names) - len(blocks)
        for name, block in zip(names[n_known:], blocks, strict=True):
            self._blocks[name] = block
            self.n_bytes += _bytes(block)
        self._touch(names)
        while self.n_bytes > self._max_bytes:
            _, block = self._blocks.popitem(last=False)
            self.n_bytes -= _bytes(block)

    def has_room(self, n_bytes: int) -> bool:
        """Say whether a block of so many bytes could be kept at all."""
        return n_bytes <= self._max_bytes

    def _touch(self, names: Sequence[bytes]) -> None:
        # A block is of use only with those before it, so the first ones go last.
        for name in reversed(names):
            if name in self._blocks:
                self._blocks.move_to_end(name)


def _bytes(block: Block) -> int:
    return sum(tensor.nbytes for tensor in block)
