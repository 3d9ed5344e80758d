"""Which rounds of boosting count: `all`, `best`, or a range."""

import re
from dataclasses import dataclass
from typing import Any, Final

from kserve.errors import InvalidInput

PARAMETER: Final = "iteration_range"

_ALL: Final = "all"
_BEST: Final = "best"
_RANGE: Final = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True, slots=True)
class Rounds:
    """The rounds that a model was boosted in.

    Attributes:
        n_rounds: How many.
        best: The one in which early stopping found the best score, from 0; None without it.
    """

    n_rounds: int
    best: int | None

    def parse(self, value: Any, owner: str) -> tuple[int, int]:
        """Give the first round and that after the last one; (0, 0) is all, as in XGBoost.

        Args:
            value: `all`, `best` or `BEGIN:END`.
            owner: What the error calls it.

        Raises:
            InvalidInput: It is none of these, or there are no such rounds.
        """
        if value == _ALL:
            return 0, 0
        if value == _BEST:
            if self.best is None:
                raise InvalidInput(
                    f"{owner}: the model was trained without early stopping, so no round is best"
                )
            return 0, self.best + 1
        match = _RANGE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise InvalidInput(f"{owner}: expected all, best or BEGIN:END, got {value!r}")
        begin, end = int(match[1]), int(match[2])
        if not begin < end <= self.n_rounds:
            raise InvalidInput(
                f"{owner}: expected BEGIN < END <= {self.n_rounds}, as the model has "
                f"{self.n_rounds} rounds, got {value}"
            )
        return begin, end
