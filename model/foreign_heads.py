"""The released code's loss over rows of other scenarios (HiNet's `loss_rows: all`): an ablation.

Letters: B rows, M scenarios, T tasks.
"""

import torch
from torch import Tensor

from model.losses import multi_scenario_loss


def foreign_heads_loss(
    logits_BMT: Tensor,
    scenario_B: Tensor,
    mask_BT: Tensor,
    weight_BT: Tensor,
    lambda_BT: Tensor,
    *,
    max_weight: float,
    num_rows: int,
) -> Tensor:
    """Returns what the heads of scenarios that are not a row's own add to each task's loss, [T].

    To them every row is a negative: label 0, with the row's own mask, weight and lambda.
    """
    loss_T = logits_BMT.new_zeros(logits_BMT.shape[2])
    label_BT = torch.zeros_like(weight_BT)
    for m in range(logits_BMT.shape[1]):
        is_foreign_BT = mask_BT & (scenario_B != m)[:, None]
        loss_T = (
            loss_T
            + multi_scenario_loss(
                logits_BMT[:, m],
                label_BT,
                is_foreign_BT,
                weight_BT,
                lambda_BT,
                max_weight=max_weight,
                num_rows=num_rows,
            ).loss_T
        )
    return loss_T
