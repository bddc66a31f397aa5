"""Serving calibration: an affine map of the logit per scenario and task, fitted on labels that are complete.

z' = a z + b, a > 0 (Platt 1999, here online). The network keeps its own logit z, which is also what a teacher says
(`model.teacher`); rankers serve sigmoid(z'). Published: an uncalibrated teacher and a calibrated served model, both
updated together (Pinterest, Closeup follow-up, 2023).
"""

from dataclasses import dataclass
from typing import Literal

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
