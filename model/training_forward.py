"""The forward pass of a step: what is scored, and what is learned.

Letters: B rows, T tasks, C width of the representation.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.network import Network, NetworkInputs
from model.precision import Precision, products_in


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingForward:
    """What a network made of the rows of a step, in float32 but for `c_BC`."""

    c_BC: Tensor
    """The representation."""
    logits_BT: Tensor
    """What is learned: with dropout and batch statistics, if it has any, and with the effect of the position."""
    own_BT: Tensor
    """The same without the effect of the position: what is served, with its gradient."""
    score_BT: Tensor
    """What an evaluation forward gives, without gradient."""
    shown_BT: Tensor
    """The score with the effect of the position where the items were shown, which their labels came about with;
    without gradient."""


def training_forward(net: Network, inputs: NetworkInputs, precision: Precision) -> TrainingForward:
    """Runs a network on the rows of a step; `inputs` have a generator of noise.

    Without dropout and batch statistics one forward serves the score and the loss.
    """
    with products_in(precision, inputs.x.device_type):
        c_BC = net.representation(inputs)
        logits_BT = net.task_logits(c_BC, inputs.row_offsets).float()
        score_BT = logits_BT.detach()
        if not net.scores_as_it_learns:
            with torch.no_grad():
                score_BT = net(replace(inputs, noise=None)).float()
    bias_BT = net.position_bias(inputs, score_BT)
    if bias_BT is None:
        return TrainingForward(c_BC=c_BC, logits_BT=logits_BT, own_BT=logits_BT, score_BT=score_BT, shown_BT=score_BT)
    return TrainingForward(
        c_BC=c_BC,
        logits_BT=logits_BT + bias_BT,
        own_BT=logits_BT,
        score_BT=score_BT,
        shown_BT=score_BT + bias_BT.detach(),
    )


def no_forward(net: Network, device: torch.device) -> TrainingForward:
    """Returns what a network makes of no rows, without running it: no parameter gets a gradient by it."""
    nothing_BT = torch.empty(0, net.shape.num_tasks, device=device)
    return TrainingForward(
        c_BC=torch.empty(0, net.representation_width, device=device),
        logits_BT=nothing_BT,
        own_BT=nothing_BT,
        score_BT=nothing_BT,
        shown_BT=nothing_BT,
    )
