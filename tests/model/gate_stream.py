"""A steady stream of slates for the tests of the gate, and ways to poison it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model.gate_config import GateConfig
from model.optim import OptimConfig
from model.store import SnapshotStore
from model.trainer import Trainer
from model.trainer_config import TrainerConfig, TrainerParts
from stream.emission import Emission, LabelColumn
from stream.schema import Impression, Items, Served
from tests.model import example_log
from tests.model.example_log import METRICS, Clock

SCHEMA = replace(
    example_log.SCHEMA,
    tasks={name: replace(task, window_ms=2_000, policy="wait") for name, task in example_log.SCHEMA.tasks.items()},
)
MODEL = replace(example_log.MODEL, priors={"click": 0.15, "order": 0.05}, optim=OptimConfig(dense_lr=1e-3, row_lr=0.1))
Spoil = Callable[[Emission, np.random.Generator], Emission]
SLATES = 25
"""Slates of a message."""
MESSAGE_MS = 1_000
"""Processing and event time between messages."""
GATE = GateConfig(warm_up_rows=9_000, window_ms=10_000, min_positives=300, adopt_ms=120_000, freeze_after=3)
WEIGHTS = {"default": (1.0, 0.5)}
EPOCH_MS = 1_000_000


def slate(rng: np.random.Generator, number: int, at_ms: int) -> Emission:
    """A slate whose labels settle in the same second; a third of the items is liked."""
    picked = rng.choice(60, 6, replace=False)
    chance = np.where(picked % 3 == 0, 0.35, 0.05)
    chance = chance * np.where(rng.integers(400) % 2, 1.2, 0.8)
    clicked = (rng.random(6) < chance).astype(int)
    impression = Impression(
        request_id=f"r{number}",
        user_id=f"u{rng.integers(400)}",
        scenario=SCHEMA.scenarios[int(rng.random() < 0.3)],
        ts=at_ms,
        user={"city": ["lyon", "oslo", "rome"][rng.integers(3)], "age": float(rng.integers(20, 60))},
        context={"device": ["phone", "desk"][rng.integers(2)], "topics": ["a", "b"][: rng.integers(3)]},
        items=Items(
            id=[f"i{item}" for item in picked],
            features={
                "category": [f"c{item % 5}" for item in picked],
                "price": [float(1 + item) for item in picked],
                "tags": [["x", "y"][: item % 3] for item in picked],
            },
            scores={"click": [0.15] * 6, "order": [0.05] * 6},
        ),
        served=Served(snapshot=1),
    )
    ordered = clicked * (rng.random(6) < 0.3)
    columns = {
        "click": LabelColumn(["final"] * 6, clicked.tolist(), np.where(clicked, 5, -1).tolist()),
        "order": LabelColumn(["final"] * 6, ordered.astype(int).tolist(), np.where(ordered, 5, -1).tolist()),
    }
    return Emission(impression, list(range(6)), columns, at_ms + 4_000, at_ms + 4_000)


def messages(seed: int, spoil: Spoil | None = None, *, first: int = 0) -> Iterator[bytes]:
    """A message per second, for ever; slates of one second each."""
    rng = np.random.default_rng(seed)
    for second in range(first, 10**9):
        at_ms = EPOCH_MS + second * MESSAGE_MS
        slates = [slate(rng, second * SLATES + n, at_ms + n) for n in range(SLATES)]
        yield example_log.encode([spoil(one, rng) for one in slates] if spoil else slates, SCHEMA)


class Running:
    """A trainer on the stream, with the clock of the stream."""

    def __init__(
        self, *, gate: GateConfig = GATE, store: SnapshotStore | None = None, folder: Path | None = None,
        config: TrainerConfig | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.clock = Clock()
        self.clock.ms = EPOCH_MS + 5_000
        config = config or TrainerConfig(batch_rows=32, metrics=METRICS, publish_interval_ms=1_000, full_every=5)
        parts = TrainerParts(store=store, checkpoint_dir=folder, weights=WEIGHTS)
        self.trainer = Trainer(
            SCHEMA, replace(config, gate=gate, seed=seed), MODEL, now_ms=self.clock, parts=parts, config_hash="c"
        )
        self.offset = 0

    def feed(self, stream: Iterator[bytes], seconds: int) -> None:
        """Trains on so many messages, and publishes after each."""
        for _ in range(seconds):
            self.clock.ms += MESSAGE_MS
            self.trainer.train_message(next(stream), 0, self.offset)
            self.trainer.flush()
            self.offset += 1
            self.trainer.publish_if_due()


def flipped(share: float) -> Spoil:
    """Labels of clicks turned over."""

    def spoil(emission: Emission, rng: np.random.Generator) -> Emission:
        return _relabelled(emission, lambda labels: np.where(rng.random(len(labels)) < share, 1 - labels, labels))

    return spoil


def fewer(share: float) -> Spoil:
    """Clicks that are lost."""

    def spoil(emission: Emission, rng: np.random.Generator) -> Emission:
        return _relabelled(emission, lambda labels: labels * (rng.random(len(labels)) < share))

    return spoil


def bots(share: float, num_bots: int = 5) -> Spoil:
    """A few users who ask often and click everything."""

    def spoil(emission: Emission, rng: np.random.Generator) -> Emission:
        if rng.random() > share:
            return emission
        emission.impression.user_id = f"bot{rng.integers(num_bots)}"
        return _relabelled(emission, np.ones_like)

    return spoil


def constant(side: str, name: str, value: Any) -> Spoil:
    """A feature that is the same everywhere."""

    def spoil(emission: Emission, rng: np.random.Generator) -> Emission:
        of = emission.impression.items.features if side == "item" else getattr(emission.impression, side)
        of[name] = [value] * 6 if side == "item" else value
        return emission

    return spoil


def ahead(by_ms: int) -> Spoil:
    """Impressions of the future."""

    def spoil(emission: Emission, rng: np.random.Generator) -> Emission:
        emission.impression.ts += by_ms
        return emission

    return spoil


def _relabelled(emission: Emission, change: Callable[[np.ndarray], np.ndarray]) -> Emission:
    labels = change(np.array(emission.columns["click"].label)).astype(int)
    column = LabelColumn(["final"] * len(labels), labels.tolist(), np.where(labels, 5, -1).tolist())
    return replace_columns(emission, {**emission.columns, "click": column})


def replace_columns(emission: Emission, columns: dict[str, LabelColumn]) -> Emission:
    return Emission(emission.impression, emission.rows, columns, emission.trigger_ms, emission.watermark_ms)
