"""Settings of the online metrics; apart from their owner, which imports river: a process that keeps none need not."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineMetricsConfig:
    """Online metrics of what was served; off: none of them, and `examples` is not read."""

    enabled: bool = True
    """Whether they are kept. They cost a few percent of a core and 150 MB."""
    window_labels: int = 5_000
    """Labels in the window of each scenario, task and partition, the newest; at least 1."""
    cohort_labels: int = 2_000
    """Labels that a cohort of model versions has, per partition, before a newer version opens the next; at least 1."""
    drift_block_labels: int = 100
    """Labels whose calibration error is one value for the drift detector; at least 1."""
    drift_delta: float = 0.002
    """ADWIN's significance: smaller alarms later and less often by chance; more than 0, less than 1."""
    max_waiting: int = 20_000
    """Labels of each scenario, task and partition that wait for their window to close; more go on unwaited."""
    max_scenarios: int = 64
    """Scenarios that have figures; labels of others are counted and left out. At least 1."""
    interval_ms: int = 1_000
    """How often messages are taken up and the state is written; at least 10."""
    prefix: str = "freshrank:online:"
    """In front of topic and partition in every Redis key."""

    def __post_init__(self) -> None:
        for name, least in (
            ("window_labels", 1),
            ("cohort_labels", 1),
            ("drift_block_labels", 1),
            ("max_waiting", 0),
            ("max_scenarios", 1),
            ("interval_ms", 10),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")
        if not 0 < self.drift_delta < 1:
            raise ValueError(f"drift_delta: {self.drift_delta} is not allowed; more than 0, less than 1")
