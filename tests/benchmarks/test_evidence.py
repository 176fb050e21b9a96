"""Evidence is written so that any reader of JSON can read it."""

import json
import math

import pytest

from benchmarks.evidence import Evidence


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


def test_what_never_came_to_an_end_falls_short_and_is_null(tmp_path):
    evidence = Evidence("none", (0, 1))
    evidence.check("seconds until it is there", [1.0, math.inf], at_most=2.0)
    evidence.table("by seed", [{"seed": 0, "score": math.nan}])
    found = json.loads(evidence.write(tmp_path).read_text(), parse_constant=refuse)
    (check,) = found["checks"]
    assert (check["measured"], check["per_seed"], check["holds"]) == (None, [1.0, None], False)
    assert found["tables"] == {"by seed": [{"seed": 0, "score": None}]}


def test_a_check_needs_a_bound():
    with pytest.raises(ValueError, match="'free' has no bound"):
        Evidence("none", (0,)).check("free", 1.0)
