"""The figures of a comparison against definitions written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshrank.compare_metrics import figures, grouped_auc, over_seeds, paired, summary
from model.metrics import normalized_entropy

ROWS = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(-3, 3)), min_size=1, max_size=40)


@given(ROWS)
def test_auc_of_a_group_is_the_share_of_its_pairs_in_the_right_order(rows: list[tuple[int, bool, int]]) -> None:
    groups, labels, scores = zip(*rows, strict=True)
    expected, sizes = [], []
    for group in sorted(set(groups)):
        inside = [(label, score) for one, label, score in rows if one == group]
        pairs = [(p, n) for is_positive, p in inside if is_positive for is_negative, n in inside if not is_negative]
        if pairs:
            expected.append(sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs))
            sizes.append(len(inside))
    auc_G, rows_G = grouped_auc(np.array(groups), np.array(labels, np.float64), np.array(scores, np.float64))
    np.testing.assert_allclose(auc_G, expected)
    np.testing.assert_array_equal(rows_G, sizes)


def test_figures_count_what_is_judged_by_task_and_scenario_and_weigh_users_by_rows() -> None:
    label_BT = np.array([[1, 0], [0, 0], [1, 0], [0, 1], [1, 0]], np.float32)
    judged_BT = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 0]], np.bool_)
    logit_BT = np.array([[2, 0], [1, 0], [0, 0], [1, 0], [-9, 0]], np.float32)
    scenario_B, user_B = np.array([0, 0, 1, 1, 1]), np.array([5, 5, 5, 6, 6])
    found = figures(
        label_BT, judged_BT, logit_BT, scenario_B, user_B, tasks=["click", "order"], scenarios=("home", "search")
    )
    # User 5 has rows 0, 1, 2: one pair right, one wrong. User 6 is judged on one row: no pair.
    assert found["click"]["all"]["gauc"] == pytest.approx(0.5)
    assert found["click"]["all"]["auc"] == pytest.approx((1 + 1 + 0 + 0) / 4)
    assert found["click"]["home"]["auc"] == 1.0
    entropy = np.log1p(np.exp(-2)) + np.log1p(np.exp(1))
    assert found["click"]["home"]["ne"] == pytest.approx(normalized_entropy(entropy, 1, 2))
    assert found["order"]["all"] == {"auc": None, "ne": None, "gauc": None}


def test_intervals_over_seeds_are_students_and_pairs_are_subtracted_before_they_are_taken() -> None:
    assert over_seeds([0.5]) == {"mean": 0.5, "ci": None}
    assert over_seeds([0.5, None]) == {"mean": None, "ci": None}
    three = over_seeds([0.1, 0.2, 0.3])
    assert three["mean"] == pytest.approx(0.2)
    assert three["ci"] == pytest.approx(4.303 * 0.1 / np.sqrt(3), abs=1e-6)

    def report(value: float) -> dict[str, dict[str, dict[str, float | None]]]:
        return {"click": {"all": {"auc": value, "ne": value, "gauc": None}}}

    ours, theirs = [report(0.7), report(0.9)], [report(0.6), report(0.8)]
    assert summary(ours)["click"]["all"]["auc"]["mean"] == pytest.approx(0.8)
    difference = paired(ours, theirs)["click"]["all"]
    assert difference["auc"]["mean"] == pytest.approx(0.1)
    assert difference["auc"]["ci"] == pytest.approx(0.0, abs=1e-9)  # both moved together
    assert difference["gauc"] == {"mean": None, "ci": None}
