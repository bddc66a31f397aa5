"""One level of PLE: experts of each head's own, shared ones, and the gates over both (`model.ple` has the equations).

Letters: B rows, M scenarios, T tasks, m_k experts of a head, m_s shared experts, n = m_k + m_s experts a head sees,
e expert width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.experts import GatedExperts
from model.inputs import RowInputs
from model.linear_gates import LinearGate
from model.network import NetworkShape
from model.network_config import check_counts


@dataclass(frozen=True, slots=True, kw_only=True)
class PLEConfig:
    """Widths and counts. The default has 0.71 M parameters at D = 320, 3 scenarios, 2 tasks."""

    levels: int = 2
    """L; 1 is CGC."""
    num_task_experts: int = 1
    """m_k, experts of each (scenario, task) at each level; at least 1."""
    num_shared_experts: int = 1
    """m_s, experts that all share, at each level; at least 1."""
    expert_hidden: int = 192
    """Hidden width of an expert; at least 1."""
    expert_width: int = 64
    """Output width of an expert; at least 1."""
    tower: tuple[int, ...] = (32,)
    """Hidden widths of a tower."""

    def __post_init__(self) -> None:
        check_counts(self)


class HeadExperts(nn.Module):
    """One scenario's experts and gates of one level; a bank serves all tasks where they share their input (level 1)."""

    def __init__(self, config: PLEConfig, num_tasks: int, width: int, *, is_first: bool) -> None:
        super().__init__()
        self._own, seen = config.num_task_experts, config.num_task_experts + config.num_shared_experts
        num_banks = 1 if is_first else num_tasks
        self.experts = nn.ModuleList(
            GatedExperts(
                width,
                num_experts=num_tasks * self._own // num_banks,
                num_gates=0,
                hidden=config.expert_hidden,
                out=config.expert_width,
            )
            for _ in range(num_banks)
        )
        self.gates = nn.ModuleList(LinearGate(width, num_tasks * seen // num_banks) for _ in range(num_banks))

    def run_experts(self, banks: Sequence[RowInputs]) -> Tensor:
        """Returns the outputs, task by task, [T m_k, B, e]; `banks` is the input of each bank."""
        return torch.cat([experts(u)[0] for experts, u in zip(self.experts, banks, strict=True)])

    def run_gates(self, banks: Sequence[RowInputs]) -> Tensor:
        """Returns each task's gate logits, own experts first, [B, T n]."""
        return torch.cat([gate(u) for gate, u in zip(self.gates, banks, strict=True)], dim=1)


class SharedExperts(nn.Module):
    """The shared experts of one level and, below the last one, the gate over them and all heads' experts."""

    def __init__(self, config: PLEConfig, shape: NetworkShape, width: int, *, is_last: bool) -> None:
        super().__init__()
        self.experts = GatedExperts(
            width,
            num_experts=config.num_shared_experts,
            num_gates=0 if is_last else config.num_shared_experts,
            hidden=config.expert_hidden,
            out=config.expert_width,
        )
        num_gated = 0 if is_last else shape.num_scenarios
        self.gates = nn.ModuleList(
            LinearGate(width, shape.num_tasks * config.num_task_experts) for _ in range(num_gated)
        )
        """Per scenario the part of the shared gate that weighs its heads' experts."""

    def weights(self, u: RowInputs, own_gate_Bs: Tensor, rho_M: Tensor) -> list[Tensor]:
        """Returns the shared gate's weights of the shared experts and of each scenario's: [B, m_s], M x [B, T m_k].

        Scenarios enter one after another, so that one more with rho 0 changes no bit.
        """
        z = [gate(u) for gate in self.gates]
        is_open_M = rho_M > 0
        with torch.no_grad():
            open_z = [torch.where(is_open_M[m], z_Bk, -torch.inf) for m, z_Bk in enumerate(z)]
            top_B1 = torch.cat([own_gate_Bs, *open_z], dim=1).amax(dim=1, keepdim=True)
        powers = [(own_gate_Bs - top_B1).exp()]
        for m, z_Bk in enumerate(z):
            powers.append(rho_M[m] * torch.where(is_open_M[m], z_Bk - top_B1, 0.0).exp())
        sum_B1 = powers[0].sum(dim=1, keepdim=True)
        for power_Bk in powers[1:]:
            sum_B1 = sum_B1 + power_Bk.sum(dim=1, keepdim=True)
        return [power_Bk / sum_B1 for power_Bk in powers]


class Level(nn.Module):
    """One level: every scenario's part and the shared part."""

    def __init__(self, config: PLEConfig, shape: NetworkShape, index: int) -> None:
        super().__init__()
        width = config.expert_width if index else shape.width
        self.scenarios = nn.ModuleList(
            HeadExperts(config, shape.num_tasks, width, is_first=index == 0) for _ in range(shape.num_scenarios)
        )
        self.shared = SharedExperts(config, shape, width, is_last=index == config.levels - 1)

    def heads(self) -> list[HeadExperts]:
        """Returns each scenario's part."""
        return [heads for heads in self.scenarios if isinstance(heads, HeadExperts)]
