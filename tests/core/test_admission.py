"""How many requests of one model may be in flight."""

import pytest

from kserve.admission import Admission
from kserve.errors import TooManyRequests


def test_refuses_beyond_the_limit_until_one_leaves() -> None:
    admission = Admission(2)
    admission.enter()
    admission.enter()

    with pytest.raises(TooManyRequests) as refused:
        admission.enter()
    admission.leave()
    admission.enter()

    assert str(refused.value) == (
        "2 requests for this model are in flight, which is as many as it takes "
        "(--max_inflight_requests)"
    )
    assert refused.value.http_headers == {"retry-after": "1"}
    assert admission.n_in_flight == 2


def test_is_full_at_the_limit() -> None:
    admission = Admission(1)
    before = admission.is_full
    admission.enter()

    assert (before, admission.is_full) == (False, True)
