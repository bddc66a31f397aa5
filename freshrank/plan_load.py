"""What a plan is asked for: the traffic, the wish, and the settings that decide what they cost."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

Preset = Literal["small", "published"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Traffic, and how it is to be dealt with.

    Raises:
        ValueError: a number that cannot be.
    """

    events_per_s: float
    """Items shown and actions on them, per second; above 0."""
    items: int
    """Items that have a row of their own in the model; at least 1."""
    users: int
    """Users that have one; at least 1."""
    qps: float
    """Rankings asked for, per second; above 0."""
    freshness_s: float
    """From an action to the first ranking by a model that has learned it, 99 of 100 actions; above 0."""
    slate: int = 20
    """Items shown per ranking; at least 1."""
    candidates: int = 500
    """Items ranked per request; at least 1."""
    actions_per_item: float = 0.1
    """Actions per item shown; at least 0."""
    window_s: float = 60.0
    """The longest label window; above 0."""
    closes: int = 1
    """Different label windows: each brings every item shown to the trainer once more; at least 1."""
    other_values: int = 100_000
    """Values of all other fields that have a row; at least 0."""
    sequence_length: int = 100
    """`agents.sequence_length`, and every user has so many; at least 1."""
    preset: Preset = "small"
    """Size of the network: `small` or `published`."""
    width: int = 16
    """Floats per embedding row; at least 1."""
    scenarios: int = 3
    """Scenarios: the publish gate scores its requests in each; at least 1."""
    replication: int = 3
    """Copies that Kafka keeps; at least 1."""
    retention_days: float = 7.0
    """How long Kafka keeps messages; above 0."""
    commit_interval_ms: int = 100
    """`join.commit_interval_ms`; at least 1."""
    max_wait_ms: int = 20
    """`trainer.max_wait_ms`; at least 1."""
    full_every: int | None = None
    """`trainer.full_every`; at least 1; None: as seldom as the freshness needs, and as often as it allows."""
    utilisation: float = 0.65
    """How busy joiners, ranks, brokers and links may be; from 0.05 to 0.95."""
    ranker_utilisation: float = 0.5
    """How busy rankers may be: a ranking waits for the one before it; from 0.05 to 0.95."""
    hot_rows: int | None = None
    """`model.embedding.hot_rows` of all ranks together; at least 1; None: as many as a full version holds."""
    judged_share: float = 1.0
    """`trainer.judged_share`, the share of the rows that the lead of several ranks looks at; above 0, at most 1."""
    ranker_cores: int = 1
    """Cores of one ranker, which share its tables; at least 1. Above 1: what if they did; not built."""

    def __post_init__(self) -> None:
        least = {"items": 1, "users": 1, "slate": 1, "candidates": 1, "closes": 1, "other_values": 0, "width": 1}
        least |= {"scenarios": 1, "replication": 1, "commit_interval_ms": 1, "max_wait_ms": 1, "full_every": 1}
        for name, limit in (
            least | {"ranker_cores": 1, "hot_rows": 1, "sequence_length": 1, "actions_per_item": 0}
        ).items():
            if getattr(self, name) is not None and not getattr(self, name) >= limit:
                raise ValueError(f"{option(name)}: {getattr(self, name):g} is not allowed; at least {limit}")
        for name in ("events_per_s", "qps", "freshness_s", "window_s", "retention_days"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{option(name)}: {getattr(self, name):g} is not allowed; above 0")
        for name in ("utilisation", "ranker_utilisation"):
            if not 0.05 <= getattr(self, name) <= 0.95:
                raise ValueError(f"{option(name)}: {getattr(self, name):g} is not allowed; from 0.05 to 0.95")
        if not 0 < self.judged_share <= 1:
            raise ValueError(f"{option('judged_share')}: {self.judged_share:g} is not allowed; above 0, at most 1")
        if self.preset not in get_args(Preset):
            raise ValueError(f"{option('preset')}: {self.preset} is not allowed; {', '.join(get_args(Preset))}")
        if self.candidates < self.slate:
            raise ValueError(f"--candidates: {self.candidates} is not allowed; at least the slate, {self.slate}")

    @property
    def asks_what_if(self) -> bool:
        """Tells whether it is about something that is not built."""
        return self.ranker_cores > 1

    @property
    def items_per_s(self) -> float:
        """Items shown."""
        return self.events_per_s / (1 + self.actions_per_item)

    @property
    def actions_per_s(self) -> float:
        """Actions of users."""
        return self.events_per_s - self.items_per_s

    @property
    def slates_per_s(self) -> float:
        """Slates shown."""
        return self.items_per_s / self.slate

    @property
    def rows_per_s(self) -> float:
        """Rows that are trained: each item at the close of each window, and each action as it comes."""
        return self.closes * self.items_per_s + self.actions_per_s


def option(name: str) -> str:
    """Returns the option of a field.

    >>> option("events_per_s")
    '--events-per-s'
    """
    return "--" + name.replace("_", "-")


def defaults() -> dict[str, object]:
    """Returns the fields that need not be given, with their values."""
    required = ("events_per_s", "items", "users", "qps", "freshness_s")
    return {one.name: one.default for one in fields(Load) if one.name not in required}
