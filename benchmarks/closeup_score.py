"""How long does it take to score 500 candidates of a user whose last 100 actions are read one by one?

CPU time of `ServingModel.score` on an encoded request, one thread, 20 fields of width 16 of which 8 are the item's, a
history of 100 actions, 3 scenarios, 2 tasks; networks of their default sizes. `closeup.score` encodes the history once
per request (fusion `append`); peers, in the same run: fusion `early`, as published, which encodes it once per
candidate, and HiNet without and with the sequence's blocks.
"""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.harness import Figure, Rate, cpu_rate
from model.closeup import CloseupConfig
from model.config import ModelConfig
from model.features import EncodedBatch, EncodingConfig, RowColumns, SequenceColumns
from model.labels import LabelBatch
from model.learner import Learner
from model.sequence_blocks import SequenceBlocksConfig
from model.sequence_encoder import SequenceConfig
from model.serving import ServingModel
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig, TaskConfig

COMMAND = "python -m benchmarks.closeup_score"
NUM_CANDIDATES, NUM_ACTIONS, NUM_ITEMS = 500, 100, 5_000
CATEGORICAL = FeatureConfig(kind="categorical")
SCHEMA = SchemaConfig(
    scenarios=("home", "search", "deals"),
    tasks={name: TaskConfig(action=name, window_ms=60_000) for name in ("click", "order")},
    features=FeaturesConfig(
        user={f"u{n}": CATEGORICAL for n in range(5)},
        context={f"c{n}": CATEGORICAL for n in range(4)},
        item={f"i{n}": CATEGORICAL for n in range(6)},
    ),
)
ENCODING = EncodingConfig(history_length=NUM_ACTIONS, admission_ids=1)
EARLY = CloseupConfig(sequence=SequenceConfig(fusion="early"))
MODELS = {
    "closeup": ModelConfig(architecture="closeup", encoding=ENCODING),
    "early fusion": ModelConfig(architecture="closeup", preset="custom", closeup=EARLY, encoding=ENCODING),
    "HiNet": ModelConfig(encoding=ENCODING),
    "HiNet with sequence": ModelConfig(sequence=SequenceBlocksConfig(), encoding=ENCODING),
}


def request(rng: np.random.Generator) -> RowColumns:
    """Returns one user's candidates and full history."""

    def values(count: int, vocabulary: int) -> list[str]:
        return [str(n) for n in np.minimum(rng.zipf(1.3, count), vocabulary)]

    return RowColumns(
        scenario=["home"],
        user_id=values(1, 1_000),
        item_id=[f"item-{n}" for n in rng.choice(NUM_ITEMS, NUM_CANDIDATES, replace=False)],
        request_index_B=np.zeros(NUM_CANDIDATES, np.int64),
        user={f"u{n}": values(1, 100) for n in range(5)},
        context={f"c{n}": values(1, 20) for n in range(4)},
        item={f"i{n}": values(NUM_CANDIDATES, 1_000) for n in range(6)},
        sequence=SequenceColumns(
            item_id=[[f"item-{n}" for n in rng.integers(0, NUM_ITEMS, NUM_ACTIONS)]],
            action=[rng.choice(["click", "order", "hide"], NUM_ACTIONS).tolist()],
            age_ms=[np.sort(rng.integers(1, 86_400_000, NUM_ACTIONS)).tolist()],
        ),
    )


def served(config: ModelConfig) -> tuple[ServingModel, list[EncodedBatch]]:
    """Returns a model that has learned a few requests, and encoded requests whose scores were checked."""
    rng, learner = np.random.default_rng(0), Learner(SCHEMA, config, seed=0)
    on_BT = np.ones((NUM_CANDIDATES, 2), bool)
    for _ in range(5):
        label_BT = (rng.random((NUM_CANDIDATES, 2)) < 0.1).astype(np.float32)
        labels = LabelBatch(label_BT=label_BT, mask_BT=on_BT, weight_BT=on_BT.astype(np.float32), first_BT=on_BT)
        assert learner.learn(learner.encode(request(rng)), labels).skipped is None
    model = ServingModel.from_full(SCHEMA, config, learner.trained.serving_full())
    batches = [model.encode(request(rng)) for _ in range(4)]
    scores = model.score(batches[0])
    for row in (0, NUM_CANDIDATES - 1):  # alone a candidate gets what it gets among the others
        assert np.allclose(model.score(batches[0].take(slice(row, row + 1))), scores[row], atol=1e-5)
    assert scores.std() > 0
    return model, batches


def work_of(config: ModelConfig) -> Callable[[], int]:
    """Returns a run over several requests."""
    model, batches = served(config)
    return lambda: sum(bool(model.score(batch).any()) for batch in batches)


def cpu_ms(rate: Rate) -> float:
    """Returns CPU milliseconds per request."""
    return 1_000 / rate.per_cpu_s


def measure() -> dict[str, Figure]:
    """Returns `closeup.score`."""
    torch.set_num_threads(1)
    rates = {name: cpu_rate(work_of(config)) for name, config in MODELS.items()}
    ours = rates.pop("closeup")
    low, high = (1_000 / rate for rate in reversed(ours.per_cpu_s_range))
    return {
        "closeup.score": Figure(
            value=cpu_ms(ours),
            unit="CPU-ms per 500 candidates",
            ci=(low, high),
            command=COMMAND,
            peers={name: cpu_ms(rate) for name, rate in rates.items()},
            note="encoded request, history of 100 actions, 20 fields of 16, one thread",
        )
    }


if __name__ == "__main__":
    for key, one in measure().items():
        print(key, one.as_json())
