"""Where things are: Redis, the checkpoints, the live page and every process's `/metrics`."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlencode

from freshrank.strict import show
from ranker.door import DoorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisTlsConfig:
    """Files in PEM for TLS to Redis, which the url's `rediss://` switches on."""

    ca_file: str = ""
    """Authorities that may have signed Redis's certificate; empty: those of the system."""
    certificate_file: str = ""
    """This client's own certificate; empty: it has none."""
    key_file: str = ""
    """The certificate's key, without a password; readable by this user alone."""

    def __post_init__(self) -> None:
        if bool(self.certificate_file) != bool(self.key_file):
            lacking = "key_file" if self.certificate_file else "certificate_file"
            raise ValueError(f"{lacking}: is missing; a certificate and its key go together")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """Where Redis is, and how to come in.

    FRESHRANK_REDIS overrides `url`; it may hold a user and a password, which then count as the two settings here.
    """

    url: str = "redis://localhost:6379/0"
    """Address as redis://host:port/database, rediss:// with TLS, or unix:///path."""
    username: str = ""
    """User of Redis's access control list; empty: its default user."""
    password: str = field(default="", repr=False)
    """From FRESHRANK_REDIS_PASSWORD; a file or an argument may not hold it."""
    tls: RedisTlsConfig = field(default_factory=RedisTlsConfig)
    """Which certificates to trust and to show."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("redis://", "rediss://", "unix://")):
            scheme = self.url.partition("://")[0] if "://" in self.url else ""  # the rest may hold a password
            raise ValueError(f"url: {show(scheme)} is not allowed at its start; redis://, rediss:// or unix://")
        if "@" in self.url or "password=" in self.url:
            raise ValueError(
                "url: must not hold a user or a password; set FRESHRANK_REDIS_USERNAME and FRESHRANK_REDIS_PASSWORD"
            )
        if self.tls != RedisTlsConfig() and not self.url.startswith("rediss://"):
            raise ValueError(f"tls: is not allowed with {show(self.url)}; the url must start with rediss://")
        if self.username and not self.password:
            raise ValueError(f"username: {show(self.username)} is not allowed without FRESHRANK_REDIS_PASSWORD")

    @property
    def address(self) -> str:
        """The url with all that a client needs to come in. It may hold the password: not to be logged."""
        scheme, _, rest = self.url.partition("://")
        login = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@" if self.password else ""
        files = {
            "ssl_ca_certs": self.tls.ca_file,
            "ssl_certfile": self.tls.certificate_file,
            "ssl_keyfile": self.tls.key_file,
        }
        query = urlencode({name: file for name, file in files.items() if file})
        return f"{scheme}://{login}{rest}{'&' if '?' in rest else '?'}{query}".rstrip("?&")


def without_login(url: str) -> tuple[str, str, str]:
    """Returns a URL without its user and password, and these.

    >>> without_login("redis://me:h%40sh@there:6379/0")
    ('redis://there:6379/0', 'me', 'h@sh')
    >>> without_login("redis://there/0")
    ('redis://there/0', '', '')
    """
    scheme, separator, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    username, _, password = login.partition(":")
    return f"{scheme}{separator}{place}", unquote(username), unquote(password)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """Where the trainer keeps its own recovery state."""

    folder: Path = Path("checkpoints")
    """One folder per checkpoint is written in here; made if it is not there. Embedding rows beyond
    `model.embedding.hot_rows` are in here, too."""
    cold_store_mib: int = 128
    """Memory of each trainer process for the store of these rows: its caches and what it has not written yet, in MiB;
    at least 16."""

    def __post_init__(self) -> None:
        if self.cold_store_mib < 16:
            raise ValueError(f"cold_store_mib: {self.cold_store_mib} is not allowed; at least 16")


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorConfig:
    """The live page, and where every process shows its figures."""

    host: str = "127.0.0.1"
    """Address the page listens on, and all processes' `/metrics`; 0.0.0.0 for all."""
    port: int = 8600
    """Port of the live page; 1 to 65535."""
    joiner: str = "127.0.0.1:8611"
    """`host:port` of the joiner's `/metrics`; several separated by commas, or one name with several addresses. A
    process listens on its own first port."""
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
    probe: str = "127.0.0.1:8616"
    """`host:port` of the probe's `/metrics` (`freshrank probe`); the page does not ask for it."""
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
        for process in (*PROCESSES, "probe"):
            for address in addresses(getattr(self, process)):
                if not re.fullmatch(r"[^:\s]+:\d{1,5}", address):
                    raise ValueError(f"{process}: {show(address)} is not host:port")

    @property
    def ranker_url(self) -> str:
        """Address of the first ranker, to which requests go."""
        return f"{self.ranker_scheme}://{addresses(self.ranker)[0]}"

    def metrics_url(self, name: str, address: str) -> str:
        """Returns the URL of the `/metrics` of a process: one of the names of `targets`, and where it is."""
        return f"{self.ranker_scheme if name.startswith('ranker') else 'http'}://{address}/metrics"

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
