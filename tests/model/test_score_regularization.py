"""The term alone: its gradients, its scale, and what it does to a learner."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.delayed_labels import Float32Array
from model.hinet_config import HiNetConfig
from model.learner import Learner
from model.losses import LossConfig
from model.optim import OptimConfig
from model.score_regularization import (
    Form,
    MeanScores,
    ScoreRegularizationConfig,
    distance,
    regularization_loss,
    scale_of,
)
from model.step_loss import StepRows, step_loss
from model.teacher import Taught
from model.training_forward import TrainingForward
from tests.model.worlds import SCHEMA, columns, labels, tiny_config

FORMS: tuple[Form, ...] = ("ce", "prob_mse", "logit_mse")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight: -1.0 is not allowed; a number of at least 0"),
        ({"weight": float("inf")}, "weight: inf is not allowed"),
        ({"task_weights": {"click": float("nan")}}, "task_weights.click: nan is not allowed"),
        ({"teacher_refresh_ms": 0}, "teacher_refresh_ms: 0 is not allowed; at least 1"),
        ({"ema_half_life_steps": 0}, "ema_half_life_steps: 0 is not allowed; at least 1"),
        ({"max_versions": 0}, "max_versions: 0 is not allowed; at least 1"),
        ({"min_examples": -1}, "min_examples: -1 is not allowed; at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreRegularizationConfig(**settings)  # type: ignore[arg-type]


def test_a_weight_of_no_task_is_refused() -> None:
    config = ScoreRegularizationConfig(teacher="snapshot", task_weights={"like": 1.0})
    with pytest.raises(ValueError, match=r"task_weights: \['like'\] are not tasks; click, order"):
        Learner(SCHEMA, tiny_config(score_regularization=config), seed=0)


def plain_distance(form: str, z: float, teacher: float) -> float:
    def softplus(x: float) -> float:
        return max(x, 0.0) + float(np.log1p(np.exp(-abs(x))))

    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-teacher))
    if form == "ce":
        return float(q * softplus(-z) + (1 - q) * softplus(z))
    return float((p - q) ** 2) if form == "prob_mse" else (z - teacher) ** 2


@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_finite_differences(form: Form) -> None:
    rng, step = np.random.default_rng(0), 1e-5
    z = torch.tensor(rng.uniform(-5, 5, 200), dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor(rng.uniform(-5, 5, 200), dtype=torch.float64)
    values = distance(form, z, teacher)
    (gradient,) = torch.autograd.grad(values.sum(), z)
    for at, of, value, slope in zip(z.tolist(), teacher.tolist(), values.tolist(), gradient.tolist(), strict=True):
        assert value == pytest.approx(plain_distance(form, at, of), abs=1e-12)
        rise = plain_distance(form, at + step, of) - plain_distance(form, at - step, of)
        assert slope == pytest.approx(rise / (2 * step), abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_far_logits_stay_finite_and_agreement_does_not_pull(form: Form) -> None:
    far = torch.tensor([-30.0, 0.0, 30.0])
    z = far.repeat(3).requires_grad_()
    values = distance(form, z, far.repeat_interleave(3))
    (gradient,) = torch.autograd.grad(values.sum(), z)
    assert torch.isfinite(values).all() and torch.isfinite(gradient).all()
    (at_rest,) = torch.autograd.grad(distance(form, z, z.detach()).sum(), z)
    assert at_rest.abs().max() < 1e-7


def test_cross_entropy_is_training_on_a_soft_label() -> None:
    rng, weight = np.random.default_rng(1), 1.7
    z = torch.tensor(rng.normal(0, 2, 100), dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor(rng.normal(0, 2, 100), dtype=torch.float64)
    y = torch.tensor(rng.integers(0, 2, 100), dtype=torch.float64)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    (with_term,) = torch.autograd.grad(
        bce(z, y, reduction="sum") + weight * distance("ce", z, teacher).sum(), z, retain_graph=True
    )
    soft = (y + weight * teacher.sigmoid()) / (1 + weight)
    (on_soft,) = torch.autograd.grad((1 + weight) * bce(z, soft, reduction="sum"), z)
    assert torch.allclose(with_term, on_soft, atol=1e-12, rtol=0)


@pytest.mark.parametrize("p", [0.3, 0.1, 0.01])
@pytest.mark.parametrize("form", FORMS)
def test_scaled_forms_pull_alike_whatever_the_share_of_positives(form: Form, p: float) -> None:
    gap = 1e-3
    teacher = torch.tensor([np.log(p / (1 - p))], dtype=torch.float64)
    z = (teacher + gap).requires_grad_()
    (pull,) = torch.autograd.grad(distance(form, z, teacher).sum(), z)
    assert float(pull) / gap * float(scale_of(form, np.array(p))) == pytest.approx(p * (1 - p), rel=0.01)


def test_the_term_is_a_mean_over_rows_and_silent_cells_may_hold_anything() -> None:
    rng = np.random.default_rng(2)
    z, teacher = rng.normal(size=(7, 2)), rng.normal(size=(7, 2))
    is_held, factor = rng.random((7, 2)) < 0.6, rng.uniform(0, 3, (7, 2))
    teacher[~is_held], factor[~is_held] = np.nan, np.inf
    tensors = [torch.tensor(array, dtype=torch.float64) for array in (z, teacher)]
    held, factors = torch.tensor(is_held), torch.tensor(factor)
    student = tensors[0].requires_grad_()
    found = regularization_loss("ce", student, tensors[1], held, factors, num_rows=7)
    expected = [
        sum(factor[b, t] * plain_distance("ce", z[b, t], teacher[b, t]) for b in range(7) if is_held[b, t]) / 7
        for t in range(2)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert torch.isfinite(gradient).all() and (gradient[~held] == 0).all()


def test_mean_scores_are_cumulative_then_exponential() -> None:
    rng, half_life = np.random.default_rng(3), 40.0
    means = MeanScores(2, 1, half_life)
    mean, num = [0.5, 0.5], [0.0, 0.0]
    for _ in range(60):
        scenario, score, counts = rng.integers(0, 2, 5), rng.random((5, 1)), rng.random((5, 1)) < 0.7
        num_of = [[int(counts[scenario == i].sum())] for i in range(2)]
        sum_of = [[float(score[scenario == i][counts[scenario == i]].sum())] for i in range(2)]
        means.update(np.array(num_of, np.float64), np.array(sum_of))
        for i in range(2):
            own = score[(scenario == i) & counts[:, 0], 0]
            if len(own):
                early = num[i] < half_life
                eta = len(own) / (num[i] + len(own)) if early else 1 - 2 ** (-len(own) / half_life)
                mean[i] += eta * (own.mean() - mean[i])
                num[i] += len(own)
    assert means.mean_MT[:, 0].tolist() == pytest.approx(mean, abs=1e-12)


def test_the_term_is_weighted_as_the_labels_are() -> None:
    """With one row, L = omega lambda (BCE + weight * sampling * D); what a policy makes of the label does not count."""
    config = tiny_config(loss=LossConfig(task_weights={"order": 3.0}))
    learner = Learner(SCHEMA, config, seed=0)
    rng = np.random.default_rng(4)
    z = torch.tensor(rng.normal(size=(6, 2)), dtype=torch.float32)
    forward = TrainingForward(c_BC=torch.zeros(6, 1), logits_BT=z, own_BT=z, score_BT=z, shown_BT=z)
    batch = replace(labels(rng, 6), sampling_B=np.array([1, 2, 0.5, 0, 3, 30], np.float32))
    on, scenario = np.ones((6, 2), np.bool_), np.array([0, 0, 1, 1, 2, 2])
    teacher, held, factor = rng.normal(size=(6, 2)), rng.random((6, 2)) < 0.7, rng.uniform(0, 2, (6, 2))
    rows = StepRows(scenario_B=scenario, labels=batch, trained_BT=on, weighed_BT=on, num_rows=len(scenario))
    taught = Taught(torch.tensor(teacher, dtype=torch.float32), held, factor.astype(np.float32))
    without = step_loss(learner.trained, config, forward, rows).loss
    with_term = step_loss(learner.trained, config, forward, replace(rows, taught=taught)).loss
    share = learner.trained.shares.scenario_weights(10.0)
    expected = sum(
        (1.0, 3.0)[t]
        * share[scenario[b], t]
        * min(float(batch.sampling_B[b]), 10.0)  # type: ignore[index]
        * factor[b, t]
        * plain_distance("ce", float(z[b, t]), teacher[b, t])
        / 6
        for b in range(6)
        for t in range(2)
        if held[b, t]
    )
    assert float(with_term - without) == pytest.approx(expected, rel=1e-4)


def trained(config: ModelConfig, steps: int, take_at: int | None = None) -> Learner:
    learner, rng = Learner(SCHEMA, config, seed=0), np.random.default_rng(5)
    for step in range(steps):
        if step == take_at and learner.trained.teacher is not None:
            learner.trained.take_teacher(1, 1_000)
            learner.trained.promote_teacher(1, {})
        batch = learner.encode(columns(rng, 10, 60))
        learner.learn(batch, replace(labels(rng, 60), watermark_ms=1_000 + step))
    return learner


def test_no_weight_is_no_teacher_bit_for_bit() -> None:
    off = trained(tiny_config(), 12).trained.state()
    config = ScoreRegularizationConfig(teacher="snapshot", weight=0.0)
    zero = trained(tiny_config(score_regularization=config), 12, take_at=5).trained.state()
    assert off.keys() == zero.keys()
    assert all(torch.equal(off[name], zero[name]) for name in off)


def test_a_task_without_weight_is_not_held_though_another_is() -> None:
    """Both tasks' weights at 0 are no teacher; one at 0 beside a held one changes the run, but is never asked."""
    config = ScoreRegularizationConfig(teacher="snapshot", task_weights={"order": 0.0}, min_examples=0)
    learner = trained(tiny_config(score_regularization=config), 8, take_at=5)
    other = trained(tiny_config(score_regularization=replace(config, task_weights={})), 8, take_at=5)
    teacher, both = learner.trained.teacher, other.trained.teacher
    assert teacher is not None and both is not None and 0 < teacher.num_held < both.num_held


def test_a_huge_weight_keeps_the_teachers_order_though_labels_are_noise() -> None:
    config = ScoreRegularizationConfig(teacher="snapshot", weight=1e6, min_examples=0, known_ids=(), drift_guard=None)
    net = HiNetConfig(expert_hidden=32, expert_width=16, task_hidden=32, task_width=16)
    wide = tiny_config(hinet=net, score_regularization=config)
    learner, rng = Learner(SCHEMA, wide, seed=0), np.random.default_rng(6)
    for step in range(60):
        rows, own = columns(rng, 10, 60), labels(rng, 60)
        liked_B = np.array([int(item[1:]) % 3 == 0 for item in rows.item_id])
        own = replace(own, label_BT=np.stack([liked_B, ~liked_B], axis=1).astype(np.float32), watermark_ms=1_000 + step)
        learner.learn(learner.encode(rows), own)
    probe = learner.encode(columns(rng, 1, 40))
    before = learner.score(probe)

    def after_noise(weight: float) -> Float32Array:
        slow = replace(
            wide,
            optim=OptimConfig(dense_lr=1e-4, row_lr=5e-3),
            score_regularization=replace(config, weight=weight),
        )
        student, rng = Learner(SCHEMA, slow, seed=1), np.random.default_rng(7)
        student.trained.load_state(learner.trained.state(), learner.trained.state_meta())
        if student.trained.teacher is not None:
            student.trained.take_teacher(1, 1_000)
            student.trained.promote_teacher(1, {})
        for _ in range(40):
            student.learn(student.encode(columns(rng, 10, 60)), replace(labels(rng, 60), watermark_ms=2_000))
        return student.score(probe)

    held, free = after_noise(1e6), after_noise(0.0)
    for task in range(2):
        assert order_kept(before[:, task], held[:, task]) >= 0.999
        assert np.abs(free - before)[:, task].max() > 10 * np.abs(held - before)[:, task].max()


def order_kept(old: Float32Array, new: Float32Array) -> float:
    """Kendall's tau over the pairs that the old scores tell apart by more than Adam's last steps can."""
    pairs = [(i, k) for i in range(len(old)) for k in range(i) if abs(old[i] - old[k]) > 0.03]
    return float(np.mean([np.sign((old[i] - old[k]) * (new[i] - new[k])) for i, k in pairs]))
