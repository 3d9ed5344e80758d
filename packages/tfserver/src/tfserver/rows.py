"""Whether axis 0 is rows that requests may put together: what a function says, and a trial.

TensorFlow names no axes, so an axis 0 of any length may be rows or anything else.
"""

from kserve.row_trial import fixed_axis, try_rows
from tfserver.function import Function


def find_rows(function: Function) -> tuple[bool, str]:
    """Say whether requests may run together, and why."""
    if reason := _reason_against(function):
        return False, reason
    is_shown = try_rows(function.signature, function.run)
    if is_shown is None:
        return False, "no trial succeeded"
    if not is_shown:
        return False, "in a trial of two rows, one depended on the other"
    return True, "in a trial of two rows, none depended on the other"


def _reason_against(function: Function) -> str:
    if function.changes_state:
        return "a call changes what later ones give"
    if not function.signature.inputs:
        return "it has no input"
    return fixed_axis(function.signature)
