"""Task weights: where they converge, what absence and noise do to them, their bounds, and resuming with them."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from model.architectures import Architecture
from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.gradient_weighting import MgdaConfig, PeLtrConfig
from model.learner import Learner
from model.loss_weighting import LossWeighting, loss_weighting
from model.losses import LossConfig
from model.uncertainty_weighting import UncertaintyConfig
from tests.model.worlds import SCHEMA, columns, labels, tiny_config

torch.set_num_threads(1)

METHODS = {
    "fixed": LossConfig(task_weights={"order": 0.5}),
    "uncertainty": LossConfig(weighting="uncertainty", uncertainty=UncertaintyConfig(lr=0.05)),
    "mgda": LossConfig(weighting="mgda", mgda=MgdaConfig(normalisation="loss+")),
    "pe_ltr": LossConfig(weighting="pe_ltr", pe_ltr=PeLtrConfig(bounds={"order": 0.2}, every_steps=3)),
}


def uncertainty(num_tasks: int, lr: float = 0.05) -> LossWeighting:
    config = LossConfig(weighting="uncertainty", uncertainty=UncertaintyConfig(lr=lr))
    return loss_weighting(config, [f"t{task}" for task in range(num_tasks)])


def on(*is_present: bool) -> npt.NDArray[np.bool_]:
    return np.array(is_present)


def losses(grads: Sequence[Sequence[float]], level: Sequence[float] | None = None) -> tuple[Tensor, Tensor]:
    """Returns losses with the given gradients on the representation, and that representation."""
    shared_BC = torch.zeros(1, len(grads[0]), dtype=torch.float64, requires_grad=True)
    level_T = torch.tensor(level or [1.0] * len(grads), dtype=torch.float64)
    return level_T + (torch.tensor(grads, dtype=torch.float64) @ shared_BC[0]), shared_BC


# Uncertainty.


def test_uncertainty_converges_to_half_the_inverse_loss() -> None:
    weighting = uncertainty(3)
    loss_T = torch.tensor([2.0, 0.3, 0.02])
    for step in range(600):
        weighting.combine(loss_T, on(True, True, True), loss_T, step)
        weighting.after_step()
    assert weighting.weights() == pytest.approx(1 / (2 * loss_T.numpy()), rel=1e-3)


def test_a_task_present_in_one_batch_of_ten_gets_the_same_weight() -> None:
    weighting, rng = uncertainty(2), np.random.default_rng(0)
    for step in range(4_000):
        is_present_T = on(True, step % 10 == 0)
        loss_T = torch.tensor([0.2, 0.2]) * torch.from_numpy(is_present_T * rng.uniform(0.9, 1.1, 2))
        weighting.combine(loss_T, is_present_T, loss_T, step)
        weighting.after_step()
    assert weighting.weights() == pytest.approx(np.full(2, 2.5), rel=0.05)


def test_a_noisier_task_weighs_less() -> None:
    rng = np.random.default_rng(1)
    weighting = uncertainty(2)
    flipped_T = np.array([0.05, 0.30])
    best_T = -(flipped_T * np.log(flipped_T) + (1 - flipped_T) * np.log1p(-flipped_T))
    for step in range(1_500):
        is_flipped_BT = rng.random((256, 2)) < flipped_T
        loss_T = torch.from_numpy(-np.where(is_flipped_BT, np.log(flipped_T), np.log1p(-flipped_T)).mean(axis=0))
        weighting.combine(loss_T, on(True, True), loss_T, step)
        weighting.after_step()
    assert weighting.weights()[0] > 2 * weighting.weights()[1]
    assert weighting.weights() == pytest.approx(1 / (2 * best_T), rel=0.1)


def test_the_step_of_s_is_adams_on_the_gradient_of_the_loss() -> None:
    weighting, s_T = uncertainty(2, lr=0.1), torch.zeros(2, dtype=torch.float64, requires_grad=True)
    adam, rng = torch.optim.Adam([s_T], lr=0.1), np.random.default_rng(2)
    for step in range(5):
        loss_T = torch.from_numpy(rng.uniform(0.1, 2, 2))
        expected = ((-s_T).exp() * loss_T + 0.5 * s_T).sum()
        assert weighting.combine(loss_T, on(True, True), loss_T, step).item() == pytest.approx(expected.item())
        adam.zero_grad()
        expected.backward()
        adam.step()
        weighting.after_step()
        assert weighting.weights() == pytest.approx(np.exp(-s_T.detach().numpy()), rel=1e-9)


# Gradients.


def mgda(grads: Sequence[Sequence[float]], level: list[float] | None = None, **settings: str) -> LossWeighting:
    config = LossConfig(weighting="mgda", mgda=MgdaConfig(**settings))  # type: ignore[arg-type]  # some are bad
    weighting = loss_weighting(config, [f"t{task}" for task in range(len(grads))])
    loss_T, shared_BC = losses(grads, level)
    total = weighting.combine(loss_T, np.ones(len(grads), bool), shared_BC, 0)
    total.backward()
    assert shared_BC.grad is not None
    assert shared_BC.grad[0].numpy() == pytest.approx(weighting.weights() @ np.array(grads), abs=1e-12)
    return weighting


def test_mgda_descends_for_every_task() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        grad_TC = rng.normal(size=(3, 4))
        direction_C = mgda(grad_TC.tolist()).weights() @ grad_TC
        # The shortest mix is never longer than its share of any gradient.
        assert (grad_TC @ direction_C >= direction_C @ direction_C - 1e-9).all()


@pytest.mark.parametrize(
    ("normalisation", "divisor"),
    [("none", [1.0, 1.0]), ("l2", [2.0, 0.5]), ("loss", [0.5, 0.1]), ("loss+", [1.0, 0.05])],
)
def test_mgda_divides_the_gradients_as_told(normalisation: str, divisor: list[float]) -> None:
    grads, level = np.array([[2.0, 0.0], [0.3, 0.4]]), [0.5, 0.1]
    one, two = grads / np.array(divisor)[:, None]
    expected = np.clip((two - one) @ two / ((one - two) ** 2).sum(), 0, 1)
    weights_T = mgda(grads.tolist(), level, normalisation=normalisation).weights()
    assert weights_T == pytest.approx([expected, 1 - expected], abs=1e-9)


def test_mgda_gives_an_absent_task_nothing_instead_of_everything() -> None:
    weighting = loss_weighting(LossConfig(weighting="mgda"), ["a", "b", "c"])
    loss_T, shared_BC = losses([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [1.0, 1.0, 0.0])
    weighting.combine(loss_T, on(True, True, False), shared_BC, 0)
    assert weighting.weights() == pytest.approx([0.5, 0.5, 0.0])


def pe_ltr(**settings: object) -> LossWeighting:
    config = LossConfig(weighting="pe_ltr", pe_ltr=PeLtrConfig(**settings))  # type: ignore[arg-type]  # as given
    return loss_weighting(config, ["click", "order", "hide"])


@pytest.mark.parametrize("relaxation", ["none", "published"])
def test_pe_ltr_keeps_its_bounds_on_the_way(relaxation: str) -> None:
    weighting, rng = (
        pe_ltr(bounds={"order": 0.5, "hide": 0.1}, every_steps=1, relaxation=relaxation),
        np.random.default_rng(4),
    )
    assert weighting.weights() == pytest.approx([0.25, 0.5, 0.25])
    for step in range(50):
        loss_T, shared_BC = losses(rng.normal(size=(3, 3)).tolist())
        weighting.combine(loss_T, rng.random(3) < 0.7, shared_BC, step)
        weighting.after_step()
        assert (weighting.weights() >= np.array([0.0, 0.5, 0.1]) - 1e-12).all()
        assert weighting.weights().sum() == pytest.approx(1.0)


def test_pe_ltr_solves_every_so_many_steps_and_moves_by_a_share() -> None:
    weighting = pe_ltr(every_steps=4, decay=0.75)
    loss_T, shared_BC = losses([[4.0, 0.0], [0.0, 4.0], [0.0, 1.0]])
    solved_T = np.array([1 / 17, 0.0, 16 / 17])
    expected_T, moves = np.full(3, 1 / 3), []
    for step in range(8):
        before_T = weighting.weights()
        weighting.combine(loss_T, on(True, True, True), shared_BC, step)
        assert np.array_equal(weighting.weights(), before_T), "nothing is kept before the step is made"
        weighting.after_step()
        moves.append(not np.array_equal(weighting.weights(), before_T))
        if step % 4 == 0:
            expected_T = 0.75 * expected_T + 0.25 * solved_T
        assert weighting.weights() == pytest.approx(expected_T)
    assert moves == [True, False, False, False] * 2


def test_pe_ltr_lets_an_absent_task_keep_its_weight() -> None:
    weighting = pe_ltr(every_steps=1, decay=0.0)
    loss_T, shared_BC = losses([[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    weighting.combine(loss_T, on(True, True, False), shared_BC, 0)
    weighting.after_step()
    assert weighting.weights() == pytest.approx([2 / 3 * 0.9, 2 / 3 * 0.1, 1 / 3])


def test_changed_bounds_move_the_weights_that_are_taken_up() -> None:
    before = pe_ltr(bounds={"click": 0.8})
    after = pe_ltr(bounds={"order": 0.6})
    after.load_state(before.state())
    assert after.weights()[1] == pytest.approx(0.6) and after.weights().sum() == pytest.approx(1.0)
    after.load_state({})
    assert after.weights()[1] == pytest.approx(0.6), "nothing to take up changes nothing"


@pytest.mark.parametrize("method", ["uncertainty", "mgda", "pe_ltr"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_and_reaches_no_state(method: str, bad: float) -> None:
    weighting = loss_weighting(LossConfig(weighting=method), ["a", "b"])  # type: ignore[arg-type]  # one of the names
    before = weighting.state()
    for grads, level in (([[1.0], [2.0]], [1.0, bad]), ([[1.0], [bad]], [1.0, 1.0])):
        loss_T, shared_BC = losses(grads, level)
        total = weighting.combine(loss_T, on(True, True), shared_BC, 0)
        total.backward()
        assert shared_BC.grad is not None
        assert not total.isfinite() or not shared_BC.grad.isfinite().all()
        assert np.isfinite(weighting.weights()).all()
        assert all(torch.equal(tensor, before[name]) for name, tensor in weighting.state().items())


# In the learner.


def learner(method: str) -> Learner:
    return Learner(SCHEMA, tiny_config(loss=METHODS[method]), seed=0)


def train(model: Learner, rng: np.random.Generator, num_steps: int) -> None:
    for _ in range(num_steps):
        batch_labels = labels(rng, 24)
        if rng.random() < 0.4:
            batch_labels.mask_BT[:, 1] = False
        assert model.learn(model.encode(columns(rng, 6, 24)), batch_labels).skipped is None


@pytest.mark.parametrize("method", METHODS)
def test_n_steps_a_checkpoint_and_n_steps_are_2n_steps(method: str) -> None:
    whole = learner(method)
    rng = np.random.default_rng(5)
    train(whole, rng, 14)
    rng = np.random.default_rng(5)
    first = learner(method)
    train(first, rng, 7)
    second = learner(method)
    second.trained.load_state(first.trained.state(), first.trained.state_meta())
    train(second, rng, 7)
    state, expected = second.trained.state(), whole.trained.state()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert any(name.startswith("weighting.") for name in state) == (method in ("uncertainty", "pe_ltr"))
    if method != "fixed":
        assert not np.allclose(second.trained.weighting.weights(), learner(method).trained.weighting.weights())


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_every_network_goes_on_from_a_checkpoint_with_every_method(architecture: Architecture) -> None:
    for method in ("uncertainty", "mgda", "pe_ltr"):
        config = ModelConfig(architecture=architecture, loss=METHODS[method], embedding=EmbeddingConfig(width=4))
        whole, first, second = (Learner(SCHEMA, config, seed=0) for _ in range(3))
        train(whole, np.random.default_rng(5), 6)
        rng = np.random.default_rng(5)
        train(first, rng, 3)
        second.trained.load_state(first.trained.state(), first.trained.state_meta())
        train(second, rng, 3)
        state, expected = second.trained.state(), whole.trained.state()
        assert all(torch.equal(state[name], expected[name]) for name in expected), method


def test_fixed_weights_give_the_loss_they_always_gave() -> None:
    model, rng = learner("fixed"), np.random.default_rng(6)
    batch, given = model.encode(columns(rng, 6, 24)), labels(rng, 24)
    report = model.learn(batch, given)
    z_BT, cost_BT = report.logits_BT.astype(np.float64), np.zeros((24, 2))
    seen: set[tuple[int, int]] = set()
    for b, j in np.argwhere(given.mask_BT & (given.label_BT == 0)).tolist():
        seen.add((int(batch.scenario_B[b]), j))
    for b, j in np.argwhere(given.mask_BT).tolist():
        if given.label_BT[b, j] == 0 or (int(batch.scenario_B[b]), j) in seen:
            p = 1 / (1 + np.exp(-z_BT[b, j]))
            log_loss = -np.log(p) if given.label_BT[b, j] else -np.log(1 - p)
            cost_BT[b, j] = [1.0, 0.5][j] * given.weight_BT[b, j] * log_loss
    assert report.loss == pytest.approx(cost_BT.sum() / 24, rel=1e-5)


@pytest.mark.parametrize("method", ["uncertainty", "mgda", "pe_ltr"])
def test_a_batch_that_is_not_finite_changes_nothing(method: str) -> None:
    model, rng = learner(method), np.random.default_rng(7)
    train(model, rng, 6)
    before = {name: tensor.clone() for name, tensor in model.trained.state().items()}
    bad = labels(rng, 24)
    bad.weight_BT[bad.mask_BT] = np.nan
    assert model.learn(model.encode(columns(rng, 6, 24)), bad).skipped == "loss"
    after = model.trained.state()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighting": "mgda", "task_weights": {"click": 2.0}}, "task_weights: given with weighting: mgda"),
        ({"weighting": "mgda", "pe_ltr": PeLtrConfig()}, "pe_ltr: given with weighting: mgda is not allowed"),
        ({"uncertainty": UncertaintyConfig()}, "uncertainty: given with weighting: fixed is not allowed"),
    ],
)
def test_settings_of_another_method_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        LossConfig(**settings)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bounds": {"click": -0.1}}, "bounds.click: -0.1 is not allowed; at least 0"),
        ({"bounds": {"click": 0.7, "order": 0.4}}, "bounds: a sum of 1.1 is not allowed; at most 1"),
        ({"every_steps": 0}, "every_steps: 0 is not allowed; at least 1"),
        ({"decay": 1.0}, "decay: 1.0 is not allowed; at least 0, below 1"),
    ],
)
def test_bad_settings_of_pe_ltr_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        PeLtrConfig(**settings)  # type: ignore[arg-type]  # that is the point


def test_weights_are_for_tasks_and_not_for_too_many() -> None:
    config = LossConfig(weighting="pe_ltr", pe_ltr=PeLtrConfig(bounds={"like": 0.1}))
    with pytest.raises(ValueError, match=r"^loss.pe_ltr.bounds: \['like'\] are not tasks; click, order$"):
        loss_weighting(config, ["click", "order"])
    with pytest.raises(ValueError, match="^loss.weighting: mgda is not allowed with 11 tasks; at most 10$"):
        loss_weighting(LossConfig(weighting="mgda"), [f"t{task}" for task in range(11)])
    with pytest.raises(ValueError, match="^lr: 0 is not allowed; greater than 0$"):
        UncertaintyConfig(lr=0)
