"""The figures of a churn report: an old model A and a new one B on the same requests, beside the seed floor.

Letters: N requests, K candidates (padded), T tasks, U users, D draws of the bootstrap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from freshrank.churn_requests import BoolArray, ChurnRequests, Float64Array
from freshrank.study_metrics import normalized_entropy
from model.churn import (
    affected,
    calibration,
    ece,
    good_bad_churn,
    jaccard,
    kendall_tau_b,
    logit_rmse,
    overlap,
    psi,
    ranks,
    rbo,
    rbo_mass,
    spd,
    top1_changed,
)

UTILITY = "utility"
"""Stands where a task stands: the ranking after the blender."""
NUM_DRAWS = 400
"""Of the bootstrap by user."""
Cell = dict[str, Any]
Report = dict[str, dict[str, Cell]]
"""`all` or scenario -> task or `UTILITY` -> figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnConfig:
    """What is looked at."""

    k: int = 10
    """Items that are shown; at least 1."""
    p: float = 0.9
    """Of RBO: how much the next place counts beside the one before; between 0 and 1."""
    depth: int = 10
    """Places that RBO looks at; at least 1."""

    def __post_init__(self) -> None:
        for name in ("k", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        if not 0 < self.p < 1:
            raise ValueError(f"p: {self.p} is not allowed; between 0 and 1")


def churn_report(
    requests: ChurnRequests,
    tasks: Sequence[str],
    utility_weights_NT: Float64Array,
    scores: Mapping[str, Float64Array],
    config: ChurnConfig,
) -> dict[str, Any]:
    """Returns the report. Figures per request have a 95 % interval by bootstrap over users.

    `scores` are [N, K, T] of `old`, `new`, and of `floor_old` and `floor_new`: two models that differ by chance alone.
    The weights are those of the utility, over the scale of the scores.

    Raises:
        ValueError: there is no floor; churn says nothing without what chance alone changes.
    """
    missing = {"old", "new", "floor_old", "floor_new"} - set(scores)
    if missing:
        raise ValueError(f"floor: {', '.join(sorted(missing))} missing; churn without its seed floor is not shown")
    pairs = {"churn": ("old", "new"), "floor": ("floor_old", "floor_new")}
    reports: dict[str, Any] = {
        what: _report(requests, tasks, utility_weights_NT, scores[old], scores[new], config)
        for what, (old, new) in pairs.items()
    }
    return {
        "tasks": list(tasks),
        "requests": {name: len(rows) for name, rows in _scenarios(requests).items()},
        "users": len(set(requests.users)),
        "k": config.k,
        "rbo": {"p": config.p, "depth": config.depth, "mass": round(rbo_mass(config.p, config.depth), 4)},
        **reports,
    }


def _report(
    requests: ChurnRequests,
    tasks: Sequence[str],
    utility_weights_NT: Float64Array,
    old_NKT: Float64Array,
    new_NKT: Float64Array,
    config: ChurnConfig,
) -> Report:
    found: Report = {}
    users_N = np.unique(requests.users, return_inverse=True)[1]
    for name, rows in _scenarios(requests).items():
        is_item_NK = requests.is_item_NK[rows]
        by_user = _Bootstrap(users_N[rows])
        cells: dict[str, Cell] = {}
        for t, task in enumerate(tasks):
            old_NK, new_NK = old_NKT[rows, :, t], new_NKT[rows, :, t]
            label_NK, is_labelled_NK = requests.label_NKT[rows, :, t], requests.is_labelled_NKT[rows, :, t]
            cells[task] = _ranking(old_NK, new_NK, is_item_NK, label_NK, is_labelled_NK, by_user, config)
            cells[task] |= _scores(old_NK, new_NK, is_item_NK, by_user)
            cells[task] |= _quality(old_NK, new_NK, is_item_NK, label_NK, is_labelled_NK, config.k)
        weights_N1T = utility_weights_NT[rows][:, None, :]
        # A better item by the labels: those of the tasks, valued as the utility values their scores.
        value_NK = (requests.label_NKT[rows] * weights_N1T).sum(2)
        is_valued_NK: BoolArray = np.asarray(requests.is_labelled_NKT[rows].all(2))
        old_NK, new_NK = ((score[rows] * weights_N1T).sum(2) for score in (old_NKT, new_NKT))
        cells[UTILITY] = _ranking(old_NK, new_NK, is_item_NK, value_NK, is_valued_NK, by_user, config)
        found[name] = cells
    return found


def _scenarios(requests: ChurnRequests) -> dict[str, npt.NDArray[np.int64]]:
    names = np.array(requests.scenarios)
    return {"all": np.arange(len(names))} | {name: np.flatnonzero(names == name) for name in dict.fromkeys(names)}


def _ranking(
    old_NK: Float64Array,
    new_NK: Float64Array,
    is_item_NK: BoolArray,
    label_NK: Float64Array,
    is_labelled_NK: BoolArray,
    by_user: "_Bootstrap",
    config: ChurnConfig,
) -> Cell:
    a_NK, b_NK = ranks(old_NK, is_item_NK), ranks(new_NK, is_item_NK)
    per_request = {
        "top1_changed": top1_changed(a_NK, b_NK),
        "affected": affected(a_NK, b_NK, is_item_NK, config.k),
        "rbo": rbo(a_NK, b_NK, is_item_NK, p=config.p, depth=config.depth),
        "kendall_tau_b": kendall_tau_b(old_NK, new_NK, is_item_NK),
        "overlap": overlap(a_NK, b_NK, is_item_NK, config.k),
        "jaccard": jaccard(a_NK, b_NK, is_item_NK, config.k),
    }
    cell: Cell = {name: by_user.mean(values) for name, values in per_request.items()}
    if not is_labelled_NK.any():
        return cell
    turned = good_bad_churn(a_NK, b_NK, label_NK, is_labelled_NK)
    return cell | {
        "good_pairs": by_user.mean(turned.good_N),
        "bad_pairs": by_user.mean(turned.bad_N),
        "wlr": turned.wlr if turned.bad_N.any() else None,
    }


def _scores(old_NK: Float64Array, new_NK: Float64Array, is_item_NK: BoolArray, by_user: "_Bootstrap") -> Cell:
    old_B, new_B = old_NK[is_item_NK], new_NK[is_item_NK]
    drift_N = (np.abs(old_NK - new_NK) * is_item_NK).sum(1) / is_item_NK.sum(1)
    return {
        "mean_abs_drift": by_user.mean(drift_N),
        "spd": spd(old_B, new_B),
        "logit_rmse": logit_rmse(old_B, new_B),
        "psi": psi(old_B, new_B),
    }


def _quality(
    old_NK: Float64Array,
    new_NK: Float64Array,
    is_item_NK: BoolArray,
    label_NK: Float64Array,
    is_labelled_NK: BoolArray,
    k: int,
) -> Cell:
    """Calibration of both, and NE on the requests whose shown items changed and on the others; None without labels."""
    is_affected_N = affected(ranks(old_NK, is_item_NK), ranks(new_NK, is_item_NK), is_item_NK, k)
    parts = {"": is_labelled_NK}
    parts["_affected"] = is_labelled_NK & is_affected_N[:, None]
    parts["_unaffected"] = is_labelled_NK & ~is_affected_N[:, None]
    cell: Cell = {}
    for model, score_NK in (("old", old_NK), ("new", new_NK)):
        for part, chosen_NK in parts.items():
            label_B, score_B = label_NK[chosen_NK], score_NK[chosen_NK]
            has_both = 0 < label_B.sum() < len(label_B)
            cell[f"ne_{model}{part}"] = normalized_entropy(label_B, score_B) if has_both else None
        label_B, score_B = label_NK[is_labelled_NK], score_NK[is_labelled_NK]
        cell[f"calibration_{model}"] = calibration(score_B, label_B) if label_B.any() else None
        cell[f"ece_{model}"] = ece(score_B, label_B) if len(label_B) else None
    return cell


class _Bootstrap:
    """Means over requests with intervals from draws of users; the same draws for every figure."""

    def __init__(self, user_N: npt.NDArray[np.int64]) -> None:
        self._user_N = np.unique(user_N, return_inverse=True)[1]
        num_users = int(self._user_N.max()) + 1
        rng = np.random.default_rng(0)
        self._times_DU = rng.multinomial(num_users, np.full(num_users, 1 / num_users), size=NUM_DRAWS)

    def mean(self, value_N: npt.NDArray[Any]) -> dict[str, Any]:
        """Returns `{mean, ci}` over the requests where the value is defined; both None without any."""
        value_N = np.asarray(value_N, np.float64)
        is_known_N = np.isfinite(value_N)
        if not is_known_N.any():
            return {"mean": None, "ci": None}
        num_users = self._times_DU.shape[1]
        sum_U, num_U = (
            np.bincount(self._user_N[is_known_N], weights=weights, minlength=num_users)
            for weights in (value_N[is_known_N], None)
        )
        mean = round(float(sum_U.sum() / num_U.sum()), 6)
        if num_users < 2:
            return {"mean": mean, "ci": None}
        num_D = self._times_DU @ num_U
        drawn_D = (self._times_DU @ sum_U)[num_D > 0] / num_D[num_D > 0]
        return {"mean": mean, "ci": [round(float(edge), 6) for edge in np.quantile(drawn_D, (0.025, 0.975))]}
