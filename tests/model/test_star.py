"""STAR against a row-at-a-time float64 reference, and what its statistics may and may not do."""

import copy

import pytest
import torch
from torch import Tensor

from model.inputs import RowInputs
from model.network import Network, NetworkInputs
from model.partitioned_norm import RunningStatistics
from model.star import STAR, STARConfig
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
from tests.model.networks import inputs, offsets, run, shape

WIDTH = 5
CONFIG = STARConfig(layers=(4, 3), auxiliary_hidden=3, scenario_embedding=2, pn_min_rows=3)
OF_DOMAINS = ("norm.scenarios", "factors", "embeddings")
SCENARIO_B = [0, 0, 0, 0, 1, 1, 2, 2, 2]


def tiny(num_scenarios: int = 3, config: STARConfig = CONFIG) -> STAR:
    net = shaken(STAR(config, shape(num_scenarios, 2, width=WIDTH), seed=0))
    generator = torch.Generator().manual_seed(2)
    for statistics in net.norm.statistics:
        assert isinstance(statistics, RunningStatistics)
        statistics.mean += torch.rand(WIDTH, generator=generator, dtype=torch.float64)
        statistics.var += torch.rand(WIDTH, generator=generator, dtype=torch.float64)
    return net


def train(net: Network, x_BD: Tensor, scenario_B: list[int]) -> Tensor:
    """Returns the logits of a training forward, rows sorted by scenario."""
    row_offsets = offsets(scenario_B, net.num_scenarios)
    return net(NetworkInputs(x=RowInputs(x_BD), row_offsets=row_offsets, noise=torch.Generator()))


def reference(p: Parameters, x_BD: Tensor, scenario_B: list[int], config: STARConfig, *, learns: bool) -> Tensor:
    logits = []
    for x, i in zip(x_BD, scenario_B, strict=True):
        own = [other for other, j in zip(x_BD, scenario_B, strict=True) if j == i]
        mean, var = p[f"norm.statistics.{i}.mean"], p[f"norm.statistics.{i}.var"]
        if learns and len(own) >= config.pn_min_rows:
            mean = sum(own, torch.zeros(WIDTH)) / len(own)
            var = sum(((other - mean) ** 2 for other in own), torch.zeros(WIDTH)) / len(own)
        gamma = p["norm.shared.gamma"] * p[f"norm.scenarios.{i}.gamma"]
        u = gamma * (x - mean) / torch.sqrt(var + 1e-5) + p["norm.shared.beta"] + p[f"norm.scenarios.{i}.beta"]
        for layer in range(len(config.layers) + 1):
            u = torch.clamp(u, min=0) if layer else u
            weight = p[f"star.weights.{layer}"] * p[f"factors.{i}.weights.{layer}"]
            u = weight @ u + p[f"star.biases.{layer}"] + p[f"factors.{i}.biases.{layer}"]
        known = torch.cat([x, p[f"embeddings.{i}.row"]])
        hidden = torch.clamp(p["auxiliary.weights.0"] @ known + p["auxiliary.biases.0"], min=0)
        logits.append(u + p["auxiliary.weights.1"] @ hidden + p["auxiliary.biases.1"])
    return torch.stack(logits)


@pytest.mark.parametrize("num_scenarios", [1, 2, 3])
@pytest.mark.parametrize("layers", [(4, 3), (3,)])
def test_logits_and_gradients_equal_the_reference(num_scenarios: int, layers: tuple[int, ...]) -> None:
    config = STARConfig(layers=layers, auxiliary_hidden=3, scenario_embedding=2)
    scenario_B = [b * 2 % 5 % num_scenarios for b in range(7)]
    assert_equals_reference(
        tiny(num_scenarios, config),
        lambda p, x_BD: reference(p, x_BD, scenario_B, config, learns=False),
        rows(7, WIDTH),
        lambda net, x_BD: run(net, x_BD, scenario_B),
    )


def test_a_training_forward_normalises_by_the_rows_of_each_domain_that_has_enough() -> None:
    assert_equals_reference(
        tiny(),
        lambda p, x_BD: reference(p, x_BD, SCENARIO_B, CONFIG, learns=True),
        rows(9, WIDTH),
        lambda net, x_BD: train(net, x_BD, SCENARIO_B),
    )


@pytest.mark.parametrize("noise", [None, torch.Generator()])
def test_gradcheck_of_input_and_parameters(noise: torch.Generator | None) -> None:
    net = tiny(2, STARConfig(layers=(2,), auxiliary_hidden=2, scenario_embedding=1, pn_min_rows=3))
    row_offsets = [0, 3, 4]
    assert_gradcheck(
        net,
        rows(4, WIDTH),
        lambda call, x_BD: call(NetworkInputs(x=RowInputs(x_BD), row_offsets=row_offsets, noise=noise)),
    )


def test_a_loss_on_one_domain_reaches_what_is_shared_and_its_own_and_nothing_foreign() -> None:
    net, x_BD = tiny(), rows(6, WIDTH)
    names = [name for name, _ in net.named_parameters()]

    def of(scenario: int) -> set[str]:
        return {name for name in names for module in OF_DOMAINS if name.startswith(f"{module}.{scenario}.")}

    one_domain = run(net, x_BD, [0, 1, 2, 0, 1, 2])[[0, 3]].square().sum()
    assert reached(net, one_domain) == set(names) - of(1) - of(2)
    assert reached(net, run(net, x_BD[:4], [0, 2, 2, 0]).sum()) == set(names) - of(1)
    assert without_gradient(net) == of(1) != set()


def test_a_loss_on_one_task_reaches_no_other_tasks_output() -> None:
    net = tiny()
    run(net, rows(6, WIDTH), [0, 1, 2, 0, 1, 2])[:, 0].sum().backward()
    for parameter in (net.star.weights[-1], net.star.biases[-1], net.auxiliary.weights[-1]):
        assert parameter.grad is not None
        assert parameter.grad[0].abs().sum() > 0 and parameter.grad[1].abs().sum() == 0


def test_it_starts_as_one_shared_network() -> None:
    net, x_BD = STAR(CONFIG, shape(3, 2, width=WIDTH), seed=0), rows(4, WIDTH).float()
    with torch.no_grad():
        net.auxiliary.weights[-1].zero_()
    u_BD = x_BD / (1 + 1e-5) ** 0.5
    for layer in range(3):
        u_BD = torch.nn.functional.linear(
            u_BD.relu() if layer else u_BD, net.star.weights[layer], net.star.biases[layer]
        )
    for scenario in range(3):
        logits_BT = run(net, x_BD, [scenario] * 4) - net.auxiliary.biases[-1]
        assert torch.allclose(logits_BT, u_BD, rtol=0, atol=1e-6)


def test_an_evaluation_uses_the_statistics_of_the_rows_own_domain() -> None:
    net, x_BD = tiny(), rows(4, WIDTH)
    before = run(net, x_BD, [0, 1, 0, 1])
    net.norm.statistics[1].mean += 1.0
    after = run(net, x_BD, [0, 1, 0, 1])
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and not torch.equal(after[[1, 3]], before[[1, 3]])


def test_only_a_step_that_was_made_moves_statistics_and_only_once() -> None:
    net, x_BD = tiny(), rows(9, WIDTH)
    before = copy.deepcopy(net.state_dict())

    def moved() -> set[str]:
        return {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}

    run(net, x_BD, SCENARIO_B)
    net.after_step()
    train(net, x_BD, SCENARIO_B)
    assert moved() == set()
    run(net, x_BD * 2, SCENARIO_B)
    net.after_step()
    # Domain 1 has fewer rows than it takes.
    assert moved() == {f"norm.statistics.{i}.{one}" for i in (0, 2) for one in ("mean", "var", "num_updates")}
    assert torch.allclose(net.norm.statistics[0].mean, x_BD[:4].mean(dim=0), rtol=0, atol=1e-12)
    assert torch.allclose(net.norm.statistics[0].var, x_BD[:4].var(dim=0), rtol=0, atol=1e-12)
    before = copy.deepcopy(net.state_dict())
    net.after_step()
    assert moved() == set()


def test_statistics_are_a_plain_mean_at_first_and_a_moving_one_later() -> None:
    statistics, values = RunningStatistics(1), [float(n * n) for n in range(1, 8)]
    seen = []
    for value in values:
        statistics.update(torch.tensor([value]), torch.tensor([2 * value]), momentum=0.25)
        seen.append(statistics.mean.item())
        assert statistics.var.item() == pytest.approx(2 * statistics.mean.item())
    assert seen[:4] == pytest.approx([sum(values[:n]) / n for n in range(1, 5)])
    expected = seen[3]
    for value, mean in zip(values[4:], seen[4:], strict=True):
        expected = 0.75 * expected + 0.25 * value
        assert mean == pytest.approx(expected)


def test_a_domain_of_one_row_is_finite_and_as_in_an_evaluation() -> None:
    net, x_BD = STAR(CONFIG, shape(2, 2, width=WIDTH), seed=0), rows(5, WIDTH).float()
    logits_BT = train(net, x_BD, [0, 0, 0, 0, 1])
    logits_BT.sum().backward()
    assert logits_BT.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    assert torch.equal(logits_BT[4:], net(inputs(x_BD[4:], [0, 0, 1])))


def test_rows_stand_alone_scenarios_are_names_and_a_new_one_starts_as_its_donor() -> None:
    net, scenario_B = tiny(), [2, 0, 0, 1, 2, 2, 0]
    assert_rows_stand_alone(net, rows(7, WIDTH), scenario_B)
    assert_relabelling_changes_nothing(net, tiny(), rows(7, WIDTH), scenario_B, [1, 2, 0])
    assert_grows(net, rows(40, WIDTH))
    assert torch.equal(net.norm.statistics[3].mean, net.norm.statistics[2].mean)


def test_steps_after_a_reload_are_the_steps_without_it() -> None:
    def steps(net: STAR, adam: torch.optim.Adam, first: int) -> None:
        for step in range(first, first + 3):
            adam.zero_grad()
            train(net, rows(9, WIDTH, seed=step), SCENARIO_B).square().sum().backward()
            adam.step()
            net.after_step()

    one, other = tiny(), STAR(CONFIG, shape(3, 2, width=WIDTH), seed=None).double()
    adam = torch.optim.Adam(one.parameters())
    steps(one, adam, 0)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    other_adam = torch.optim.Adam(other.parameters())
    other_adam.load_state_dict(copy.deepcopy(adam.state_dict()))
    steps(one, adam, 3)
    steps(other, other_adam, 3)
    assert all(torch.equal(tensor, one.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_logits_start_near_the_prior_in_every_domain() -> None:
    net = STAR(STARConfig(), shape(2, 2, width=WIDTH), seed=0)
    net.start_at(1, 0.02)
    p_BT = run(net, rows(50, WIDTH).float(), [0, 1] * 25).sigmoid()
    assert 0.01 < p_BT[:, 1].mean() < 0.04 and 0.3 < p_BT[:, 0].mean() < 0.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ()}, r"layers: \(\) is not allowed; at least one"),
        ({"pn_min_rows": 1}, "pn_min_rows: 1 is not allowed; at least 2"),
        ({"momentum": 0.0}, "momentum: 0.0 is not allowed; above 0, at most 1"),
        ({"auxiliary_hidden": 0}, "auxiliary_hidden: 0 is not allowed; at least 1"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STARConfig(**changes)  # type: ignore[arg-type] # the point of the test


def test_the_default_size() -> None:
    net = STAR(STARConfig(), shape(3, 2, width=320), seed=None)
    assert sum(parameter.numel() for parameter in net.parameters()) == 715_514
