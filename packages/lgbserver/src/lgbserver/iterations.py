"""Which iterations of boosting count."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kserve.errors import InvalidInput

# Parameters of a request, by LightGBM's names.
_START: Final = "start_iteration"
_NUMBER: Final = "num_iteration"

_ALL: Final = -1


@dataclass(frozen=True, slots=True)
class Iterations:
    """The iterations that count.

    Attributes:
        start: The first, from 0.
        number: How many; -1 for all, None for those up to the best one that LightGBM knows of.
    """

    start: int = 0
    number: int | None = None

    def of_request(self, parameters: Mapping[str, Any], n_iterations: int) -> "Iterations":
        """Give what a request says, or else these.

        Args:
            parameters: Those of the request.
            n_iterations: How many the model has.

        Raises:
            InvalidInput: The model has no such iterations.
        """
        if _START not in parameters and _NUMBER not in parameters:
            return self
        asked = Iterations(parameters.get(_START, self.start), parameters.get(_NUMBER, self.number))
        asked.check(n_iterations, "parameter")
        return asked

    def check(self, n_iterations: int, owner: str) -> None:
        """Check that a model has them.

        Raises:
            InvalidInput: It has not.
        """
        if not _is_between(self.start, 0, n_iterations - 1):
            raise InvalidInput(
                f"{owner} {_START!r}: expected 0 to {n_iterations - 1}, as the model has "
                f"{n_iterations} iterations, got {self.start!r}"
            )
        most = n_iterations - self.start
        if self.number not in (None, _ALL) and not _is_between(self.number, 1, most):
            raise InvalidInput(
                f"{owner} {_NUMBER!r}: expected 1 to {most}, or {_ALL} for all, got {self.number!r}"
            )


def _is_between(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
