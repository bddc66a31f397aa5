"""ESMM against probabilities multiplied in float64, and what its funnel promises."""

import math

import pytest
import torch
from torch import Tensor

from model.esmm import ESMM, ESMMConfig, logit_of_both
from model.network import NetworkShape
from tests.model.network_checks import (
    Parameters,
    assert_equals_reference,
    assert_gradcheck,
    assert_grows,
    assert_relabelling_changes_nothing,
    assert_rows_stand_alone,
    reached,
    rows,
    shaken,
    without_gradient,
)
from tests.model.networks import inputs, run

WIDTH = 5
TASKS = ("order", "like", "click", "cart")
FUNNELS = {"two steps": ("click", "order"), "three steps": ("click", "cart", "order")}


def shape(num_scenarios: int, tasks: tuple[str, ...] = TASKS) -> NetworkShape:
    return NetworkShape(blocks=("x",), block_width=WIDTH, num_scenarios=num_scenarios, tasks=tasks)


def tiny(funnel: tuple[str, ...] = FUNNELS["two steps"], num_scenarios: int = 3, tower: tuple[int, ...] = (4,)) -> ESMM:
    return shaken(ESMM(ESMMConfig(funnel=funnel, tower=tower), shape(num_scenarios), seed=0))


def reference(p: Parameters, x_BD: Tensor, scenario_B: list[int], config: ESMMConfig) -> Tensor:
    logits = []
    for x, i in zip(x_BD, scenario_B, strict=True):
        z = {}
        for j, task in enumerate(TASKS):
            u = x
            for layer in range(len(config.tower) + 1):
                u = torch.clamp(u, min=0) if layer else u
                u = p[f"towers.{i}.weights.{layer}"][j].T @ u + p[f"towers.{i}.biases.{layer}"][j, 0]
            z[task] = u[0]
        probability = torch.ones((), dtype=torch.float64)
        for task in config.funnel:
            probability = probability / (1 + torch.exp(-z[task]))
            z[task] = torch.log(probability / (1 - probability))
        logits.append(torch.stack([z[task] for task in TASKS]))
    return torch.stack(logits)


@pytest.mark.parametrize("name", FUNNELS)
@pytest.mark.parametrize("num_scenarios", [1, 2, 3])
@pytest.mark.parametrize("tower", [(), (4, 3)])
def test_logits_and_gradients_equal_the_reference(name: str, num_scenarios: int, tower: tuple[int, ...]) -> None:
    scenario_B, config = [b * 2 % 5 % num_scenarios for b in range(7)], ESMMConfig(funnel=FUNNELS[name], tower=tower)
    assert_equals_reference(
        tiny(FUNNELS[name], num_scenarios, tower),
        lambda p, x_BD: reference(p, x_BD, scenario_B, config),
        rows(7, WIDTH),
        lambda net, x_BD: run(net, x_BD, scenario_B),
    )


def test_gradcheck_of_input_and_parameters() -> None:
    net = tiny(tower=(2,), num_scenarios=2)
    assert_gradcheck(net, rows(3, WIDTH), lambda call, x_BD: call(inputs(x_BD, [0, 1, 3])))


def test_the_logit_equals_the_probability_form_in_value_and_gradient() -> None:
    a, b = (10 * rows(200, 1, seed=seed)[:, 0] for seed in (0, 1))
    # Near one, 1 - p loses the digits that the logarithm then shows: the other form can be trusted up to there only.
    near = (a < 3) | (b < 3)
    pairs = [(a[near].clone().requires_grad_(), b[near].clone().requires_grad_()) for _ in range(2)]
    ours = logit_of_both(*pairs[0])
    p = pairs[1][0].sigmoid() * pairs[1][1].sigmoid()
    expected = p.log() - torch.log1p(-p)
    for one in (ours, expected):
        one.sum().backward()
    assert torch.allclose(ours, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(*pairs, strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("a", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("b", [-60.0, 0.5, 60.0])
def test_the_logit_is_finite_and_right_for_large_logits_in_float32(a: float, b: float) -> None:
    x = torch.tensor([a, b], requires_grad=True)
    z = logit_of_both(x[0], x[1])
    z.backward()
    assert x.grad is not None and z.isfinite() and x.grad.isfinite().all()
    expected = -max(math.log(math.exp(-a) + math.exp(-b) + math.exp(-a - b)), -1e3)
    assert z.item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_a_step_reaches_its_tower_and_those_before() -> None:
    net = tiny(FUNNELS["three steps"])
    towers = net.towers[1].weights[0]
    for task, expected in (("click", {"click"}), ("cart", {"click", "cart"}), ("order", set(FUNNELS["three steps"]))):
        net.zero_grad()
        run(net, rows(6, WIDTH), [1] * 6)[:, TASKS.index(task)].sum().backward()
        assert {one for one, grad in zip(TASKS, towers.grad, strict=True) if grad.abs().sum() > 0} == expected
    assert reached(net, run(net, rows(6, WIDTH), [1] * 6).sum()) == {
        name for name, _ in net.named_parameters() if name.startswith("towers.1.")
    }
    assert without_gradient(net) == {name for name, _ in net.named_parameters() if not name.startswith("towers.1.")}


def test_a_step_is_never_more_likely_than_the_one_before() -> None:
    logits_BT = run(tiny(FUNNELS["three steps"]), 20 * rows(300, WIDTH), [0, 1, 2] * 100)
    click, cart, order = (logits_BT[:, TASKS.index(task)] for task in FUNNELS["three steps"])
    assert (click >= cart).all() and (cart >= order).all()


def test_rows_stand_alone_scenarios_are_names_and_a_new_one_starts_as_its_donor() -> None:
    net, scenario_B = tiny(), [2, 0, 0, 1, 2, 2, 0]
    assert_rows_stand_alone(net, rows(7, WIDTH), scenario_B)
    assert_relabelling_changes_nothing(net, tiny(), rows(7, WIDTH), scenario_B, [1, 2, 0])
    assert_grows(net, rows(40, WIDTH))


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 1, 0)])
def test_logits_start_near_the_priors_in_whatever_order_they_are_given(order: tuple[int, ...]) -> None:
    net = ESMM(ESMMConfig(), shape(2), seed=0)
    priors = {0: 0.002, 2: 0.05, 1: 0.3}
    for task in order:
        net.start_at(task, priors[task])
    p_T = run(net, 0.1 * rows(50, WIDTH).float(), [0, 1] * 25).sigmoid().mean(dim=0)
    assert p_T.tolist() == pytest.approx([0.002, 0.3, 0.05, 0.5], rel=0.3)


@pytest.mark.parametrize(("prior", "click"), [(0.01, 0.5), (0.64, 0.8)])
def test_a_step_without_a_prior_starts_where_the_next_ones_allows(prior: float, click: float) -> None:
    net = ESMM(ESMMConfig(), shape(1), seed=0)
    net.start_at(0, prior)
    p_T = run(net, 0.1 * rows(50, WIDTH).float(), [0] * 50).sigmoid().mean(dim=0)
    assert [p_T[0].item(), p_T[2].item()] == pytest.approx([prior, click], rel=0.4)


def test_priors_against_the_funnel_are_refused_in_one_line() -> None:
    net = ESMM(ESMMConfig(), shape(1), seed=0)
    net.start_at(0, 0.2)
    with pytest.raises(
        ValueError, match=r"^priors\.order: 0\.2 is not allowed; below that of click, 0\.1, which comes"
    ):
        net.start_at(2, 0.1)


def test_a_funnel_of_a_task_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="^esmm.funnel: 'order' is not allowed; tasks of this model: click, like$"):
        ESMM(ESMMConfig(), shape(1, ("click", "like")), seed=0)


@pytest.mark.parametrize("funnel", [(), ("click",), ("click", "order", "click")])
def test_a_funnel_has_two_different_steps(funnel: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="is not allowed; at least two different tasks"):
        ESMMConfig(funnel=funnel)


def test_the_default_size() -> None:
    net = ESMM(
        ESMMConfig(), NetworkShape(blocks=("x",), block_width=320, num_scenarios=3, tasks=("click", "order")), seed=None
    )
    assert sum(parameter.numel() for parameter in net.parameters()) == 691_206
