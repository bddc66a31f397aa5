"""Cohorts of model versions: which version a label counts for, and AUC from bins."""

import numpy as np
import pytest
from river.metrics import RollingROCAUC

from stream.version_cohorts import Tally, VersionCohorts, auc_of_counts, tally_of
from tests.stream.served_labels import served


def cohorts(*versions: int, least_labels: int) -> list[tuple[int, int, int]]:
    """Returns first and last version and labels of each cohort after one label of each version, one by one."""
    found = VersionCohorts(least_labels=least_labels)
    for version in versions:
        found.update(served([0.5], [0], version=version))
    return [(cohort.first_version, cohort.last_version, cohort.tally.num_labels) for cohort in found.state]


@pytest.mark.parametrize(
    ("versions", "least_labels", "expected"),
    [
        pytest.param([4, 4, 4], 1, [(4, 4, 3)], id="one version is one cohort, however long it serves"),
        pytest.param([4, 4, 5], 2, [(5, 5, 1), (4, 4, 2)], id="a newer one opens the next"),
        pytest.param([4, 5, 6, 7], 3, [(7, 7, 1), (4, 6, 3)], id="versions that come fast share a cohort"),
        pytest.param([4, 4, 5, 4, 4], 2, [(5, 5, 1), (4, 4, 4)], id="late labels go to their version's cohort"),
        pytest.param([4, 5, 6, 5, 4], 1, [(6, 6, 1), (5, 5, 2)], id="those of older ones are left out"),
        pytest.param([4, 5, 3], 9, [(4, 5, 2)], id="an older one at the start too"),
        pytest.param([4, 4, 6, 5], 2, [(6, 6, 1), (4, 4, 3)], id="one between the two counts for the older"),
    ],
)
def test_labels_count_for_the_cohort_of_their_version(versions, least_labels: int, expected) -> None:
    assert cohorts(*versions, least_labels=least_labels) == expected


def test_tallies_add_up() -> None:
    labels = served([0.1, 0.9, 0.5, 0.3], [0, 1, 1, 0])
    assert tally_of(labels[:1]) + tally_of(labels[1:]) == tally_of(labels)
    assert tally_of(labels) + Tally() == tally_of(labels)


@pytest.mark.parametrize("mean", [0.3, 0.02])
def test_auc_from_bins_is_close_to_the_exact_one(mean: float) -> None:
    rng = np.random.default_rng(3)
    scores = rng.beta(1.5, 1.5 / mean, 20_000).astype("f4")
    labels = rng.random(20_000) < scores
    exact = RollingROCAUC(window_size=20_000)
    for label, score in zip(labels.tolist(), scores.tolist(), strict=True):
        exact.update(label, score)
    assert tally_of(served(scores, labels)).auc() == pytest.approx(exact.get(), abs=1e-3)


def test_auc_of_ties_is_a_half_and_of_one_class_none() -> None:
    assert tally_of(served([0.5, 0.5, 0.5], [0, 1, 0])).auc() == 0.5
    assert tally_of(served([0.5], [1])).auc() is None
    assert Tally().auc() is None


def test_scores_of_nought_and_one_have_a_bin() -> None:
    assert tally_of(served([0.0, 1.0], [0, 1])).auc() == 1.0
    assert auc_of_counts(np.array([1, 0]), np.array([0, 1])) == 0.0
