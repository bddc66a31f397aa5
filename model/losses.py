"""HiNet's loss: every scenario contributes its mean, whatever its share of the rows.

Letters: B rows, M scenarios, T tasks.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from model.gradient_weighting import MgdaConfig, PeLtrConfig
from model.hashing import Int64Array
from model.uncertainty_weighting import UncertaintyConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights of scenarios, tasks and examples in the loss."""

    scenario_weight: Literal["inverse_size", "uniform"] = "inverse_size"
    """`inverse_size`: each scenario counts the same (published); `uniform`: each row counts the same."""
    max_scenario_weight: float = 10.0
    """Upper bound of a scenario's weight, so that a rare one does not add more noise than signal; at least 1."""
    half_life_rows: float = 1e6
    """Rows after which a row counts half in the running shares of the scenarios; greater than 0."""
    max_example_weight: float = 10.0
    """Example weights above it are cut to it and counted; greater than 0."""
    aux_min_positives: int = 1_000
    """Settled positives that a task's auxiliary heads learn from before its label policy takes over; until then it is
    trained on settled labels, as under `wait`. For policies with such heads only (`docs/policies.md`); at least 1."""
    weighting: Literal["fixed", "uncertainty", "mgda", "pe_ltr"] = "fixed"
    """Where the tasks' weights come from: `fixed` in `task_weights`; learned by the noise of each (`uncertainty`); or
    the shortest mix of their gradients, free (`mgda`) or with a least weight each (`pe_ltr`). Its settings, where it
    has any, are in the section of its name (`docs/loss-weighting.md`)."""
    task_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each task's loss, at least 0; a task not named has 1. With `weighting: fixed` only."""
    uncertainty: UncertaintyConfig | None = None
    """Settings of `weighting: uncertainty`."""
    mgda: MgdaConfig | None = None
    """Settings of `weighting: mgda`."""
    pe_ltr: PeLtrConfig | None = None
    """Settings of `weighting: pe_ltr`."""

    def __post_init__(self) -> None:
        if self.max_scenario_weight < 1:
            raise ValueError(f"max_scenario_weight: {self.max_scenario_weight} is not allowed; at least 1")
        for name in ("half_life_rows", "max_example_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; greater than 0")
        if self.aux_min_positives < 1:
            raise ValueError(f"aux_min_positives: {self.aux_min_positives} is not allowed; at least 1")
        for task, weight in self.task_weights.items():
            if not weight >= 0:
                raise ValueError(f"task_weights.{task}: {weight} is not allowed; at least 0")
        if self.task_weights and self.weighting != "fixed":
            raise ValueError(f"task_weights: given with weighting: {self.weighting} is not allowed; with fixed only")
        for name in ("uncertainty", "mgda", "pe_ltr"):
            if getattr(self, name) is not None and self.weighting != name:
                raise ValueError(f"{name}: given with weighting: {self.weighting} is not allowed; with {name} only")


class BatchLoss(NamedTuple):
    """Loss of each task in one micro-batch, [T], and how many example weights were cut."""

    loss_T: Tensor
    num_capped: int


class ScenarioShares:
    """Running share q_MT of the rows that are of scenario i and have the mask of task j on.

    q <- q + eta (count_MT / B - q): a cumulative mean for the first half-life, exponential from then on
    (eta = 1 - 2^(-B / half_life_rows)).
    """

    def __init__(self, num_scenarios: int, num_tasks: int, half_life_rows: float) -> None:
        self._half_life_rows = half_life_rows
        self.share_MT = np.full((num_scenarios, num_tasks), 1.0 / num_scenarios)
        self.num_rows = 0

    def update(self, count_MT: Int64Array, num_rows: int) -> None:
        """Takes one batch of B = `num_rows`, at least 1, and its cells into account; call it after the step."""
        if self.num_rows < self._half_life_rows:
            eta = num_rows / (self.num_rows + num_rows)
        else:
            eta = 1.0 - 2.0 ** (-num_rows / self._half_life_rows)
        self.share_MT += eta * (count_MT / num_rows - self.share_MT)
        self.num_rows += num_rows

    def add_scenario(self, max_weight: float) -> None:
        """Makes room for one more scenario, at the smallest share that its weight tells apart."""
        num_scenarios, num_tasks = len(self.share_MT) + 1, self.share_MT.shape[1]
        self.share_MT = np.vstack([self.share_MT, np.full((1, num_tasks), 1.0 / (num_scenarios * max_weight))])

    def scenario_weights(self, max_weight: float) -> npt.NDArray[np.float64]:
        """Returns lambda_MT = min(max_weight, 1 / (M q_MT))."""
        weights_MT: npt.NDArray[np.float64] = 1.0 / np.maximum(self.share_MT * len(self.share_MT), 1.0 / max_weight)
        return weights_MT


def cells_of(scenario_B: Int64Array, mask_BT: npt.NDArray[np.bool_], num_scenarios: int) -> Int64Array:
    """Returns how many cells of each scenario and task have the mask on, [M, T]."""
    count_MT = np.zeros((num_scenarios, mask_BT.shape[1]), np.int64)
    np.add.at(count_MT, scenario_B, mask_BT)
    return count_MT


def with_negatives(
    has_negative_MT: npt.NDArray[np.bool_],
    scenario_B: npt.NDArray[np.int64],
    label_BT: npt.NDArray[np.float32],
    mask_BT: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Returns which (scenario, task) have had a negative once the cells of `mask_BT` are learned, [M, T]."""
    if has_negative_MT.all():
        return has_negative_MT
    has_negative_MT = has_negative_MT.copy()
    np.logical_or.at(has_negative_MT, scenario_B, mask_BT & (label_BT == 0))
    return has_negative_MT


def hold_back_positives(
    has_negative_MT: npt.NDArray[np.bool_],
    scenario_B: npt.NDArray[np.int64],
    label_BT: npt.NDArray[np.float32],
    mask_BT: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Returns the cells of `mask_BT` that may be learned, [B, T], with the negatives of this micro-batch known.

    A (scenario, task) learns no positives before its first negative. Under the label policy `eager` positives run ahead
    of negatives by a label window, so a stream starts with positives only, and a model that learns from those alone
    needs long to recover.
    """
    if has_negative_MT.all():
        return mask_BT
    trained_BT: npt.NDArray[np.bool_] = mask_BT & ((label_BT == 0) | has_negative_MT[scenario_B])
    return trained_BT


def multi_scenario_loss(
    logits_BT: Tensor,
    label_BT: Tensor,
    mask_BT: Tensor,
    weight_BT: Tensor,
    lambda_BT: Tensor,
    *,
    max_weight: float,
    num_rows: int,
) -> BatchLoss:
    """Returns each task's (1/B) sum of lambda * weight * BCE over the cells whose mask is on.

    L_j = (1/B) sum_b lambda_bj mask_bj weight_bj BCE(z_bj, y_bj)        the tasks' weights: `model.loss_weighting`

    With lambda from `ScenarioShares` the expectation of sum_j L_j is the published sum_i lambda_i sum_j sum_n BCE
    (HiNet, ICDE 2023, lambda_i = 1/|D_i|) divided by M, each (scenario, task) a mean over its own sample space. Masked
    cells are selected away, so they may hold NaN. Weights above `max_weight` are cut to it; never divided by their sum.
    B is `num_rows`, that of all ranks: their losses add up.
    """
    label_BT = torch.where(mask_BT, label_BT, 0.0)
    weight_BT = torch.where(mask_BT, weight_BT, 0.0)
    capped_BT = weight_BT > max_weight
    # A NaN weight stays NaN (the finite guard sees it): clamp passes NaN on.
    factor_BT = weight_BT.clamp(max=max_weight) * lambda_BT
    logits_BT = torch.where(mask_BT, logits_BT, 0.0)
    bce_BT = F.binary_cross_entropy_with_logits(logits_BT, label_BT, reduction="none")
    loss_T = (factor_BT * bce_BT).sum(dim=0) / num_rows
    return BatchLoss(loss_T, int(capped_BT.sum()))
