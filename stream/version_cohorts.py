"""Figures by the model version that served: the newest versions against those before, so that a bad publish shows.

A cohort is a run of versions. The newest one takes up newer versions until it has `least_labels`; the next newer
version opens another, and what was `current` becomes `previous`. Where a version serves longer than that, a cohort is
one version; where several are published per second, enough of them that there is something to compare. Labels go to
the cohort that their version belongs to, however late they come; those of versions before both are left out.

Scores are counted in bins, 0.05 apart on the logit scale: a version may serve for days, bins are of fixed size, add up
over partitions, and give AUC to within the ties inside a bin.
"""

from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt

from stream.settled_labels import Labels

NUM_BINS = 512
_LOGIT_END = 12.8
Counts = npt.NDArray[np.int64]


class Tally(msgspec.Struct, frozen=True):
    """Labels counted: how many, what they and their scores add up to, and how the scores are spread. Adds up."""

    num_labels: int = 0
    num_positives: int = 0
    score_sum: float = 0.0
    positive_bins: bytes = b""
    """Positives by bin of the score, int64, little endian; empty: none."""
    negative_bins: bytes = b""

    def __post_init__(self) -> None:
        for counts in (self.positive_bins, self.negative_bins):
            if len(counts) not in (0, 8 * NUM_BINS):
                raise ValueError(f"bins: {len(counts)} bytes are not allowed; none or {8 * NUM_BINS}")

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.num_labels + other.num_labels,
            self.num_positives + other.num_positives,
            self.score_sum + other.score_sum,
            (_bins(self.positive_bins) + _bins(other.positive_bins)).tobytes(),
            (_bins(self.negative_bins) + _bins(other.negative_bins)).tobytes(),
        )

    def auc(self) -> float | None:
        """Returns the AUC of the scores; None as long as there is only one class."""
        return auc_of_counts(_bins(self.positive_bins), _bins(self.negative_bins))


class Cohort(msgspec.Struct, frozen=True):
    """The labels of the versions from `first_version` to `last_version`."""

    first_version: int
    last_version: int
    tally: Tally


class VersionCohorts:
    """The two newest cohorts of one cell."""

    def __init__(self, *, least_labels: int, state: Iterable[Cohort] = ()) -> None:
        self._least_labels = least_labels
        self.state: tuple[Cohort, ...] = tuple(state)
        """The current cohort, then the previous one, as far as there are any."""

    def update(self, labels: Labels) -> None:
        """Takes up labels, those of older versions first."""
        for version in np.unique(labels["version"]).tolist():
            self._take(version, tally_of(labels[labels["version"] == version]))

    def _take(self, version: int, tally: Tally) -> None:
        if not self.state:
            self.state = (Cohort(version, version, tally),)
            return
        current, *older = self.state
        if version > current.last_version and current.tally.num_labels >= self._least_labels:
            self.state = (Cohort(version, version, tally), current)
        elif version >= current.first_version:
            last_version = max(version, current.last_version)
            self.state = (Cohort(current.first_version, last_version, current.tally + tally), *older)
        elif older and version >= older[0].first_version:
            previous = older[0]
            self.state = (current, Cohort(previous.first_version, previous.last_version, previous.tally + tally))


def tally_of(labels: Labels) -> Tally:
    """Returns the labels counted."""
    score_N = labels["score"].astype(float)
    with np.errstate(divide="ignore"):
        logit_N = np.log(score_N) - np.log1p(-score_N)
    place_N = (np.clip(logit_N, -_LOGIT_END, _LOGIT_END) + _LOGIT_END) * (NUM_BINS / (2 * _LOGIT_END))
    bin_N = np.minimum(place_N.astype(np.int64), NUM_BINS - 1)
    is_positive_N = labels["label"] == 1
    return Tally(
        len(labels),
        int(is_positive_N.sum()),
        float(score_N.sum()),
        np.bincount(bin_N[is_positive_N], minlength=NUM_BINS).astype("<i8").tobytes(),
        np.bincount(bin_N[~is_positive_N], minlength=NUM_BINS).astype("<i8").tobytes(),
    )


def auc_of_counts(positives: Counts, negatives: Counts) -> float | None:
    """Returns the AUC of counts by ascending score, ties counting half; None as long as there is only one class.

    >>> auc_of_counts(np.array([0, 1, 1]), np.array([1, 1, 0]))
    0.875
    """
    num_pairs = float(positives.sum()) * float(negatives.sum())
    if num_pairs == 0:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / num_pairs)


def _bins(counts: bytes) -> Counts:
    return np.frombuffer(counts, "<i8") if counts else np.zeros(NUM_BINS, np.int64)
