"""The loss of a step: from what the network made of the rows and their labels to the number that is run backward.

Letters: B rows, M scenarios, T tasks, C width of the representation, N some of the rows.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import ModelConfig
from model.delayed_labels import DelayedLabels, PolicyWeights, policy_weights
from model.foreign_heads import foreign_heads_loss
from model.hashing import Int64Array
from model.label_policy import Estimate
from model.labels import LabelBatch
from model.losses import LossConfig, ScenarioShares, multi_scenario_loss
from model.metrics import BoolArray
from model.precision import products_in
from model.ranks import Ranks
from model.score_regularization import regularization_loss
from model.stateless_weighting import weighted_sum
from model.teacher import Taught
from model.trained_model import TrainedModel
from model.training_forward import TrainingForward
from stream.schema import PolicyName


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """The rows of a step, sorted by scenario."""

    scenario_B: Int64Array
    labels: LabelBatch
    trained_BT: BoolArray
    """The cells that are learned: those of the mask whose scenario and task have had a negative."""
    weighed_BT: BoolArray
    """Those of them that weigh what their label policy says, where it says anything."""
    num_rows: int
    """Rows of the micro-batch, those of all ranks."""
    taught: Taught | None = None
    """What the teacher says of them; None: nothing."""


class StepLoss(NamedTuple):
    """The loss of a step, and what was done to its weights."""

    loss: Tensor
    num_capped: int
    """Example weights cut to `loss.max_example_weight`."""
    num_weighed: int
    """Cells whose weight their label policy computed."""
    num_guarded: int
    """Those of them with an estimate or weight outside its valid range, cut to it."""


class _OfAllRanks(torch.autograd.Function):
    """The sum of a tensor over the ranks, the same bits on each; backward each has the gradient of its own part."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        return ranks.sum_(own.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def step_loss(model: TrainedModel, config: ModelConfig, forward: TrainingForward, rows: StepRows) -> StepLoss:
    """Returns the loss of all ranks, not yet run backward; of the model only the tasks' weighting takes note of it.

    L = sum_j w_j (L_j + R_j) + the network's own: w from `model.loss_weighting`, L_j from `model.losses`, whose weights
    are the examples' times what their label policies say, R_j from `model.score_regularization`. Where the w are
    learned, they are so from the L_j alone.
    """
    net, labels, device = model.net, rows.labels, forward.logits_BT.device
    label_BT, weight_BT, num_weighed, num_guarded = labels.label_BT, labels.weight_BT, 0, 0
    if labels.delayed is not None:
        weighed = _policy_weights(model, labels.delayed, forward, rows)
        label_BT, weight_BT = weighed.target_BT, weight_BT * weighed.factor_BT
        num_weighed, num_guarded = weighed.num_weighed, weighed.num_guarded

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    lambda_BT = _cell_weights(config.loss, model.shares)[rows.scenario_B]
    cells = tensor(rows.trained_BT), tensor(weight_BT), tensor(lambda_BT)
    most, num_rows = config.loss.max_example_weight, rows.num_rows
    loss_T, num_capped = multi_scenario_loss(
        forward.logits_BT, tensor(label_BT), *cells, max_weight=most, num_rows=num_rows
    )
    if net.learns_foreign_heads and len(rows.scenario_B):
        with products_in(config.precision, device.type):
            all_BMT = net.all_head_logits(forward.c_BC).float()
        foreign_T = foreign_heads_loss(all_BMT, tensor(rows.scenario_B), *cells, max_weight=most, num_rows=num_rows)
        loss_T = loss_T + foreign_T
    # What weighs nothing has nothing to say; NaN counts, so that the finite check sees it.
    is_present_T = (rows.trained_BT & (weight_BT != 0)).any(axis=0)
    held_T = torch.zeros_like(loss_T)
    if rows.taught is not None:
        held_T = _held_T(config, forward.own_BT, rows, rows.taught, lambda_BT)
    if model.ranks.size > 1:
        parts = torch.stack([loss_T, held_T, tensor(is_present_T).to(loss_T.dtype)])
        loss_T, held_T, num_present_T = _OfAllRanks.apply(parts, model.ranks)  # type: ignore[no-untyped-call]
        is_present_T = num_present_T.detach().cpu().numpy() > 0
    loss = model.weighting.combine(loss_T, is_present_T, forward.c_BC, model.num_steps)
    if rows.taught is not None or (model.teacher is not None and model.ranks.size > 1):
        loss = loss + weighted_sum(held_T, model.weighting.weights())
    auxiliary_loss = net.auxiliary_loss()
    if auxiliary_loss is not None:
        loss = loss + auxiliary_loss
    return StepLoss(loss, num_capped, num_weighed, num_guarded)


def _held_T(
    config: ModelConfig, z_BT: Tensor, rows: StepRows, taught: Taught, lambda_BT: npt.NDArray[np.float32]
) -> Tensor:
    """Returns each task's R_j, [T]; the sampling weight counts, what a label policy says of a label does not."""
    factor_BT = lambda_BT * taught.factor_BT
    if rows.labels.sampling_B is not None:
        factor_BT = factor_BT * np.minimum(rows.labels.sampling_B, config.loss.max_example_weight)[:, None]
    is_held_BT, factor = (torch.from_numpy(array).to(z_BT.device) for array in (taught.is_held_BT, factor_BT))
    return regularization_loss(
        config.score_regularization.form, z_BT, taught.z_BT, is_held_BT, factor, num_rows=rows.num_rows
    )


def _policy_weights(
    model: TrainedModel, delayed: DelayedLabels, forward: TrainingForward, rows: StepRows
) -> PolicyWeights:
    """Returns what the policies make of the rows; no input and no output has a gradient."""
    c_BC = forward.c_BC.detach().float().cpu()

    def estimates(policy: PolicyName, task: int, some: Int64Array) -> dict[Estimate, Any]:
        c_NC, scenario_N = c_BC[torch.from_numpy(some)], torch.from_numpy(rows.scenario_B[some])
        return model.heads.estimates(policy, task, c_NC, scenario_N, delayed.take(some))

    probability_BT = forward.shown_BT.cpu().sigmoid().numpy()
    return policy_weights(delayed, rows.labels.label_BT, rows.weighed_BT, probability_BT, estimates)


def _cell_weights(config: LossConfig, shares: ScenarioShares) -> npt.NDArray[np.float32]:
    """Returns each (scenario, task)'s weight in the loss, [M, T]."""
    if config.scenario_weight == "uniform":
        return np.ones(shares.share_MT.shape, np.float32)
    return shares.scenario_weights(config.max_scenario_weight).astype(np.float32)
