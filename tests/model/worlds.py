"""A small schema and random rows of it, for the tests of the model."""

import numpy as np

from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.features import RowColumns, SequenceColumns
from model.hinet_config import HiNetConfig
from model.labels import LabelBatch
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig, TaskConfig

CATEGORICAL = FeatureConfig(kind="categorical")
SCHEMA = SchemaConfig(
    scenarios=("home", "search", "deals"),
    tasks={
        "click": TaskConfig(action="click", window_ms=1_000),
        "order": TaskConfig(action="order", window_ms=5_000),
    },
    features=FeaturesConfig(
        user={"city": CATEGORICAL, "interests": FeatureConfig(kind="categorical", many=True)},
        item={
            "category": CATEGORICAL,
            "price": FeatureConfig(kind="numeric"),
            "tags": FeatureConfig(kind="categorical", many=True),
        },
        context={"device": CATEGORICAL},
    ),
)
TINY_NET = HiNetConfig(expert_hidden=6, expert_width=4, scenario_embedding=3, task_hidden=6, task_width=4, tower=(3,))


def tiny_config(**changes: object) -> ModelConfig:
    """Returns a model of a few hundred parameters."""
    return ModelConfig(**{"preset": "custom", "hinet": TINY_NET, "embedding": EmbeddingConfig(width=4)} | changes)


def columns(rng: np.random.Generator, num_requests: int, num_rows: int, *, num_ids: int = 30) -> RowColumns:
    """Returns random rows, some values missing."""

    def some(prefix: str, count: int, vocabulary: int) -> list[str | None]:
        return [f"{prefix}{n}" if n else None for n in rng.integers(0, vocabulary, count)]

    def lists(prefix: str, count: int) -> list[list[str]]:
        return [[f"{prefix}{n}" for n in rng.integers(0, 6, rng.integers(0, 4))] for _ in range(count)]

    lengths = rng.integers(0, 8, num_requests)
    return RowColumns(
        scenario=[SCHEMA.scenarios[i] for i in rng.choice(3, num_requests, p=[0.6, 0.3, 0.1])],
        user_id=[f"u{n}" for n in rng.integers(0, num_ids, num_requests)],
        item_id=[f"i{n}" for n in rng.integers(0, num_ids, num_rows)],
        request_index_B=np.sort(rng.integers(0, num_requests, num_rows)),
        position_B=np.arange(num_rows),
        user={"city": some("c", num_requests, 5), "interests": lists("t", num_requests)},
        context={"device": some("d", num_requests, 3)},
        item={
            "category": some("g", num_rows, 4),
            "price": np.where(rng.random(num_rows) < 0.1, np.nan, rng.exponential(30, num_rows)),
            "tags": lists("t", num_rows),
        },
        sequence=SequenceColumns(
            item_id=[[f"i{n}" for n in rng.integers(0, num_ids, length)] for length in lengths],
            action=[["click", "order", "hide"][:length] + ["click"] * (length - 3) for length in lengths.tolist()],
        ),
    )


def labels(rng: np.random.Generator, num_rows: int) -> LabelBatch:
    """Returns random labels, some masked."""
    return LabelBatch(
        label_BT=(rng.random((num_rows, 2)) < 0.3).astype(np.float32),
        mask_BT=rng.random((num_rows, 2)) < 0.9,
        weight_BT=rng.uniform(0.5, 2.0, (num_rows, 2)).astype(np.float32),
        first_BT=rng.random((num_rows, 2)) < 0.8,
    )
