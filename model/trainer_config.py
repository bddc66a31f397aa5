"""What a trainer is told and given: its configuration, and the parts it works with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from model.canary import CanaryConfig
from model.checkpoint import FileWriter
from model.cold_rows import ColdStores
from model.device import DeviceName
from model.gate_config import GateConfig
from model.probe_set import Weights
from model.progressive import MetricsConfig
from model.ranks import Ranks
from model.row_store import RowStore
from model.source import ExampleMessage, ExampleSource
from model.store import SnapshotStore


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig:
    """How examples become steps, snapshots and checkpoints."""

    model_name: str = "main"
    """Name of the model line in the snapshot store."""
    seed: int = 0
    """Seed of the initial weights."""
    device: DeviceName = "auto"
    """Where the arithmetic of training runs: `auto` takes the first CUDA device where there is one, else the CPU. Ids,
    label policies' auxiliary heads and everything published are the host's."""
    batch_rows: int = 512
    """Rows (items) of a micro-batch, at least: whole messages are added until there are as many; at least 1."""
    max_wait_ms: int = 20
    """How long a row may wait for its micro-batch to fill; not used by `deterministic`; at least 1."""
    poll_messages: int = 64
    """Messages of one poll, at most; at least 1."""
    decode_ahead: int = 0
    """Messages that a thread of its own decodes while a micro-batch is learned, at most; 0: none. Made for a device
    that does the arithmetic, where this process has a core to spare; a `deterministic` run ends with the same bits."""
    deterministic: bool = False
    """Micro-batches depend on the log alone, so that every run over it ends with the same bits: no `max_wait_ms`, and
    partitions are merged by watermark, which waits for (and buffers beside) a partition that brings nothing. The bits
    also depend on the device and on the number of torch threads."""
    publish_interval_ms: int = 1_000
    """Time between snapshots while something is learned; at least 1."""
    full_every: int = 20
    """Every so many snapshots one is full; at least 1 (no deltas)."""
    checkpoint_interval_ms: int = 10_000
    """Time between checkpoints while something is learned; at least 1."""
    keep_checkpoints: int = 3
    """Checkpoints kept; at least 1."""
    max_skipped_in_row: int = 5
    """Stop with an error when so many micro-batches in a row were not finite; at least 1."""
    judged_share: float = 1.0
    """Share of the micro-batches that metrics, gate and canary look at, evenly spread; above 0, at most 1. Below 1 the
    lead of many ranks does not hold them up. Figures then rest on fewer labels; one that settles after its first
    emission counts where the log has its served score, or that emission was looked at."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """Windows of progressive validation."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What must be true of a version, and of the data behind it, before anybody may serve it."""
    canary: CanaryConfig = field(default_factory=CanaryConfig)
    """A lane of rankers that new versions serve first."""

    def __post_init__(self) -> None:
        if not self.model_name:
            raise ValueError("model_name: must not be empty")
        for name in (
            "batch_rows",
            "max_wait_ms",
            "poll_messages",
            "publish_interval_ms",
            "full_every",
            "checkpoint_interval_ms",
            "keep_checkpoints",
            "max_skipped_in_row",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        if not 0 < self.judged_share <= 1:
            raise ValueError(f"judged_share: {self.judged_share} is not allowed; above 0, at most 1")
        if self.decode_ahead < 0:
            raise ValueError(f"decode_ahead: {self.decode_ahead} is not allowed; at least 0")


def _ignore_dead_letter(message: ExampleMessage, error: str) -> None:
    """The default: a dead letter is counted and logged, and goes nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerParts:
    """What a trainer works with besides its configuration; everything may be left out."""

    source: ExampleSource | None = None
    """None: messages are handed in with `Trainer.train_message`."""
    store: SnapshotStore | None = None
    """None: nothing is published."""
    checkpoint_dir: Path | None = None
    """None: no checkpoints."""
    dead_letter: Callable[[ExampleMessage, str], None] = _ignore_dead_letter
    """Is given each message that cannot be decoded, and the reason: at least once each."""
    writer: FileWriter = field(default_factory=FileWriter)
    """What writes checkpoints."""
    ranks: Ranks = field(default_factory=Ranks.alone)
    """The ranks that train together; all but the lead have no store."""
    row_store: RowStore | None = None
    """Where rankers find rows that left memory; on the lead, beside its `store`."""
    cold_stores: ColdStores | None = None
    """Opens the store of rows that leave memory; None: all rows stay in memory, whatever `hot_rows` says."""
    weights: Weights = field(default_factory=dict)
    """Scenario or `default` -> production weight of each task over its scale: the gate's churn is that of the ranking.
    Empty: it is not judged."""
