"""The gate report: planted dead and specialised experts are found, flat means of sharp rows are told apart."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model.architectures import NETWORKS, Architecture
from model.config import ModelConfig
from model.gate_usage import Expert, GateUsage, gate_reports, jensen_shannon
from model.hinet_config import HiNetConfig
from model.inputs import RowInputs
from model.learner import Learner
from model.network import NetworkInputs
from tests.model.networks import inputs
from tests.model.test_hinet import CONFIGS, TINY, rows, tiny
from tests.model.worlds import SCHEMA, columns

torch.set_num_threads(1)


def one(weight_BK: Tensor, scenario: int = 0, task: int | None = None, **more: object) -> GateUsage:
    return GateUsage(gate="experts", scenario=scenario, task=task, weight_BK=weight_BK, **more)  # type: ignore[arg-type]


def softmaxed(num_rows: int, num_experts: int, scale: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(num_rows, num_experts, generator=generator)).softmax(dim=1)


def test_figures_of_a_head_equal_plain_ones() -> None:
    weight_BK = softmaxed(50, 3, 1.0)
    (report,) = gate_reports([one(weight_BK[:20]), one(weight_BK[20:])])
    (head,) = report.heads
    rows_BK = weight_BK.double().numpy()
    mean_K = rows_BK.mean(axis=0)

    def entropy(p_K: np.ndarray) -> float:
        return -sum(p * math.log(p) for p in p_K.tolist()) / math.log(3)

    assert head.num_rows == 50 and list(head.mean.values()) == pytest.approx(mean_K.tolist())
    assert head.entropy_of_mean == pytest.approx(entropy(mean_K))
    assert head.mean_entropy == pytest.approx(np.mean([entropy(row) for row in rows_BK]))
    assert head.max_share == pytest.approx(mean_K.max())


@pytest.mark.parametrize(
    ("weight_BK", "routing"),
    [
        (torch.full((40, 4), 0.25), "even"),
        (torch.eye(4).repeat(10, 1), "routed"),  # the same flat mean, from sharp rows
        (torch.tensor([0.97, 0.01, 0.01, 0.01]).repeat(40, 1), "fixed"),
        (torch.eye(4)[[0, 1]].repeat(20, 1), "routed"),
        (torch.ones(40, 1), "single"),
    ],
)
def test_a_flat_mean_of_sharp_rows_is_told_from_even_rows(weight_BK: Tensor, routing: str) -> None:
    head = gate_reports([one(weight_BK)])[0].heads[0]
    assert head.routing == routing
    if weight_BK.shape[1] > 1 and weight_BK.shape[0] == 40 and routing != "fixed" and weight_BK[:, 3].any():
        assert head.entropy_of_mean == pytest.approx(1.0)


def test_an_expert_is_dead_only_if_no_head_uses_it() -> None:
    starved = torch.tensor([0.5, 0.49, 0.01]).repeat(5, 1)
    fed = torch.tensor([0.0, 0.5, 0.5]).repeat(5, 1)
    assert gate_reports([one(starved, 0), one(starved, 1)])[0].dead == (Expert(None, "2"),)
    assert gate_reports([one(starved, 0), one(fed, 1)])[0].dead == ()
    own = gate_reports([one(starved, 0, bank=0), one(fed, 1, bank=1)])[0]
    assert own.dead == (Expert(0, "2"), Expert(1, "0"))


def test_the_limit_of_dead_is_a_tenth_of_an_even_weight() -> None:
    def dead(weight: float) -> bool:
        return bool(gate_reports([one(torch.tensor([[1.0 - weight, weight, 0.4, 0.4]]))])[0].dead)

    assert dead(0.1 / 4 - 1e-4) and not dead(0.1 / 4 + 1e-4)


def test_distances_are_of_tasks_of_the_same_scenario() -> None:
    means = {(i, j): softmaxed(1, 4, 1.0, seed=10 * i + j) for i in range(2) for j in range(3)}
    (report,) = gate_reports([one(weight, i, j) for (i, j), weight in means.items()])
    pairs = ((0, 1), (0, 2), (1, 2))
    assert [(found.scenario, found.tasks) for found in report.distances] == [
        (i, pair) for i in (0, 1) for pair in pairs
    ]

    def bits(p_K: np.ndarray) -> float:
        return -sum(p * math.log2(p) for p in p_K.tolist())

    for found in report.distances:
        a, b = (means[found.scenario, task][0].double().numpy() for task in found.tasks)
        assert found.distance == pytest.approx(math.sqrt(bits((a + b) / 2) - (bits(a) + bits(b)) / 2))


def test_named_experts_are_told_apart_and_shared_ones_are_not() -> None:
    a = one(torch.tensor([[0.5, 0.5]]), task=0, experts=("a.0", "shared.0"))
    b = one(torch.tensor([[0.99, 0.01]]), task=1, experts=("b.0", "shared.0"))
    (report,) = gate_reports([a, b])
    assert report.experts == ("a.0", "shared.0", "b.0") and report.dead == ()
    assert report.distances[0].distance == pytest.approx(jensen_shannon(report.heads[0].mean, report.heads[1].mean))


def test_usages_without_rows_say_nothing_and_misnamed_ones_are_refused() -> None:
    assert gate_reports([one(torch.empty(0, 3))]) == []
    with pytest.raises(ValueError, match=r"weight_BK: \[3\] experts are not allowed in gate experts; 2, as named"):
        gate_reports([one(torch.ones(1, 3) / 3, experts=("a", "b"))])


def test_hinets_gates_are_those_its_forward_uses() -> None:
    net, x_BD, row_offsets = tiny(CONFIGS["unequal counts"], 3), rows(6), [0, 2, 2, 6]
    usages = {(u.gate, u.scenario, u.task): u for u in net.gate_usage(inputs(x_BD, row_offsets))}
    assert set(usages) == {(gate, i, j) for i in (0, 2) for gate, tasks in GATES.items() for j in tasks} and all(
        torch.allclose(u.weight_BK.sum(dim=1), torch.ones(len(u.weight_BK)).double()) for u in usages.values()
    )
    assert net.shared is not None and net.attention is not None
    experts_KBd, _ = net.shared.experts(RowInputs(x_BD))
    weight_BK = torch.cat([usages["sei.shared", i, None].weight_BK for i in (0, 2)])
    assert torch.allclose(torch.einsum("bk,kbd->bd", weight_BK, experts_KBd), net.shared(RowInputs(x_BD)))
    assert torch.allclose(usages["san", 2, None].weight_BK, net.attention()[2].expand(4, -1))
    cgc, c_BC = net.gates[2], net.representation(inputs(x_BD, row_offsets))[2:]
    experts_EBd, _ = cgc.experts(RowInputs(c_BC))
    names = ["task-0.0", "task-0.1", "task-1.0", "task-1.1", "shared.0", "shared.1", "shared.2"]
    for j in range(2):
        usage = usages["cgc", 2, j]
        assert usage.experts is not None
        seen_nBd = experts_EBd[[names.index(name) for name in usage.experts]]
        assert torch.allclose(torch.einsum("bn,nbd->bd", usage.weight_BK, seen_nBd), cgc(c_BC)[j])


GATES = {"sei.shared": [None], "sei.own": [None], "san": [None], "cgc": [0, 1]}


@pytest.mark.parametrize(
    ("name", "gates"),
    [
        ("no attention", {"sei.shared", "sei.own", "cgc"}),
        ("no hierarchy", {"cgc"}),
        ("sum of experts", set(GATES)),
        ("released", set(GATES)),
    ],
)
def test_other_forms_of_hinet_have_the_gates_they_have(name: str, gates: set[str]) -> None:
    usages = tiny(CONFIGS[name], 3).gate_usage(inputs(rows(6), [0, 2, 4, 6]))
    assert {usage.gate for usage in usages} == gates
    assert all(torch.allclose(u.weight_BK.sum(dim=1), torch.ones(len(u.weight_BK)).double()) for u in usages)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_every_network_has_gates_that_sum_to_one_and_a_report(architecture: Architecture) -> None:
    learner = Learner(SCHEMA, ModelConfig(architecture=architecture), 0)
    batch = learner.encode(columns(np.random.default_rng(0), 6, 24))
    usages = learner.gate_usage(batch)
    assert all(torch.allclose(u.weight_BK.sum(dim=1), torch.ones(len(u.weight_BK)), atol=1e-5) for u in usages)
    for report in gate_reports(usages):
        by_task: dict[int | None, list[int]] = {}
        for head in report.heads:
            by_task.setdefault(head.task, []).append(head.num_rows)
        assert all(sum(counts) == 24 for counts in by_task.values()), report.gate
    assert bool(usages) == (architecture not in {"shared_bottom", "star", "esmm", "pepnet"})


def test_a_lone_scenario_has_no_attention_to_report() -> None:
    assert "san" not in {usage.gate for usage in tiny(CONFIGS["small"], 1).gate_usage(inputs(rows(3), [0, 3]))}


def test_experts_planted_in_a_hinet_are_found() -> None:
    config = HiNetConfig(**TINY, num_shared_experts=4, tower=(3,))
    net = tiny(config, 3)
    assert net.shared is not None
    bank, first = net.shared.experts, 4 * TINY["expert_hidden"]
    with torch.no_grad():
        bank.in_weight[first:] = 0.0
        bank.in_bias[first:] = torch.tensor([0.0, 0.0, 0.0, -20.0])  # expert 3 is dead
        bank.in_weight[first, 0] = 20.0  # experts 0 and 1 share the rows by the sign of x_0
        bank.in_weight[first + 1, 0] = -20.0
        bank.in_bias[first + 2] = -30.0  # expert 2 too
        net.gates[1].experts.in_weight[-4:] = 0.0
        net.gates[1].experts.in_bias[-4:] = torch.tensor([8.0, 0.0, 0.0, 8.0])  # task 0: its own expert, task 1: shared
    x_BD = rows(400)
    given = NetworkInputs(x=RowInputs(x_BD), row_offsets=[0, 100, 300, 400])
    reports = {report.gate: report for report in gate_reports(net.gate_usage(given))}
    shared, cgc = reports["sei.shared"], reports["cgc"]
    assert shared.dead == (Expert(None, "2"), Expert(None, "3"))
    assert all(head.routing == "routed" and head.max_share < 0.65 for head in shared.heads)
    specialised = {(head.scenario, head.task): head for head in cgc.heads}
    assert specialised[1, 0].routing == specialised[1, 1].routing == "fixed"
    assert specialised[1, 0].mean["task-0.0"] > 0.99 and specialised[1, 1].mean["shared.0"] > 0.99
    assert Expert(1, "task-1.0") in cgc.dead and Expert(0, "task-1.0") not in cgc.dead
    distances = {found.scenario: found.distance for found in cgc.distances}
    assert distances[1] > 0.95 > distances[0]
