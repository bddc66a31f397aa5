"""The PSI of served scores, held against plain loops, and the references that go with a version."""

import json
import math
from typing import Any

import numpy as np
import pytest

from tests.utility_blender.some_outcomes import some_outcomes
from utility_blender.score_shift import ALARM, LIMIT, ScoreReference, reference_of, references_from, score_references


def plain_psi(then: list[float], now: list[float]) -> float:
    """Ten bins by the sorted scores of then; half a score more in each bin of now."""
    ordered = sorted(then)
    edges = sorted({ordered[int(len(then) * tenth / 10 - 1e-9)] for tenth in range(1, 10)})

    def shares(scores: list[float], more: float) -> list[float]:
        counts = [more] * (len(edges) + 1)
        for score in scores:
            counts[sum(score > edge for edge in edges)] += 1
        return [count / sum(counts) for count in counts]

    return sum((q - p) * math.log(q / p) for p, q in zip(shares(then, 0.0), shares(now, 0.5), strict=True))


@pytest.mark.parametrize("factor", [1.0, 1.2, 1.5, 3.0])
def test_it_is_the_psi(factor: float) -> None:
    rng = np.random.default_rng(3)
    then, now = rng.beta(2, 20, 1_001), rng.beta(2, 20, 700) * factor
    reference = reference_of(then)
    assert reference.psi(reference.counts(now)) == pytest.approx(plain_psi(then.tolist(), now.tolist()), rel=1e-9)


def test_the_same_scores_are_calm_and_doubled_ones_are_not() -> None:
    rng = np.random.default_rng(4)
    reference = reference_of(rng.beta(2, 20, 20_000))
    assert reference.psi(reference.counts(rng.beta(2, 20, 5_000))) < ALARM / 5
    assert reference.psi(reference.counts(rng.beta(2, 20, 5_000) * 2)) > LIMIT


def test_scores_that_never_differ_have_one_bin_and_still_tell() -> None:
    reference = reference_of(np.full(100, 0.5))
    assert reference.shares == (1.0, 0.0)
    assert reference.psi(reference.counts(np.full(100, 0.5))) < ALARM
    assert reference.psi(reference.counts(np.full(100, 0.6))) > LIMIT


def test_references_go_with_a_version_and_come_back() -> None:
    outcomes = some_outcomes(400)
    data = json.loads(json.dumps(score_references(outcomes)))
    references = references_from(data, outcomes.tasks)
    assert set(references) == {"home", "search"}
    rows_N = np.array(outcomes.contexts.scenario) == "home"
    orders = outcomes.scores_NCT[rows_N][outcomes.present_NC[rows_N]][:, 1]
    assert references["home"][1] == reference_of(orders)
    assert references["home"][1].counts(orders).sum() == len(orders)


@pytest.mark.parametrize(
    "broken",
    [{"edges": [0.2, 0.1], "shares": [0.3, 0.3, 0.4]}, {"edges": [0.1], "shares": [1.0]}, {"edges": [0.1]}, []],
)
def test_what_is_no_reference_is_refused(broken: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        references_from({"home": {"click": broken}}, ("click",))
    assert ScoreReference((0.1,), (0.5, 0.5)).edges == (0.1,)
