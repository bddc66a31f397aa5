"""How long a request may wait for rows that are not in memory, and how many answers are kept."""

from dataclasses import dataclass, field

from ranker.breaker import BreakerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFetchConfig:
    """Reading rows that are not in memory."""

    timeout_ms: int = 20
    """Milliseconds to wait for Redis, connecting included; at least 1."""
    cache_rows: int = 100_000
    """Answers of the row store kept, rows and absences; at least 1. Each takes the bytes of a row and 100 more."""
    max_rows: int = 5_000
    """Rows that one request may ask for; those beyond are default rows; at least 1."""
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    """When a Redis that does not answer is left alone."""

    def __post_init__(self) -> None:
        for name in ("timeout_ms", "cache_rows", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
