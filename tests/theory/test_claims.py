"""A claim in its three forms: a line, a record, a status."""

import pytest

from ldjax.theory.claims import Claim, failures, standing


@pytest.mark.parametrize(
    ("kind", "verdict", "words"),
    [
        ("identity", None, ("holds", "FAILS")),
        ("claim", "depends", ("holds, depends", "FAILS, depends")),
        ("finding", None, ("held", "refuted")),
        ("finding", "depends", ("depends", "depends")),
    ],
)
def test_a_line_says_whether_it_holds_and_what_the_seeds_say(kind, verdict, words):
    claims = [Claim("a > b", holds, kind, verdict) for holds in (True, False)]
    assert [str(claim) for claim in claims] == [f"{word}: a > b" for word in words]
    assert failures(claims) == ([] if kind == "finding" else claims[1:])


def test_a_record_has_what_there_is_and_no_more():
    assert Claim("a", True).record() == {"text": "a", "holds": True}
    claim = Claim("a", False, "identity", "refuted", {"value": 1.0, "bound": 0.5})
    record = {"text": "a", "holds": False, "verdict": "refuted"}
    assert claim.record() == record | {"value": 1.0, "bound": 0.5}


def test_seeds_that_disagree_leave_it_open():
    truths = ([True], [True, True], [True, False], [False, False])
    assert [*map(standing, truths)] == ["held", "held", "depends", "refuted"]
