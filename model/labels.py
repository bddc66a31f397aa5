"""The labels of a micro-batch, as the learner takes them.

Letters: B rows, T tasks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.delayed_labels import DelayedLabels
from model.served_teacher import ServedScores


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelBatch:
    """Labels of B rows: [B, T] each, tasks in the schema's order."""

    label_BT: npt.NDArray[np.float32]
    """0 or 1; anything where the mask is off."""
    mask_BT: npt.NDArray[np.bool_]
    """On where the cell is trained."""
    weight_BT: npt.NDArray[np.float32]
    """Sampling weight times traffic ratio, at least 0."""
    first_BT: npt.NDArray[np.bool_]
    """On where it is the cell's first emission: rows with any count towards admission."""
    watermark_ms: int = 0
    """Event time that the labels have reached, by which embedding rows age; 0: not known."""
    sampling_B: npt.NDArray[np.float32] | None = None
    """The rows' sampling weight alone, at least 0, [B]; None: 1 each."""
    served: ServedScores | None = None
    """What was served with the impressions; for a teacher that is the served score. None: not known."""
    delayed: DelayedLabels | None = None
    """What the policies need whose labels are corrected later; None: all labels are final and weigh 1."""
    place_B: npt.NDArray[np.int64] | None = None
    """Place of each row in the micro-batch of all ranks, by which auxiliary heads learn in the order of one rank; None:
    the rows of rank 0 come first, then those of rank 1, ..."""

    def take(self, rows_B: npt.NDArray[np.int64]) -> "LabelBatch":
        """Returns some of the rows, in the given order."""
        return LabelBatch(
            label_BT=self.label_BT[rows_B],
            mask_BT=self.mask_BT[rows_B],
            weight_BT=self.weight_BT[rows_B],
            first_BT=self.first_BT[rows_B],
            watermark_ms=self.watermark_ms,
            sampling_B=None if self.sampling_B is None else self.sampling_B[rows_B],
            served=None if self.served is None else self.served.take(rows_B),
            delayed=None if self.delayed is None else self.delayed.take(rows_B),
            place_B=None if self.place_B is None else self.place_B[rows_B],
        )
