"""Figures against slow float64 references that share nothing with the code under test."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.metrics import LOGIT_RANGE, MAX_LOGIT, NUM_BINS, Tally, bin_of, logit_of, scored_labels


def exact_auc(logits: list[float], labels: list[float]) -> float | None:
    """Share of (positive, negative) pairs in the right order, ties one half: every pair looked at."""
    positives = [z for z, y in zip(logits, labels, strict=True) if y]
    negatives = [z for z, y in zip(logits, labels, strict=True) if not y]
    if not positives or not negatives:
        return None
    won = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives)
    return won / (len(positives) * len(negatives))


def exact_ne(logits: list[float], labels: list[float]) -> float | None:
    rate = math.fsum(labels) / len(labels)
    if rate in (0.0, 1.0):
        return None
    p = [1 / (1 + math.exp(-z)) for z in logits]
    entropy = -math.fsum(math.log(q) if y else math.log(1 - q) for q, y in zip(p, labels, strict=True)) / len(p)
    return entropy / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))


def tally_of(logits: list[float], labels: list[float]) -> Tally:
    tally = Tally(1)
    tally.add(scored_labels(np.zeros(len(labels), np.int64), np.array(labels), np.array(logits)))
    return tally


scored = st.lists(st.tuples(st.floats(-9, 9), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40)


@given(scored)
def test_figures_equal_the_references(pairs: list[tuple[float, float]]) -> None:
    logits, labels = [z for z, _ in pairs], [y for _, y in pairs]
    figures = tally_of(logits, labels).figures([0])
    assert figures["n"] == len(pairs)
    assert figures["positives"] == sum(labels)
    expected_ne = exact_ne(logits, labels)
    assert figures["ne"] == (None if expected_ne is None else pytest.approx(expected_ne, rel=1e-9))
    if sum(labels):
        score_sum = math.fsum(1 / (1 + math.exp(-z)) for z in logits)
        assert figures["calibration"] == pytest.approx(score_sum / sum(labels), rel=1e-12)
    else:
        assert figures["calibration"] is None
    # With each logit replaced by its bin the pairs are exactly those of the histogram.
    binned = bin_of(np.array(logits)).tolist()
    expected_auc = exact_auc(binned, labels)
    assert figures["auc"] == (None if expected_auc is None else pytest.approx(expected_auc, abs=1e-12))


def test_the_error_of_binning_is_within_the_documented_bound_and_small() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(3_000) < 0.3).astype(float)
    for spread, tolerance in ((2.0, 5e-5), (0.3, 2e-4), (0.05, 1e-3)):
        logits = (rng.normal(-1, spread, 3_000) + labels * spread).tolist()
        figures = tally_of(logits, labels.tolist())
        negatives_H, positives_H = figures.histograms[0]
        bound = 0.5 * float(positives_H @ negatives_H) / (positives_H.sum() * negatives_H.sum())
        exact, binned = exact_auc(logits, labels.tolist()), figures.figures([0])["auc"]
        assert exact is not None
        assert binned is not None
        assert abs(binned - exact) <= bound
        assert abs(binned - exact) < tolerance


def test_a_constant_score_ranks_nothing_and_one_class_has_no_figures() -> None:
    assert tally_of([0.3] * 4, [0, 1, 0, 1]).figures([0])["auc"] == 0.5
    assert tally_of([0.3] * 4, [1, 1, 1, 1]).figures([0]) == {
        "n": 4,
        "positives": 4,
        "auc": None,
        "ne": None,
        "calibration": pytest.approx(1 / (1 + math.exp(-0.3))),
    }
    assert Tally(1).figures([0]) == {"n": 0, "positives": 0, "auc": None, "ne": None, "calibration": None}


def test_predicting_the_base_rate_has_ne_one() -> None:
    labels = [1.0] * 3 + [0.0] * 7
    assert tally_of([math.log(0.3 / 0.7)] * 10, labels).figures([0])["ne"] == pytest.approx(1.0, rel=1e-12)


def test_certain_scores_are_finite() -> None:
    logits = logit_of(np.array([0.0, 1.0, 0.5, np.nan], np.float32))
    np.testing.assert_array_equal(logits, [-MAX_LOGIT, MAX_LOGIT, 0.0, np.nan])
    assert tally_of([-MAX_LOGIT, MAX_LOGIT], [1, 0]).figures([0])["ne"] == pytest.approx(MAX_LOGIT / math.log(2))


def test_bins_cover_the_range_and_share_the_ends() -> None:
    edges = np.array([-1e9, -LOGIT_RANGE, 0.0, LOGIT_RANGE - 1e-9, LOGIT_RANGE, 1e9])
    assert bin_of(edges).tolist() == [0, 0, NUM_BINS // 2, NUM_BINS - 1, NUM_BINS - 1, NUM_BINS - 1]


@settings(max_examples=30)
@given(scored, scored)
def test_tallies_add_up_and_their_state_is_all_of_them(
    one: list[tuple[float, float]], two: list[tuple[float, float]]
) -> None:
    whole = tally_of([z for z, _ in one + two], [y for _, y in one + two])
    parts = [tally_of([z for z, _ in part], [y for _, y in part]) for part in (one, two)]
    total = Tally.total(parts)
    np.testing.assert_allclose(total.sums, whole.sums, rtol=1e-12)
    np.testing.assert_array_equal(total.histograms, whole.histograms)
    copy = Tally(1)
    copy.load_state(whole.state())
    np.testing.assert_array_equal(copy.sums, whole.sums)
    np.testing.assert_array_equal(copy.histograms, whole.histograms)


def test_cells_are_kept_apart_and_joined_on_request() -> None:
    tally = Tally(2)
    tally.add(scored_labels(np.array([0, 1, 1]), np.array([1.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0])))
    assert [tally.figures([cell])["n"] for cell in (0, 1)] == [1, 2]
    assert tally.figures([0, 1])["positives"] == 2
    assert tally.figures([0, 1])["auc"] == 0.5
