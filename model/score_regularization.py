"""Score regularization: a term of the loss that draws each score towards that of an older model, the teacher.

L = L_B + (1/B) sum_b sum_j omega_j lambda_ij t_bj weight_b lambda_j D(z_bj, z_T,bj)

with the data loss's own omega_j and lambda_ij (`model.losses`), so that one weight means the same pull in every
scenario; t is on where the teacher has something to say (`model.teacher`). Published (Pinterest, Closeup 2023): the
term, tuned by hand; not its weight nor its scale. What it costs and buys: `docs/stability.md`.

Letters: B rows, M scenarios, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from model.drift_guard import DriftGuardConfig

Form = Literal["ce", "prob_mse", "logit_mse"]
TeacherName = Literal["none", "snapshot", "served", "ema"]
KnownId = Literal["user_id", "item_id"]
Float64Array = npt.NDArray[np.float64]

MIN_MEAN_SCORE = 1e-4
"""Mean scores are taken as at least this, and at most one minus it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRegularizationConfig:
    """How strongly scores are held to those of an older model, and to which."""

    teacher: TeacherName = "none"
    """The older model: `snapshot`, a copy taken when a version went live, renewed every `teacher_refresh_ms`;
    `served`, the score logged with the impression; `ema`, as `snapshot` but for the network, which is a running mean;
    or `none`."""
    form: Form = "ce"
    """Distance of the scores: cross-entropy (`ce`), or squared, of probabilities (`prob_mse`, published) or of logits
    (`logit_mse`)."""
    scale: Literal["per_task", "none"] = "per_task"
    """`per_task`: a weight pulls as strongly as the same one of `ce`, whatever the task's share of positives; `none`:
    as published, which leaves rare tasks free. No difference with `ce`."""
    weight: float = 1.0
    """Weight of the term: labels count as (label + weight * teacher) / (1 + weight) does. Rankings change less and
    follow the world later, by weight times the teacher's mean age. At least 0."""
    task_weights: dict[str, float] = field(default_factory=dict)
    """The weight of single tasks, at least 0, in place of `weight`."""
    teacher_refresh_ms: int = 3_600_000
    """Event time after which a new copy becomes the teacher: the time over which rankings should be steady. The first
    one is taken as long after the first label. At least 1."""
    min_examples: int = 10
    """A row whose id had fewer examples when the copy was taken is not held to it; at least 0."""
    known_ids: tuple[KnownId, ...] = ("item_id",)
    """Fields whose ids the copy must know: a score of others would hold back what is new. A missing id is none."""
    ema_half_life_steps: int = 1_000
    """Steps after which a network counts half in the running mean of `teacher: ema`; at least 1."""
    max_versions: int = 10_000
    """With `teacher: served`, versions whose calibration is remembered; scores of older ones teach nothing; at least
    1."""
    drift_guard: DriftGuardConfig | None = field(default_factory=DriftGuardConfig)
    """When the served loss rises, the term rests for one `teacher_refresh_ms`, then comes back over a second one; null:
    never."""

    def __post_init__(self) -> None:
        for name in ("teacher_refresh_ms", "ema_half_life_steps", "max_versions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        if self.min_examples < 0:
            raise ValueError(f"min_examples: {self.min_examples} is not allowed; at least 0")
        for name, weight in (
            ("weight", self.weight),
            *((f"task_weights.{t}", w) for t, w in self.task_weights.items()),
        ):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name}: {weight} is not allowed; a number of at least 0")

    def weights(self, tasks: Sequence[str]) -> Float64Array:
        """Returns each task's weight, [T]; all 0 without a teacher.

        Raises:
            ValueError: a weight of a task that is none of `tasks`.
        """
        unknown = sorted(set(self.task_weights) - set(tasks))
        if unknown:
            raise ValueError(f"score_regularization.task_weights: {unknown} are not tasks; {', '.join(tasks)}")
        has_teacher = self.teacher != "none"
        return np.array([self.task_weights.get(task, self.weight) * has_teacher for task in tasks])


def distance(form: Form, z_BT: Tensor, teacher_BT: Tensor) -> Tensor:
    """Returns D of each pair of logits; the teacher has no gradient.

    ce         -q ln p - (1-q) ln(1-p)    gradient p - q
    prob_mse   (p - q)^2                  gradient 2 p (1-p) (p - q)
    logit_mse  (z - z_T)^2                gradient 2 (z - z_T)
    """
    teacher_BT = teacher_BT.detach()
    match form:
        case "ce":
            return F.binary_cross_entropy_with_logits(z_BT, teacher_BT.sigmoid(), reduction="none")
        case "prob_mse":
            return (z_BT.sigmoid() - teacher_BT.sigmoid()).square()
        case "logit_mse":
            return (z_BT - teacher_BT).square()


def scale_of(form: Form, mean_score: Float64Array) -> Float64Array:
    """Returns what a weight is multiplied by for the pull of `ce` around a mean score: p (1-p) per unit of logit.

    >>> scale_of("prob_mse", np.array([0.3, 0.1, 0.01])).round(1), scale_of("logit_mse", np.array([0.3])).round(3)
    (array([ 2.4,  5.6, 50.5]), array([0.105]))
    """
    p = np.clip(mean_score, MIN_MEAN_SCORE, 1 - MIN_MEAN_SCORE)
    match form:
        case "ce":
            return np.ones_like(p)
        case "prob_mse":
            return np.asarray(1 / (2 * p * (1 - p)))
        case "logit_mse":
            return np.asarray(p * (1 - p) / 2)


def regularization_loss(
    form: Form, z_BT: Tensor, teacher_BT: Tensor, is_held_BT: Tensor, factor_BT: Tensor, *, num_rows: int
) -> Tensor:
    """Returns each task's (1/B) sum of factor * D over the cells of `is_held_BT`, [T]; the others may hold anything.

    B is `num_rows`, that of all ranks.
    """
    z_BT = torch.where(is_held_BT, z_BT, 0.0)
    teacher_BT = torch.where(is_held_BT, teacher_BT, 0.0)
    factor_BT = torch.where(is_held_BT, factor_BT, 0.0)
    return (factor_BT * distance(form, z_BT, teacher_BT)).sum(dim=0) / num_rows


class MeanScores:
    """Running mean of the model's own scores per scenario and task, [M, T], by a half-life in rows of that cell.

    A cumulative mean for the first half-life, exponential from then on, as `model.losses.ScenarioShares`.
    """

    def __init__(self, num_scenarios: int, num_tasks: int, half_life_rows: float) -> None:
        self._half_life_rows = half_life_rows
        self.mean_MT = np.full((num_scenarios, num_tasks), 0.5)
        self.num_MT = np.zeros((num_scenarios, num_tasks))

    def update(self, count_MT: Float64Array, sum_MT: Float64Array) -> None:
        """Takes so many scores of each cell, with this sum, into account."""
        seen_MT = np.maximum(count_MT, 1.0)
        early_MT = seen_MT / (self.num_MT + seen_MT)
        eta_MT = np.where(self.num_MT < self._half_life_rows, early_MT, 1.0 - 2.0 ** (-seen_MT / self._half_life_rows))
        self.mean_MT += np.where(count_MT > 0, eta_MT * (sum_MT / seen_MT - self.mean_MT), 0.0)
        self.num_MT += count_MT

    def add_scenario(self, donor: int) -> None:
        """Makes room for one more scenario, which starts as `donor`."""
        self.mean_MT = np.vstack([self.mean_MT, self.mean_MT[donor]])
        self.num_MT = np.vstack([self.num_MT, np.zeros_like(self.num_MT[donor])])
