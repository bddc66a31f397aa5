"""Churn metrics against lists worked out by hand, and against plain loops that share nothing with them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.churn import (
    affected,
    calibration,
    ece,
    good_bad_churn,
    jaccard,
    kendall_tau_b,
    logit_rmse,
    mean_abs_drift,
    overlap,
    psi,
    ranks,
    rbo,
    rbo_mass,
    spd,
    top1_changed,
)

ALL5 = np.ones((1, 5), np.bool_)
ABCDE = np.array([[0, 1, 2, 3, 4]])
BACED = np.array([[1, 0, 2, 4, 3]])
"""Ranks of the items a to e in the lists a b c d e and b a c e d."""


def test_lists_worked_out_by_hand() -> None:
    # Overlaps at depths 1 to 5: 0, 2, 3, 3, 5; with p = 1/2 the weights are 1, 1/2, 1/4, 1/8, 1/16 over 31/16.
    expected = (0 + 1 / 2 + 1 / 4 + 1 / 8 * 3 / 4 + 1 / 16) / (31 / 16)
    assert rbo(ABCDE, BACED, ALL5, p=0.5, depth=5) == pytest.approx([expected])
    assert rbo(ABCDE, BACED, ALL5, p=0.5, depth=1) == pytest.approx([0.0])
    assert overlap(ABCDE, BACED, ALL5, 1) == pytest.approx([0.0])
    assert overlap(ABCDE, BACED, ALL5, 4) == pytest.approx([3 / 4])
    assert jaccard(ABCDE, BACED, ALL5, 4) == pytest.approx([3 / 5])
    assert top1_changed(ABCDE, BACED).tolist() == [True]
    assert affected(ABCDE, BACED, ALL5, 3).tolist() == [True]
    assert affected(ABCDE, np.array([[0, 1, 2, 4, 3]]), ALL5, 3).tolist() == [False]


def test_a_list_shorter_than_k_counts_as_long_as_it_is() -> None:
    is_item = np.array([[True, True, False, False, False]])
    a, b = ranks(np.array([[2.0, 1, 9, 9, 9]]), is_item), ranks(np.array([[1.0, 2, 9, 9, 9]]), is_item)
    assert (a[0, :2].tolist(), b[0, :2].tolist()) == ([0, 1], [1, 0])
    assert overlap(a, b, is_item, 10) == pytest.approx([1.0])
    assert jaccard(a, b, is_item, 10) == pytest.approx([1.0])
    assert rbo(a, b, is_item, p=0.5, depth=10) == pytest.approx([(0 + 0.5) / 1.5])
    assert affected(a, b, is_item, 10).tolist() == [True]


def test_ties_rank_by_item_id_and_a_nan_comes_last() -> None:
    is_item = np.array([[True, True, True, True, False]])
    assert ranks(np.array([[0.5, 0.5, math.nan, 0.5, 1.0]]), is_item).tolist() == [[0, 1, 3, 2, 4]]


def test_the_first_ten_places_hold_the_share_of_rbo_that_webber_gives() -> None:
    assert rbo_mass(0.9, 10) == pytest.approx(0.8556, abs=5e-5)


def test_kendall_with_ties_by_hand() -> None:
    # a: 3 2 2 1, b: 1 2 3 3. Pairs: 1 tie in each, 5 untied each; signs multiply to -1 for four of the six, 0 for two.
    a, b = np.array([[3.0, 2, 2, 1]]), np.array([[1.0, 2, 3, 3]])
    assert kendall_tau_b(a, b, np.ones((1, 4), np.bool_)) == pytest.approx([-4 / 5])
    assert math.isnan(kendall_tau_b(np.zeros((1, 4)), b, np.ones((1, 4), np.bool_))[0])


lists = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 1)), min_size=2, max_size=9)


@given(lists, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_padded_requests_agree_with_a_loop_over_each(items: list[tuple[int, int, int]], k: int) -> None:
    n = len(items)
    is_item = np.zeros((2, 12), np.bool_)
    is_item[:, :n] = True
    a, b, y = (np.full((2, 12), 7.0) for _ in range(3))
    for column, values in zip((a, b, y), zip(*items, strict=True), strict=True):
        column[:, :n] = values
    rank_a, rank_b = ranks(a, is_item), ranks(b, is_item)
    order_a = sorted(range(n), key=lambda i: (-items[i][0], i))
    order_b = sorted(range(n), key=lambda i: (-items[i][1], i))
    depth = min(k, n)
    shared = [len(set(order_a[:d]) & set(order_b[:d])) for d in range(1, n + 1)]
    weights = [0.9 ** (d - 1) for d in range(1, depth + 1)]
    wanted = sum(w * shared[d] / (d + 1) for d, w in enumerate(weights)) / sum(weights)
    assert rbo(rank_a, rank_b, is_item, depth=k) == pytest.approx([wanted, wanted])
    assert overlap(rank_a, rank_b, is_item, k) == pytest.approx([shared[depth - 1] / depth] * 2)
    assert affected(rank_a, rank_b, is_item, k).tolist() == [order_a[:k] != order_b[:k]] * 2
    good = bad = concordant = untied_a = untied_b = 0
    for i in range(n):
        for j in range(n):
            if items[i][2] > items[j][2]:
                was, now = order_a.index(i) < order_a.index(j), order_b.index(i) < order_b.index(j)
                good, bad = good + (now and not was), bad + (was and not now)
            if i < j:
                left, right = np.sign(items[i][0] - items[j][0]), np.sign(items[i][1] - items[j][1])
                concordant, untied_a, untied_b = concordant + left * right, untied_a + abs(left), untied_b + abs(right)
    turned = good_bad_churn(rank_a, rank_b, y, is_item)
    assert (turned.good_N.tolist(), turned.bad_N.tolist()) == ([good] * 2, [bad] * 2)
    if untied_a and untied_b:
        tau = concordant / math.sqrt(untied_a * untied_b)
        assert kendall_tau_b(a, b, is_item) == pytest.approx([tau, tau])


def test_equal_models_have_no_churn_and_random_orders_overlap_by_chance() -> None:
    rng = np.random.default_rng(1)
    score, other = rng.random((4000, 20)), rng.random((4000, 20))
    is_item = np.ones(score.shape, np.bool_)
    a, b = ranks(score, is_item), ranks(other, is_item)
    assert rbo(a, a, is_item) == pytest.approx(np.ones(4000))
    assert kendall_tau_b(score, score, is_item) == pytest.approx(np.ones(4000))
    assert not top1_changed(a, a).any()
    assert not affected(a, a, is_item, 20).any()
    assert overlap(a, b, is_item, 5).mean() == pytest.approx(5 / 20, abs=0.01)
    assert top1_changed(a, b).mean() == pytest.approx(19 / 20, abs=0.015)
    assert good_bad_churn(a, a, np.round(score), is_item).wlr == 1.0


def test_wins_and_losses_by_hand() -> None:
    # b has the label: it was below a and c, now only below c; e has it too and falls behind d.
    old, new = np.array([[0, 2, 1, 4, 3]]), np.array([[2, 1, 0, 3, 4]])
    turned = good_bad_churn(old, new, np.array([[0.0, 1, 0, 0, 1]]), ALL5)
    assert (turned.good_N.tolist(), turned.bad_N.tolist(), turned.wlr) == ([1], [1], 1.0)


def test_drift_by_hand() -> None:
    a, b = np.array([0.5, 0.2]), np.array([0.5, 0.6])
    assert mean_abs_drift(a, b) == pytest.approx(0.2)
    assert spd(a, b) == pytest.approx((0 + 2 * 0.4 / 0.8) / 2)
    assert logit_rmse(a, b) == pytest.approx(math.log(6) / math.sqrt(2))
    assert spd(np.zeros(2), np.zeros(2)) == 0.0


def test_psi_of_equal_halves_and_moved_scores_by_hand() -> None:
    a = np.arange(10) / 10
    assert psi(a, a) == 0.0
    assert psi(a, np.repeat(a, 7)) == pytest.approx(0.0)
    # Everything in A's first decile: its share goes .1 -> 1, the others' .1 -> the floor.
    wanted = 0.9 * math.log(10) + 9 * (1e-4 - 0.1) * math.log(1e-4 / 0.1)
    assert psi(a, np.zeros(10)) == pytest.approx(wanted)
    # A constant has a bin of its own, with all on either side outside it.
    assert psi(np.full(10, 0.3), np.full(10, 0.2)) == pytest.approx(2 * (1 - 1e-4) * math.log(1e4))
    assert psi(np.full(10, 0.3), np.full(10, 0.4)) == pytest.approx(2 * (1 - 1e-4) * math.log(1e4))


def test_calibration_by_hand() -> None:
    score, label = np.array([0.1, 0.2, 0.6, 0.7]), np.array([0, 1, 1, 0])
    assert calibration(score, label) == pytest.approx(0.8)
    assert ece(score, label, bins=2) == pytest.approx((abs(0.3 - 1) + abs(1.3 - 1)) / 4)
    assert math.isnan(calibration(score, np.zeros(4)))
