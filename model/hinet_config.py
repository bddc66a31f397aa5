"""HiNet's widths, counts and switches: one for every ablation and for every way the released code differs."""

from dataclasses import dataclass, replace
from typing import Literal

from model.cgc import CgcGate
from model.network_config import check_counts
from model.scenario_attention import SanGate, SanSoftmax
from model.sei import GateActivation


@dataclass(frozen=True, slots=True, kw_only=True)
class HiNetConfig:
    """Widths, counts and switches. The default is the preset `small`: 0.71 M parameters at D = 320, M = 3, T = 2."""

    num_shared_experts: int = 2
    """Sub-experts of the shared SEI; at least 1."""
    num_scenario_experts: int = 2
    """Sub-experts of each scenario's SEI; at least 1."""
    expert_hidden: int = 128
    """Hidden width of a sub-expert; at least 1."""
    expert_width: int = 64
    """Output width of a sub-expert; at least 1."""
    scenario_embedding: int = 16
    """Width of the scenario embedding that the scenario-aware attention sees; at least 1."""
    num_task_experts: int = 1
    """Experts of each task in a scenario's CGC; at least 1."""
    num_shared_task_experts: int = 1
    """Experts shared by the tasks in a scenario's CGC; at least 1."""
    task_hidden: int = 128
    """Hidden width of a CGC expert; at least 1."""
    task_width: int = 64
    """Output width of a CGC expert; at least 1."""
    tower: tuple[int, ...] = (32,)
    """Hidden widths of a tower."""
    hierarchy: bool = True
    """Off: no scenario layer, the CGC works on x. Only with `san: none`."""
    san: Literal["on", "none", "detach"] = "on"
    """Scenario-aware attention: `on`, `none` (C is [G, S_i]) or `detach` (no gradient to the other scenarios)."""
    san_softmax: SanSoftmax = "others"
    """Over the other scenarios, or over all and the own one's weight set to zero afterwards (released code)."""
    san_gate: SanGate = "linear"
    """From the scenario's embedding to the logits: linear, or through one unit (released code)."""
    gate_activation: GateActivation = "none"
    """Of gate logits before each softmax; `relu` in the released code."""
    cgc_gate: CgcGate = "softmax"
    """`sum`: every expert has weight 1 and the CGC's gates learn nothing (released code)."""
    task_layer: Literal["per_scenario", "global"] = "per_scenario"
    """Whether the CGC's shared experts are a scenario's own, or one set for all scenarios (released code)."""
    concat_order: Literal["gsa", "asg"] = "gsa"
    """Order of shared, own and others' features in C; `asg` in the released code."""
    input_affine: bool = False
    """A trainable scale and shift of x: what the released code's batch normalisation comes to."""
    sei_dropout: float = 0.0
    """Share dropped after both layers of an SEI's experts in training (released code: 0.5); at least 0, below 1."""
    loss_rows: Literal["own", "all"] = "own"
    """`all`: a row also trains the other scenarios' heads, with label 0 (released code). Only with `task_layer:
    global`."""
    growable: bool = True
    """With one scenario keep the attention's place in C (as zeros), so that a second one can be added."""
    san_capacity: int = 64
    """Scenarios that the attention's table has room for; more can be added, at a change of old scores by rounding; at
    least 1."""
    scenario_init: Literal["donor", "shared", "random"] = "donor"
    """What the SEI of a scenario added later starts as: a copy of its donor's, a copy of the shared one (which needs as
    many sub-experts), or random. Its heads start as its donor's."""

    def __post_init__(self) -> None:
        check_counts(self)
        if not 0.0 <= self.sei_dropout < 1.0:
            raise ValueError(f"sei_dropout: {self.sei_dropout} is not allowed; at least 0, below 1")
        if not self.hierarchy:
            self._need("hierarchy", "san", "none")
            self._need("hierarchy", "sei_dropout", 0.0)
        if self.san == "none":
            self._need("san", "san_softmax", "others")
            self._need("san", "san_gate", "linear")
        if self.loss_rows == "all":
            self._need("loss_rows", "task_layer", "global")
        if self.scenario_init == "shared":
            self._need("scenario_init", "num_scenario_experts", self.num_shared_experts)

    def _need(self, name: str, other: str, allowed: object) -> None:
        if getattr(self, other) != allowed:
            given = f"{name}: {getattr(self, name)}"
            raise ValueError(f"{other}: {getattr(self, other)} is not allowed with {given}; {allowed}")

    @classmethod
    def published(cls) -> "HiNetConfig":
        """Returns the published size: 5 sub-experts 128-64, embedding 64, CGC (2, 2) 128-64, towers 128-64."""
        return cls(
            num_shared_experts=5,
            num_scenario_experts=5,
            scenario_embedding=64,
            num_task_experts=2,
            num_shared_task_experts=2,
            tower=(128, 64),
        )

    @classmethod
    def released(cls) -> "HiNetConfig":
        """Returns the released code's network (mrchor/HiNet): the published size, and every switch as that code has it.

        Its loss weighs all rows alike: `loss.scenario_weight: uniform`.
        """
        return replace(
            cls.published(),
            san_softmax="all_then_zero",
            san_gate="relu_bottleneck",
            gate_activation="relu",
            cgc_gate="sum",
            task_layer="global",
            concat_order="asg",
            input_affine=True,
            sei_dropout=0.5,
            loss_rows="all",
        )
