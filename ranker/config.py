"""Settings of the serving process, put together from those of its parts."""

from dataclasses import dataclass, field

from ranker.request import RequestLimits
from ranker.sequences import SequenceConfig
from ranker.server import ServerConfig
from ranker.watcher import WatcherConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerConfig:
    """The serving process."""

    server: ServerConfig = field(default_factory=ServerConfig)
    """Where it listens, and how it stops."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    """What a request may ask for."""
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    """Reading the user's last actions."""
    watcher: WatcherConfig = field(default_factory=WatcherConfig)
    """Following the snapshots."""
