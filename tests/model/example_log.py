"""A small log of `examples` messages with something to learn in it, written by the joiner's own encoder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from model.admission import AdmissionConfig
from model.checkpoint import FileWriter
from model.cold_rows import ColdStores
from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.features import EncodingConfig
from model.hinet_config import HiNetConfig
from model.progressive import MetricsConfig
from model.ranks import Ranks
from model.source import ExampleSource
from model.store import SnapshotStore
from model.trainer import Trainer
from model.trainer_config import TrainerConfig, TrainerParts
from stream.emission import Emission, LabelColumn
from stream.examples import ExampleEncoder
from stream.join import JoinConfig
from stream.schema import (
    FeatureConfig,
    FeaturesConfig,
    Impression,
    Items,
    SchemaConfig,
    Sequence,
    Served,
    TaskConfig,
)

SCHEMA = SchemaConfig(
    scenarios=("home", "search"),
    tasks={
        "click": TaskConfig(action="click", window_ms=60_000),
        "order": TaskConfig(action="order", window_ms=60_000, policy="wait"),
    },
    features=FeaturesConfig(
        user={"city": FeatureConfig(kind="categorical"), "age": FeatureConfig(kind="numeric")},
        item={
            "category": FeatureConfig(kind="categorical"),
            "price": FeatureConfig(kind="numeric"),
            "tags": FeatureConfig(kind="categorical", many=True),
        },
        context={"device": FeatureConfig(kind="categorical"), "topics": FeatureConfig(kind="categorical", many=True)},
    ),
)
JOIN = JoinConfig()
MODEL = ModelConfig(
    preset="custom",
    hinet=HiNetConfig(
        num_shared_experts=1,
        num_scenario_experts=1,
        expert_hidden=8,
        expert_width=4,
        scenario_embedding=2,
        task_hidden=8,
        task_width=4,
        tower=(4,),
    ),
    encoding=EncodingConfig(history_length=4),
    embedding=EmbeddingConfig(width=4, admission=AdmissionConfig(counter_bits=14)),
)
METRICS = MetricsConfig(window_labels=200, window_buckets=4)


def slate(rng: np.random.Generator, number: int, *, num_items: int = 4, with_scores: bool = True) -> Emission:
    """One slate a second; items whose number is divisible by three are clicked often, the others seldom."""
    items = [f"i{item}" for item in rng.choice(30, num_items, replace=False)]
    liked = np.array([int(item[1:]) % 3 == 0 for item in items])
    clicked = rng.random(num_items) < np.where(liked, 0.8, 0.1)
    delay_ms = np.where(clicked, 1_000 + number, -1)
    scores = rng.uniform(0.05, 0.6, num_items).tolist()
    impression = Impression(
        request_id=f"r{number}",
        user_id=f"u{rng.integers(10)}",
        scenario=SCHEMA.scenarios[int(rng.random() < 0.3)],
        ts=1_000 * number,
        user={"city": "lyon", "age": 33.0 if number % 2 else None},
        context={"device": None, "topics": ["a", "b"][: number % 3]},
        items=Items(
            id=items,
            features={
                "category": [None, *("red" for _ in items[1:])],
                "price": [None, *rng.uniform(1, 9, num_items - 1).tolist()],
                "tags": [[], None, *(["x", "y"] for _ in items[2:])],
            },
            scores={"click": scores} if with_scores else {},
        ),
        served=Served(snapshot=7) if with_scores else None,
        sequence=Sequence(item_id=["i3", "i4"], action=["click", "order"], ts=[number, 0]),
    )
    columns = {
        "click": LabelColumn(["final"] * num_items, clicked.astype(int).tolist(), delay_ms.tolist()),
        "order": LabelColumn(["final" if number % 2 else "none"] * num_items, [0] * num_items, [-1] * num_items),
    }
    return Emission(impression, list(range(num_items)), columns, 1_000 * number + 500, 1_000 * number + 62_000)


def encode(slates: list[Emission], schema: SchemaConfig = SCHEMA) -> bytes:
    """One message."""
    [message] = ExampleEncoder(schema, JOIN).encode(slates)
    return message


def partition_log(seed: int, num_messages: int, *, first: int = 0) -> list[bytes]:
    """One partition: messages of one to five slates of two to six items, event time rising by a second per slate."""
    rng = np.random.default_rng(seed)
    messages = []
    for _ in range(num_messages):
        num_slates = int(rng.integers(1, 6))
        slates = [
            slate(rng, first + n, num_items=int(rng.integers(2, 7)), with_scores=bool(rng.random() < 0.7))
            for n in range(num_slates)
        ]
        first += num_slates
        messages.append(encode(slates))
    return messages


class Clock:
    """Processing time that a test moves; `step_ms` moves it at every look."""

    def __init__(self, step_ms: int = 0) -> None:
        self.ms = 1_000_000
        self._step_ms = step_ms

    def __call__(self) -> int:
        self.ms += self._step_ms
        return self.ms


def new_trainer(
    *,
    source: ExampleSource | None = None,
    store: SnapshotStore | None = None,
    checkpoint_dir: Path | None = None,
    config: TrainerConfig | None = None,
    clock: Callable[[], int] | None = None,
    schema: SchemaConfig = SCHEMA,
    model: ModelConfig = MODEL,
    dead_letters: list[tuple[int, int, str]] | None = None,
    writer: FileWriter | None = None,
    ranks: Ranks | None = None,
    cold_stores: ColdStores | None = None,
) -> Trainer:
    """A trainer on the small log; dead letters are appended as (partition, offset, error)."""
    found = dead_letters if dead_letters is not None else []
    return Trainer(
        schema,
        config or TrainerConfig(batch_rows=16, metrics=METRICS),
        model,
        now_ms=clock or Clock(),
        parts=TrainerParts(
            source=source,
            store=store,
            checkpoint_dir=checkpoint_dir,
            dead_letter=lambda message, error: found.append((message.partition, message.offset, error)),
            writer=writer or FileWriter(),
            ranks=ranks or Ranks.alone(),
            cold_stores=cold_stores,
        ),
        config_hash="c",
        run_id="run",
    )
