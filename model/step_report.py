"""What the learner tells about a step.

Letters: B rows, T tasks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step saw and did."""

    logits_BT: npt.NDArray[np.float32]
    """Pre-step logits, bit-equal to `Learner.score` of the same batch just before; NaN in rows that did not reach the
    network, because nothing but auxiliary heads learns from them."""
    made: bool
    """Whether the network made a step."""
    loss: float
    grad_norm: float
    """Of the network, before clipping."""
    skipped: str | None
    """Which part was not finite, and so nothing was changed; None: the step was made."""
    dense_clipped: bool
    rows_clipped: int
    """Embedding rows whose gradient was clipped."""
    rows_touched: int
    """Distinct embedding rows of the batch."""
    rows_admitted: int
    weights_capped: int
    """Example weights above `loss.max_example_weight`."""
    positives_held_back: int
    """Positive cells that were not learned, because their scenario and task had no negative yet."""
    labels_weighed: int = 0
    """Cells whose weight their label policy computed."""
    labels_guarded: int = 0
    """Those of them with an estimate or weight outside its valid range, cut to it."""
    heads_skipped: int = 0
    """Tasks whose auxiliary heads left out steps that were not finite."""
    policies_begun: tuple[str, ...] = ()
    """Tasks whose auxiliary heads have seen enough with this batch, so that their policy takes over."""


def no_step(num_tasks: int) -> StepReport:
    """Returns the report of a batch without a row for the network."""
    return StepReport(
        logits_BT=np.empty((0, num_tasks), np.float32),
        made=False,
        loss=0.0,
        grad_norm=0.0,
        skipped=None,
        dense_clipped=False,
        rows_clipped=0,
        rows_touched=0,
        rows_admitted=0,
        weights_capped=0,
        positives_held_back=0,
    )
