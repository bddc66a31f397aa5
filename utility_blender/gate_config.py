"""Thresholds of the off-policy gate."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """What learned weights must prove on a later slice of time before they serve."""

    min_requests: int = 2_000
    """Explored requests of the slice that are needed for a verdict; at least 100."""

    def __post_init__(self) -> None:
        if self.min_requests < 100:
            raise ValueError(f"min_requests: {self.min_requests} is not allowed; at least 100")
