"""Where things are: Redis, the checkpoints, the live page and every process's `/metrics`."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from freshrank.strict import show
from ranker.door import DoorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """Where Redis is. The environment variable FRESHRANK_REDIS overrides `url`."""

    url: str = "redis://localhost:6379/0"
    """Address as redis://[user:password@]host:port/database (or rediss:// with TLS)."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError(f"url: {show(self.url)} must start with redis://, rediss:// or unix://")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """Where the trainer keeps its own recovery state."""

    folder: Path = Path("checkpoints")
    """One folder per checkpoint is written in here; made if it is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorConfig:
    """The live page, and where every process shows its figures."""

    host: str = "127.0.0.1"
    """Address the page listens on, and all processes' `/metrics`; 0.0.0.0 for all."""
    port: int = 8600
    """Port of the live page; 1 to 65535."""
    joiner: str = "127.0.0.1:8611"
    """`host:port` of the joiner's `/metrics`; several separated by commas. A process listens on its own first port."""
    trainer: str = "127.0.0.1:8612"
    """The same for the trainer."""
    agents: str = "127.0.0.1:8613"
    """The same for the agents."""
    blender: str = ""
    """The same for the blend worker; empty where there is none."""
    simulator: str = "127.0.0.1:8614"
    """The same for the simulator; empty where there is none."""
    ranker: str = "127.0.0.1:8620"
    """The same for the rankers, whose HTTP service answers `/metrics` too; the page's requests go to the first."""
    interval_ms: int = 1_000
    """How often everything is scraped; at least 200."""
    history_s: int = 600
    """How far back the page's curves go; at least 10."""
    door: DoorConfig = field(default_factory=DoorConfig)
    """Who may see the page, and how much they may ask for."""
    ranker_scheme: Literal["http", "https"] = "http"
    """How the rankers are asked; `https` where they have a certificate (`ranker.server.tls`)."""
    controls: bool = False
    """Whether the page may change the simulator's traffic and break things on purpose; only where `host` is this
    machine's loopback address."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65_535:
            raise ValueError(f"port: {self.port} is not allowed; 1 to 65535")
        if self.interval_ms < 200:
            raise ValueError(f"interval_ms: {self.interval_ms} is not allowed; at least 200")
        if self.history_s < 10:
            raise ValueError(f"history_s: {self.history_s} is not allowed; at least 10")
        if self.controls and self.host not in LOOPBACK:
            raise ValueError(f"controls: true is not allowed with host {self.host}; only with {', '.join(LOOPBACK)}")
        for process in PROCESSES:
            for address in addresses(getattr(self, process)):
                if not re.fullmatch(r"[^:\s]+:\d{1,5}", address):
                    raise ValueError(f"{process}: {show(address)} is not host:port")

    @property
    def ranker_url(self) -> str:
        """Address of the first ranker, to which requests go."""
        return f"{self.ranker_scheme}://{addresses(self.ranker)[0]}"

    def metrics_urls(self) -> dict[str, str]:
        """Returns the URL of every process's `/metrics`, by the names of `targets`."""
        return {
            name: f"{self.ranker_scheme if name.startswith('ranker') else 'http'}://{address}/metrics"
            for name, address in self.targets().items()
        }

    def targets(self) -> dict[str, str]:
        """Returns the address of every process's `/metrics`: `joiner`, `ranker-1`, `ranker-2`, ..."""
        named: dict[str, str] = {}
        for process in PROCESSES:
            found = addresses(getattr(self, process))
            named |= {process if len(found) == 1 else f"{process}-{i}": at for i, at in enumerate(found, start=1)}
        return named


LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""How this machine calls itself."""
PROCESSES = ("joiner", "trainer", "ranker", "agents", "blender", "simulator")
"""What a run consists of, beside the monitor."""


def addresses(setting: str) -> list[str]:
    """Returns the parts of a comma-separated `host:port` setting."""
    return [part.strip() for part in setting.split(",") if part.strip()]
