"""Figures of online metrics: what is known of some partitions, added up by scenario and task."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from stream.online_metrics import CellMetrics, PartitionMetrics
from stream.settled_labels import Cell
from stream.version_cohorts import Cohort, auc_of_counts

COHORTS = ("current", "previous")
"""Names of the cohorts, the newest first."""


class CellFigures(NamedTuple):
    """One scenario and task, over the windows of the partitions; counts add up over workers, AUC does not."""

    cell: Cell
    num_labels: int
    num_positives: int
    score_sum: float
    """Positives there would be if scores were calibrated."""
    auc: float | None
    """None as long as there is only one class."""
    cohorts: dict[str, Cohort]
    """By name; each partition's newest ones together."""


def figures(partitions: Iterable[PartitionMetrics]) -> list[CellFigures]:
    """Returns the figures of every scenario and task that the partitions have met."""
    cells: dict[Cell, list[CellMetrics]] = {}
    for partition in partitions:
        for cell, metrics in list(partition.cells.items()):  # another thread may be adding one
            cells.setdefault(cell, []).append(metrics)
    return [_figures(cell, parts) for cell, parts in sorted(cells.items())]


def _figures(cell: Cell, parts: list[CellMetrics]) -> CellFigures:
    window = np.concatenate([part.window for part in parts])
    _, rank_N = np.unique(window["score"], return_inverse=True)
    is_positive_N = window["label"] == 1
    num_ranks = int(rank_N.max(initial=-1)) + 1
    positives = np.bincount(rank_N[is_positive_N], minlength=num_ranks)
    negatives = np.bincount(rank_N[~is_positive_N], minlength=num_ranks)
    cohorts: dict[str, Cohort] = {}
    for part in parts:
        for name, cohort in zip(COHORTS, part.cohorts.state, strict=False):
            cohorts[name] = _together(cohorts[name], cohort) if name in cohorts else cohort
    return CellFigures(
        cell,
        len(window),
        int(is_positive_N.sum()),
        float(window["score"].sum(dtype=float)),
        auc_of_counts(positives, negatives),
        cohorts,
    )


def _together(one: Cohort, other: Cohort) -> Cohort:
    return Cohort(
        min(one.first_version, other.first_version),
        max(one.last_version, other.last_version),
        one.tally + other.tally,
    )
