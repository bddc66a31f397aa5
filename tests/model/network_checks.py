"""What the tests of several networks check in the same way."""

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.network import Network
from tests.model.networks import inputs, run

N = TypeVar("N", bound=Network)
Parameters = Mapping[str, Tensor]
Forward = Callable[[Network, Tensor], Tensor]

torch.set_num_threads(1)


def rows(num_rows: int, width: int, seed: int = 0) -> Tensor:
    """Returns random float64 rows, [num_rows, width]."""
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(net: N) -> N:
    """Returns the network in float64 with every parameter moved: ones and zeros would hide what they are lost in."""
    generator = torch.Generator().manual_seed(1)
    net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return net


def assert_equals_reference(
    net: Network, reference: Callable[[Parameters, Tensor], Tensor], x_BD: Tensor, forward: Forward
) -> None:
    """Checks logits (1e-10; 1e-5 in float32) and the gradients of input and all parameters (1e-8)."""
    ours_x, reference_x = x_BD.clone().requires_grad_(), x_BD.clone().requires_grad_()
    net.zero_grad()
    single_BT = forward(copy.deepcopy(net).float(), x_BD.float())
    ours_BT = forward(net, ours_x)
    weight_BT = torch.linspace(-1, 1, ours_BT.numel(), dtype=torch.float64).view_as(ours_BT)
    (ours_BT * weight_BT).sum().backward()
    names = {name for name, _ in net.named_parameters()}
    state = {name: tensor.detach().clone().requires_grad_(name in names) for name, tensor in net.state_dict().items()}
    expected_BT = reference(state, reference_x)
    (expected_BT * weight_BT).sum().backward()

    assert torch.allclose(ours_BT, expected_BT, rtol=0, atol=1e-10)
    assert torch.allclose(single_BT.double(), expected_BT, rtol=0, atol=1e-5)
    assert ours_x.grad is not None and reference_x.grad is not None
    assert torch.allclose(ours_x.grad, reference_x.grad, rtol=0, atol=1e-8)
    for name, parameter in net.named_parameters():
        expected, ours = state[name].grad, parameter.grad
        zeros = torch.zeros_like(parameter)
        assert torch.allclose(zeros if ours is None else ours, zeros if expected is None else expected, atol=1e-8), name


def assert_gradcheck(net: nn.Module, x_BD: Tensor, forward: Callable[[Callable[..., Tensor], Tensor], Tensor]) -> None:
    """Checks the gradients of input and parameters against finite differences."""
    names = [name for name, _ in net.named_parameters()]

    def function(x_BD: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return forward(lambda *args: torch.func.functional_call(net, given, args), x_BD)

    parameters = [parameter.detach().clone().requires_grad_() for parameter in net.parameters()]
    assert torch.autograd.gradcheck(function, (x_BD.clone().requires_grad_(), *parameters))


def reached(net: Network, loss: Tensor) -> set[str]:
    """Returns the parameters whose gradient of `loss` is not zero."""
    net.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped
    return {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def without_gradient(net: Network) -> set[str]:
    """Returns the parameters that the last backward gave no gradient at all."""
    return {name for name, parameter in net.named_parameters() if parameter.grad is None}


def assert_rows_stand_alone(net: Network, x_BD: Tensor, scenario_B: list[int]) -> None:
    """Checks that permuting rows permutes logits, and that a row alone gives what it gives among others."""
    logits_BT, order = run(net, x_BD, scenario_B), list(range(len(scenario_B)))[::-1]
    permuted_BT = run(net, x_BD[order], [scenario_B[b] for b in order])
    assert torch.allclose(permuted_BT, logits_BT[order], rtol=0, atol=1e-12)
    for b, scenario in enumerate(scenario_B):
        assert torch.allclose(run(net, x_BD[b : b + 1], [scenario]), logits_BT[b : b + 1], rtol=0, atol=1e-12)
    nothing_BT = run(net, x_BD[:0], [])
    assert nothing_BT.shape == (0, net.shape.num_tasks)


def assert_relabelling_changes_nothing(
    net: Network, twin: Network, x_BD: Tensor, scenario_B: list[int], order: list[int]
) -> None:
    """Checks that logits stay when scenario i and all that is its own become scenario `order[i]` in `twin`."""
    twin.load_state_dict(net.state_dict())
    for ours, theirs in zip(net.scenario_lists(), twin.scenario_lists(), strict=True):
        for scenario, moved in enumerate(order):
            theirs[moved].load_state_dict(ours[scenario].state_dict())
    relabelled_BT = run(twin, x_BD, [order[i] for i in scenario_B])
    assert torch.allclose(relabelled_BT, run(net, x_BD, scenario_B), rtol=0, atol=1e-12)


def assert_grows(net: Network, x_BD: Tensor) -> None:
    """Checks that a new scenario starts as its donor, the last one, and changes no bit of the others' logits."""
    num_scenarios, num_rows = net.num_scenarios, len(x_BD)
    places = [num_rows * i // num_scenarios for i in range(num_scenarios + 1)]
    old_BT = net(inputs(x_BD, places))
    new = net.add_scenario(num_scenarios - 1)
    assert new == num_scenarios and torch.equal(net(inputs(x_BD, [*places, num_rows])), old_BT)
    donor_BT = net(inputs(x_BD, [0] * new + [num_rows, num_rows]))
    assert torch.equal(net(inputs(x_BD, [0] * (new + 1) + [num_rows])), donor_BT)
