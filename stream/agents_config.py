"""What the agents are told, and what they count."""

from dataclasses import dataclass, field

from stream.online_metrics_config import OnlineMetricsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsConfig:
    """What is kept of each user, and of what was served."""

    sequence_length: int = 100
    """Actions kept per user, the newest; at least 1."""
    ttl_s: int = 2_592_000
    """Seconds after a user's last action when the sequence is forgotten (default 30 days); at least 1."""
    actions: tuple[str, ...] = ()
    """Names of the actions that are kept; empty: those that make a task's label."""
    prefix: str = "freshrank:seq:"
    """In front of the user id in every Redis key; the ranker reads the same."""
    max_ahead_ms: int = 60_000
    """An action further than this after the time it was logged has a wrong clock and is left out; at least 0."""
    batch_events: int = 500
    """Most events written to Redis at a time; at least 1."""
    metrics: OnlineMetricsConfig = field(default_factory=OnlineMetricsConfig)
    """Online metrics of what was served."""

    def __post_init__(self) -> None:
        for name, least in (("sequence_length", 1), ("ttl_s", 1), ("max_ahead_ms", 0), ("batch_events", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")


@dataclass(slots=True, kw_only=True)
class AgentCounters:
    """What the agents of this process have done since they started."""

    events: int = 0
    """Feedback read, all of it."""
    kept: int = 0
    """Feedback written to a sequence."""
    malformed: int = 0
    """Feedback that could not be decoded; the joiner sends it to the dead letters."""
    other_action: int = 0
    """Feedback whose action is not kept."""
    clock_ahead: int = 0
    """Feedback left out because its time is too far after the time it was logged."""
    labels: int = 0
    """Settled labels taken up by the online metrics."""
    labels_unscored: int = 0
    """Settled labels left out of them because no score was logged with their impression."""
    labels_left_out: int = 0
    """Settled labels left out of them because of scenarios beyond `agents.metrics.max_scenarios`."""
    examples_repeated: int = 0
    """Messages of `examples` that came again, after a rebalance or a restart, and changed nothing."""
    examples_malformed: int = 0
    """Messages of `examples` that could not be read."""
    redis_failures: int = 0
    """Questions to Redis that failed and were asked again."""
