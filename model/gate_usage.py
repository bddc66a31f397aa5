"""What a gate gave to its experts."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GateUsage:
    """The weights of one gate on the rows of one scenario."""

    gate: str
    """Which gate of the network: `sei.shared`, `cgc`, ..."""
    scenario: int
    task: int | None
    """None: the gate is not a task's."""
    weight_BK: Tensor
    """Weight of each of its K experts, row by row; rows sum to 1."""
    experts: tuple[str, ...] | None = None
    """Names of the K experts; None: their numbers. Two gates share an expert if gate, bank and name are the same."""
    bank: str = ""
    """Tells apart the experts of gates of one name, where some have experts of their own (one set per scenario)."""
