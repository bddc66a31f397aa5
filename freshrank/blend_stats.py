"""What the blend worker counts. Plain numbers: `freshrank.blend` turns them into metrics."""

from dataclasses import dataclass

from utility_blender.ope_report import OpeReport


@dataclass(slots=True)
class BlendStats:
    """Counters since the start, and what the last round found."""

    outcomes: int = 0
    """Requests whose outcome was read: explored ones and those to compare with."""
    outcomes_explored: int = 0
    """Explored requests that belonged to the round then under way."""
    outcomes_rolled_back: int = 0
    """Requests not used because the model that scored them was rolled back."""
    malformed: int = 0
    """Messages that could not be read; they are in the topic `dead-letter`."""
    rounds: int = 0
    """Rounds that were learned from."""
    rounds_failed: int = 0
    """Rounds from which nothing could be learned: see the log."""
    versions_promoted: int = 0
    """Versions that passed the gate."""
    versions_rejected: int = 0
    """Versions that did not; `freshrank blender show` has the reasons."""
    promotions_refused: int = 0
    """Promotions that the store refused, because the pointer had moved meanwhile."""
    rollbacks: int = 0
    """Versions that were taken back because requests served by them went worse."""
    exploration_trips: int = 0
    """Times that exploration was switched off because explored requests went worse."""
    store_unavailable: int = 0
    """Times the store did not answer."""


@dataclass(slots=True)
class BlendGauges:
    """How it stands now, and what the last candidate promised."""

    version: int = 0
    """Version that the pointer names; 0: the production weights."""
    share: float = 1.0
    """Share of the requests it serves."""
    round_requests: int = 0
    """Explored requests of the present round."""
    round_missing: int = 0
    """Explored requests still to come before it is learned from."""
    lift: float | None = None
    """Lift over the weights in service that the last candidate promised, by item inclusion; a share of their value."""
    lift_low: float | None = None
    """Its lower bound, one-sided 95 %."""

    def take(self, evaluation: OpeReport) -> None:
        """Takes note of what the last round found, over all groups of scenarios."""
        value = sum(group.value_center.value * group.num_requests for group in evaluation.groups)
        if value > 0:
            self.lift = sum(group.item.value * group.num_requests for group in evaluation.groups) / value
            self.lift_low = sum(group.item.low * group.num_requests for group in evaluation.groups) / value
