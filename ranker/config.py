"""Settings of the serving process, put together from those of its parts."""

from dataclasses import dataclass, field
from typing import get_args

from model.store import Lane
from ranker.door import DoorConfig
from ranker.request import RequestLimits
from ranker.row_fetch_config import RowFetchConfig
from ranker.sequences import SequenceConfig
from ranker.server import ServerConfig
from ranker.watcher import WatcherConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerConfig:
    """The serving process."""

    server: ServerConfig = field(default_factory=ServerConfig)
    """Where it listens, and how it stops."""
    door: DoorConfig = field(default_factory=DoorConfig)
    """Who may come in, and how much they may ask for."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    """What a request may ask for."""
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    """Reading the user's last actions."""
    rows: RowFetchConfig = field(default_factory=RowFetchConfig)
    """Reading rows that are not in memory, of models that have such (`model.embedding.hot_rows`)."""
    watcher: WatcherConfig = field(default_factory=WatcherConfig)
    """Following the snapshots."""
    lane: Lane = "stable"
    """Which snapshots this ranker serves: `canary` takes every version that passed its gate at once, `stable` follows
    after `trainer.canary.canary_ms`. Give a share of the rankers `canary`."""

    def __post_init__(self) -> None:
        if self.lane not in get_args(Lane):
            raise ValueError(f"lane: {self.lane!r} is not one of {', '.join(get_args(Lane))}")
