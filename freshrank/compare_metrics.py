"""Figures of `freshrank compare`: AUC, NE and GAUC per task and scenario, and what they are over seeds.

AUC is exact: equal scores count one half. GAUC is the mean of the AUC inside each user, weighted by the user's rows;
users without both labels have none and are left out (Zhu et al., KDD 2017).

Letters: N labels, B rows, T tasks, S seeds, G groups.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.metrics import Float64Array, Int64Array, cross_entropy, normalized_entropy

FIGURES = ("auc", "ne", "gauc")
Figures = dict[str, float | None]
"""By name of `FIGURES`; None where undefined."""
Report = dict[str, dict[str, Figures]]
"""Task -> `all` or scenario -> figures."""
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t, 97.5 %, for 1, 2, ... degrees of freedom."""


def figures(
    label_BT: npt.NDArray[np.float32],
    judged_BT: npt.NDArray[np.bool_],
    logit_BT: npt.NDArray[np.float32],
    scenario_B: Int64Array,
    user_B: Int64Array,
    *,
    tasks: Sequence[str],
    scenarios: Sequence[str],
) -> Report:
    """Returns the figures by task, then `all` or scenario, of the labels that are judged."""
    result: Report = {}
    for place, task in enumerate(tasks):
        rows = np.flatnonzero(judged_BT[:, place])
        label_N, logit_N = label_BT[rows, place].astype(np.float64), logit_BT[rows, place].astype(np.float64)
        user_N, scenario_N = user_B[rows], scenario_B[rows]
        result[task] = {"all": _figures(label_N, logit_N, user_N)}
        for index, scenario in enumerate(scenarios):
            inside = scenario_N == index
            result[task][scenario] = _figures(label_N[inside], logit_N[inside], user_N[inside])
    return result


def _figures(label_N: Float64Array, logit_N: Float64Array, user_N: Int64Array) -> Figures:
    auc_one, _ = grouped_auc(np.zeros(len(label_N), np.int64), label_N, logit_N)
    auc_G, rows_G = grouped_auc(user_N, label_N, logit_N)
    return {
        "auc": float(auc_one[0]) if len(auc_one) else None,
        "ne": normalized_entropy(float(cross_entropy(logit_N, label_N).sum()), float(label_N.sum()), len(label_N)),
        "gauc": float(auc_G @ rows_G / rows_G.sum()) if len(auc_G) else None,
    }


def grouped_auc(
    group_N: Int64Array, label_N: Float64Array, score_N: Float64Array
) -> tuple[Float64Array, npt.NDArray[np.float64]]:
    """Returns the AUC inside each group that has both labels, and how many entries the group has.

    >>> grouped_auc(np.array([7, 7, 7, 9]), np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.1, 0.8, 0.8, 0.3]))
    (array([0.75]), array([3.]))
    """
    order_N = np.lexsort((score_N, group_N))
    group_N, label_N, score_N = group_N[order_N], label_N[order_N], score_N[order_N]
    if not len(group_N):
        return np.empty(0), np.empty(0)
    is_new_group_N = np.concatenate([[True], group_N[1:] != group_N[:-1]])
    is_new_tie_N = is_new_group_N | np.concatenate([[True], score_N[1:] != score_N[:-1]])
    group_of_N, tie_of_N = np.cumsum(is_new_group_N) - 1, np.cumsum(is_new_tie_N) - 1
    negative_N = 1 - label_N
    negatives_before_N = np.cumsum(negative_N) - negative_N
    first_of_tie, first_of_group = np.flatnonzero(is_new_tie_N), np.flatnonzero(is_new_group_N)
    tied_N = np.bincount(tie_of_N, weights=negative_N)[tie_of_N]
    below_N = negatives_before_N[first_of_tie][tie_of_N] - negatives_before_N[first_of_group][group_of_N]
    rows_G = np.bincount(group_of_N).astype(np.float64)
    positives_G = np.bincount(group_of_N, weights=label_N)
    won_G = np.bincount(group_of_N, weights=label_N * (below_N + 0.5 * tied_N))
    pairs_G = positives_G * (rows_G - positives_G)
    has_pairs_G = pairs_G > 0
    return won_G[has_pairs_G] / pairs_G[has_pairs_G], rows_G[has_pairs_G]


def over_seeds(values_S: Sequence[float | None]) -> dict[str, float | None]:
    """Returns the mean and the half width of its 95 % interval (Student's t); None where there is none.

    >>> over_seeds([1.0, 1.2])
    {'mean': 1.1, 'ci': 1.2706}
    """
    known = [value for value in values_S if value is not None]
    if not known or len(known) < len(values_S):
        return {"mean": None, "ci": None}
    mean = round(float(np.mean(known)), 6)
    if len(known) == 1:
        return {"mean": mean, "ci": None}
    quantile = _T_975[min(len(known) - 1, len(_T_975)) - 1]
    return {"mean": mean, "ci": round(quantile * float(np.std(known, ddof=1)) / math.sqrt(len(known)), 6)}


def summary(by_seed: Sequence[Report]) -> dict[str, Any]:
    """Returns task -> scenario -> figure -> `{mean, ci}`."""
    return {
        task: {
            name: {figure: over_seeds([seed[task][name][figure] for seed in by_seed]) for figure in FIGURES}
            for name in cells
        }
        for task, cells in by_seed[0].items()
    }


def paired(one: Sequence[Report], other: Sequence[Report]) -> dict[str, Any]:
    """Returns the same of `one` minus `other`, seed by seed."""

    def difference(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a - b

    differences = [
        {
            task: {
                name: {figure: difference(cell[figure], theirs[task][name][figure]) for figure in FIGURES}
                for name, cell in cells.items()
            }
            for task, cells in ours.items()
        }
        for ours, theirs in zip(one, other, strict=True)
    ]
    return summary(differences)
