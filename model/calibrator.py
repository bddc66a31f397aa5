"""Serving calibration: an affine map of the logit per scenario and task, fitted on labels that are complete.

z' = a z + b, a > 0 (Platt 1999, here online). The network keeps its own logit z, which is also what a teacher says
(`model.teacher`); rankers serve sigmoid(z'). Published: an uncalibrated teacher and a calibrated served model, both
updated together (Pinterest, Closeup follow-up, 2023).

Letters: C cells (scenario * T + task), N labels, H histogram bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.metrics import LOGIT_RANGE, NUM_BINS, Arrays, Float64Array, Int64Array, Tally

Pairs = dict[str, dict[str, tuple[float, float]]]
"""Scenario -> task -> (a, b); what is not there is (1, 0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationConfig:
    """How served scores are calibrated."""

    form: Literal["none", "affine"] = "none"
    """`affine`: a slope and an offset per scenario and task; `none`: the network's own score is served."""
    half_life_labels: float = 50_000
    """Labels of a scenario and task after which one counts half in its fit; greater than 0."""
    prior_positives: float = 200.0
    """Positives (or negatives, if they are fewer) at which the fit counts as much as no calibration; greater than 0."""

    def __post_init__(self) -> None:
        for name in ("half_life_labels", "prior_positives"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; greater than 0")


MIN_SLOPE, MAX_SLOPE = 0.25, 4.0
_NEWTON_STEPS = 8
_CENTRES_H = (np.arange(NUM_BINS) + 0.5) * (2 * LOGIT_RANGE / NUM_BINS) - LOGIT_RANGE


def pairs_array(pairs: Pairs, scenarios: Sequence[str], tasks: Sequence[str]) -> Float64Array:
    """Returns (a, b) of each scenario and task, [M, T, 2]; what is not there is (1, 0).

    >>> pairs_array({"home": {"order": (0.9, 0.2)}}, ["home"], ["click", "order"]).tolist()
    [[[1.0, 0.0], [0.9, 0.2]]]
    """
    of = [[pairs.get(scenario, {}).get(task, (1.0, 0.0)) for task in tasks] for scenario in scenarios]
    return np.array(of, np.float64).reshape(len(scenarios), len(tasks), 2)


def fitted(histogram_2H: Float64Array, prior: float, start: tuple[float, float] = (1.0, 0.0)) -> tuple[float, float]:
    """Returns (a, b) for counts of negatives and positives by logit: penalised maximum likelihood by Newton's method.

    z' = m + c + a (z - m) with m the mean logit, so that slope and offset hardly depend on each other; the penalty
    prior / 2 * ((a - 1)^2 + c^2) is worth `prior` labels of the rarer class. a stays within `MIN_SLOPE`, `MAX_SLOPE`.
    """
    filled = np.flatnonzero(histogram_2H.sum(axis=0))
    z_H, (negatives_H, positives_H) = _CENTRES_H[filled], histogram_2H[:, filled]
    count_H = negatives_H + positives_H
    mean = float(count_H @ z_H / count_H.sum())
    design_H2 = np.stack([z_H - mean, np.ones(len(z_H))], axis=1)
    slope, offset = start
    theta = np.array([slope, slope * mean + offset - mean])
    for _ in range(_NEWTON_STEPS):
        p_H = 1 / (1 + np.exp(-(mean + design_H2 @ theta)))
        gradient = design_H2.T @ (count_H * p_H - positives_H) + prior * (theta - [1.0, 0.0])
        curvature = (design_H2 * (count_H * p_H * (1 - p_H))[:, None]).T @ design_H2 + prior * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        theta = np.clip(theta - np.clip(step, -1.0, 1.0), [MIN_SLOPE, -8.0], [MAX_SLOPE, 8.0])
        if np.abs(step).max() < 1e-9:
            break
    return float(theta[0]), float(mean + theta[1] - theta[0] * mean)


class Calibrator:
    """Fits the cells' pairs on complete labels, older ones counting less and less."""

    def __init__(self, num_cells: int, config: CalibrationConfig) -> None:
        self._config = config
        self._histogram_C2H = np.zeros((num_cells, 2, NUM_BINS))
        self.pairs_C2 = np.tile([1.0, 0.0], (num_cells, 1))
        """(a, b)."""

    def learn(self, tally: Tally) -> None:
        """Takes labels and the network's own scores of them, and fits the cells that have any."""
        for cell in np.flatnonzero(tally.sums[0]).tolist():
            self._histogram_C2H[cell] *= 2.0 ** (-tally.sums[0, cell] / self._config.half_life_labels)
            self._histogram_C2H[cell] += tally.histograms[cell]
            start = (float(self.pairs_C2[cell, 0]), float(self.pairs_C2[cell, 1]))
            self.pairs_C2[cell] = fitted(self._histogram_C2H[cell], self._config.prior_positives, start)

    def calibrated(self, cell_N: Int64Array, logit_N: Float64Array) -> Float64Array:
        """Returns the logits to be served, [N]."""
        slope_N, offset_N = self.pairs_C2[cell_N].T
        result_N: Float64Array = slope_N * logit_N + offset_N
        return result_N

    def pairs(self, scenarios: Sequence[str], tasks: Sequence[str]) -> Pairs:
        """Returns the pairs that are not (1, 0), by name."""
        found: Pairs = {}
        for cell, (slope, offset) in enumerate(self.pairs_C2.tolist()):
            if (slope, offset) != (1.0, 0.0):
                found.setdefault(scenarios[cell // len(tasks)], {})[tasks[cell % len(tasks)]] = (slope, offset)
        return found

    def add_cells(self, num_cells: int) -> None:
        """Makes room for more cells, after those there are."""
        self._histogram_C2H = np.concatenate([self._histogram_C2H, np.zeros((num_cells, 2, NUM_BINS))])
        self.pairs_C2 = np.concatenate([self.pairs_C2, np.tile([1.0, 0.0], (num_cells, 1))])

    def state(self) -> Arrays:
        """Returns all that is needed to go on exactly; the histograms as (index, count)."""
        flat = self._histogram_C2H.reshape(-1)
        filled = np.flatnonzero(flat)
        return {"pairs": self.pairs_C2.copy(), "bins": filled, "counts": flat[filled]}

    def load_state(self, state: Arrays) -> None:
        """Takes up a state of the same shape."""
        self.pairs_C2 = state["pairs"].copy()
        self._histogram_C2H[:] = 0.0
        self._histogram_C2H.reshape(-1)[state["bins"].astype(np.int64)] = state["counts"]
