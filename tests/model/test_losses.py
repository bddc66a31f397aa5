"""The multi-scenario loss: against float64 by hand, masks, weights, convergence to the published form."""

import numpy as np
import pytest
import torch

from model.losses import LossConfig, ScenarioShares, cells_of, multi_scenario_loss

torch.set_num_threads(1)


def bce(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    p = 1 / (1 + np.exp(-z))
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def loss_of(z, y, mask, weight, lam, max_weight=10.0):
    tensors = [torch.tensor(np.asarray(a)) for a in (z, y, mask, weight, lam)]
    return multi_scenario_loss(*tensors, max_weight=max_weight, num_rows=len(z))


def update(shares: ScenarioShares, scenario_B: np.ndarray, mask: np.ndarray) -> None:
    shares.update(cells_of(scenario_B, mask, len(shares.share_MT)), len(scenario_B))


def test_value_and_cap_by_hand() -> None:
    rng = np.random.default_rng(0)
    z, y, mask = rng.normal(size=(6, 2)), (rng.random((6, 2)) < 0.5) * 1.0, rng.random((6, 2)) < 0.6
    weight, lam = rng.random((6, 2)) * 20, rng.random((6, 2))
    loss_T, num_capped = loss_of(z, y, mask, weight, lam)
    expected_T = np.where(mask, lam * np.minimum(weight, 10) * bce(z, y), 0).sum(axis=0) / 6
    assert loss_T.numpy() == pytest.approx(expected_T, rel=1e-12)
    assert num_capped == (weight[mask] > 10).sum() > 0


def test_masked_cells_may_hold_anything() -> None:
    z = torch.tensor([[0.3, 1.0], [0.1, -1.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    label = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    weight = torch.tensor([[1.0, torch.inf], [1.0, 1.0]])
    loss_T, num_capped = multi_scenario_loss(z, label, mask, weight, torch.ones(2, 2), max_weight=10.0, num_rows=2)
    loss_T.sum().backward()
    assert loss_T.isfinite().all() and num_capped == 0
    assert z.grad is not None and z.grad.isfinite().all() and z.grad[0, 1] == 0


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_a_bad_label_or_weight_under_the_mask_shows(bad: float) -> None:
    ones, on = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    z = torch.zeros(1, 1)
    assert not multi_scenario_loss(z, bad * ones, on, ones, ones, max_weight=10.0, num_rows=1).loss_T.isfinite()
    assert not multi_scenario_loss(z, ones, on, bad * ones, ones, max_weight=10.0, num_rows=1).loss_T.isfinite()


def test_doubling_all_rows_leaves_the_loss() -> None:
    rng = np.random.default_rng(1)
    z, y, mask, weight, lam = (rng.random((5, 2)) for _ in range(5))
    once = loss_of(z, y.round(), mask > 0.5, weight, lam).loss_T
    twice = loss_of(*(np.concatenate([a, a]) for a in (z, y.round(), mask > 0.5, weight, lam))).loss_T
    assert twice.numpy() == pytest.approx(once.numpy(), rel=1e-12)


def test_shares_are_a_cumulative_mean_then_exponential() -> None:
    shares = ScenarioShares(2, 1, half_life_rows=8)
    assert shares.share_MT.tolist() == [[0.5], [0.5]]
    mask = np.ones((4, 1), bool)
    update(shares, np.array([0, 0, 0, 1]), mask)
    update(shares, np.array([0, 1, 1, 1]), mask)
    assert shares.share_MT.tolist() == [[0.5], [0.5]]
    update(shares, np.zeros(8, np.int64), np.ones((8, 1), bool))  # one half-life: half the way to (1, 0)
    assert shares.share_MT == pytest.approx(np.array([[0.75], [0.25]]))


def test_shares_count_only_cells_with_the_mask_on() -> None:
    shares = ScenarioShares(2, 2, half_life_rows=100)
    update(shares, np.array([0, 1]), np.array([[True, False], [True, True]]))
    assert shares.share_MT.tolist() == [[0.5, 0.0], [0.5, 0.5]]
    assert shares.scenario_weights(10.0).tolist() == [[1.0, 10.0], [1.0, 1.0]]


def test_the_mean_over_a_stream_is_the_mean_of_the_scenarios_means() -> None:
    """Row shares .70/.25/.05: the mean of L_B comes within 3 standard errors of (1/M) sum_i mean_i."""
    rng, shares, losses = np.random.default_rng(2), ScenarioShares(3, 1, half_life_rows=1e6), []
    scenario_mean_logit = np.array([-1.0, 0.5, 2.0])
    for step in range(2_000):
        scenario_B = rng.choice(3, 64, p=[0.70, 0.25, 0.05])
        z = scenario_mean_logit[scenario_B][:, None] + rng.normal(size=(64, 1))
        y = (rng.random((64, 1)) < 0.5) * 1.0
        mask = np.ones((64, 1), bool)
        lam = shares.scenario_weights(10.0)[scenario_B]
        if step >= 200:
            losses.append(loss_of(z, y, mask, np.ones((64, 1)), lam).loss_T.item())
        update(shares, scenario_B, mask)
    draws = rng.normal(size=200_000)
    expected = np.mean([(bce(m + draws, 1.0) + bce(m + draws, 0.0)).mean() / 2 for m in scenario_mean_logit])
    standard_error = np.std(losses) / np.sqrt(len(losses))
    assert abs(np.mean(losses) - expected) < 3 * standard_error < 0.05


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_scenario_weight", 0.5), ("half_life_rows", 0), ("max_example_weight", -1), ("task_weights", {"click": -1})],
)
def test_bad_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}.*is not allowed; "):
        LossConfig(**{field: value})
