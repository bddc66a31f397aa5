"""Networks in worlds of conflicting tasks and shifted scenarios, judged against the truth behind the labels.

Every world is another one; in each, all networks see the same rows in the same order, with the same embeddings and as
many dense parameters as HiNet with the given widths (within a tenth). Each learns at the rate that suits it best in a
world of its own, before those that count. `truth` is judged too: what its labels leave unexplained, nobody can explain,
so `excess` is a network's NE minus the truth's.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from freshrank.compare_data import CompareBatch, CompareData
from freshrank.compare_metrics import Report, paired, summary
from freshrank.compare_models import equal_inputs
from freshrank.compare_run import CompareConfig, Comparison, PassReport, judged_report
from freshrank.peers import PEERS
from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.features import EncodingConfig, FeatureEncoder, RowColumns
from model.hinet_config import HiNetConfig
from model.labels import LabelBatch
from model.optim import OptimConfig
from sim.conflict_world import ConflictRows, ConflictWorld, ConflictWorldConfig
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig, TaskConfig

TRUTH = "truth"
TUNING_SEED = 1_000_000
"""The world in which learning rates are chosen; none of those that count."""
MODELS = (
    "hinet", "hinet:san=none", "hinet:hierarchy=false:san=none", "ple", "mmoe", "attention_mmoe", "shared_bottom",
    "star", "hmoe", "aesm2", "pepnet",
)  # fmt: skip
EXPECTED = (
    ("hinet", "ple"), ("hinet", "mmoe"), ("hinet", "shared_bottom"), ("ple", "shared_bottom"),
    ("mmoe", "shared_bottom"), ("star", "shared_bottom"), ("hinet", "hinet:san=none"),
)  # fmt: skip
"""What the papers claim: the first is not worse than the second."""
_CATEGORICAL = FeatureConfig(kind="categorical")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStudyConfig:
    """What is compared, and in which worlds."""

    models: tuple[str, ...] = MODELS
    worlds: int = 5
    """Worlds, each drawn from a seed of its own; at least 1."""
    rows: int = 100_000
    """Rows of each world; at least 1."""
    batch_rows: int = 256
    """Rows of a micro-batch; at least 1."""
    dense_lrs: tuple[float, ...] = (1e-3, 3e-3)
    """Learning rates of the network among which each model chooses; at least one."""
    world: ConflictWorldConfig = field(default_factory=ConflictWorldConfig)

    def __post_init__(self) -> None:
        for name in ("worlds", "rows", "batch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        if not self.dense_lrs:
            raise ValueError("dense_lrs: none is not allowed; at least one")
        for name in CompareConfig(models=self.models).models:
            if name.partition(":")[0] in PEERS:
                raise ValueError(f"models: {name} is not allowed; only networks, whose sizes can be made equal")


def model_config(world: ConflictWorldConfig, dense_lr: float = 1e-3) -> ModelConfig:
    """Returns the model whose widths are the budget: HiNet at half the widths of `small`."""
    return ModelConfig(
        preset="custom",
        hinet=HiNetConfig(expert_hidden=64, expert_width=32, task_hidden=64, task_width=32, tower=(32,)),
        encoding=EncodingConfig(history_length=0, admission_ids=1),
        embedding=EmbeddingConfig(width=8),
        optim=OptimConfig(dense_lr=dense_lr, row_lr=0.2),
        priors=dict(zip(conflict_schema(world).tasks, world.base_rates, strict=True)),
    )


def study_networks(
    config: NetworkStudyConfig,
    on_pass: Callable[[int | None, float, PassReport], None] = lambda world, rate, one: None,
    cpu_s: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """Returns the figures over worlds, progressive: over the second half of each world's rows, NE beside the truth's.

    `on_pass` is given each pass: the world (None while rates are chosen), the learning rate, the figures.

    Raises:
        ValueError: a model that is unknown or cannot be brought to the budget.
    """
    by_model: dict[str, list[Report]] = {name: [] for name in (TRUTH, *config.models)}
    parameters: dict[str, int | None] = {}

    def run(data: CompareData, seed: int | None, name: str, dense_lr: float) -> Report:
        passes: list[PassReport] = []
        compared = CompareConfig(models=(name,), seeds=1, holdout=0)
        Comparison(data, model_config(config.world, dense_lr), compared, cpu_s).run(name, passes.append)
        if any(cells["all"]["ne"] is None for cells in passes[0].progressive.values()):
            raise ValueError(f"rows: {config.rows} is not allowed; so many that a task has both kinds of labels")
        on_pass(seed, dense_lr, passes[0])
        parameters[name] = passes[0].num_weights
        return passes[0].progressive

    rates = dict.fromkeys(config.models, config.dense_lrs[0])
    if len(config.dense_lrs) > 1:
        data, _ = conflict_data(config, TUNING_SEED)
        for name in config.models:
            mean_ne = {rate: _mean_ne(run(data, None, name, rate)) for rate in config.dense_lrs}
            rates[name] = min(config.dense_lrs, key=mean_ne.__getitem__)
    for seed in range(config.worlds):
        data, truth = conflict_data(config, seed)
        by_model[TRUTH].append(judged_report(data.schema, data.batches, truth))
        for name in config.models:
            by_model[name].append(run(data, seed, name, rates[name]))
    return {
        "worlds": config.worlds,
        "rows": config.rows,
        "models": {name: summary(reports) for name, reports in by_model.items()},
        "excess": {name: paired(reports, by_model[TRUTH]) for name, reports in by_model.items() if name != TRUTH},
        "expected": [
            {"better": one, "other": other, "difference": paired(by_model[one], by_model[other])}
            for one, other in EXPECTED
            if one in by_model and other in by_model
        ],
        "params": parameters,
        "dense_lr": rates,
    }


def conflict_schema(world: ConflictWorldConfig) -> SchemaConfig:
    """Returns the schema of a world's rows."""
    return SchemaConfig(
        scenarios=tuple(f"scenario-{index}" for index in range(len(world.scenario_shares))),
        tasks={
            f"task-{index}": TaskConfig(action=f"task-{index}", window_ms=1_000)
            for index in range(len(world.base_rates))
        },
        features=FeaturesConfig(
            user={f"u{index}": _CATEGORICAL for index in range(len(world.num_user_values))},
            item={f"i{index}": _CATEGORICAL for index in range(len(world.num_item_values))},
        ),
    )


def conflict_data(config: NetworkStudyConfig, seed: int) -> tuple[CompareData, Sequence[np.ndarray[Any, Any]]]:
    """Returns the rows of a world as all models get them, and per batch the true logits, [B, T]."""
    schema = conflict_schema(config.world)
    encoder = FeatureEncoder(schema, equal_inputs(model_config(config.world)).encoding)
    batches: list[CompareBatch] = []
    truth = []
    for rows in ConflictWorld(config.world, seed).rows(config.rows, batch_rows=config.batch_rows):
        is_judged = len(batches) * config.batch_rows >= config.rows // 2
        on_BT = np.ones(rows.label_BT.shape, np.bool_)
        batches.append(
            CompareBatch(
                encoded=encoder.encode_columns(_columns(rows, schema)),
                labels=LabelBatch(
                    label_BT=rows.label_BT, mask_BT=on_BT, weight_BT=on_BT.astype(np.float32), first_BT=on_BT
                ),
                judged_BT=on_BT & is_judged,
                user_B=rows.user_B,
            )
        )
        truth.append(np.log(rows.probability_BT / (1 - rows.probability_BT)).astype(np.float32))
    return CompareData(schema=schema, fields=encoder.fields, batches=batches), truth


def _columns(rows: ConflictRows, schema: SchemaConfig) -> RowColumns:
    def values(values_BF: np.ndarray[Any, Any], names: Sequence[str]) -> dict[str, list[str]]:
        return {name: values_BF[:, place].astype(str).tolist() for place, name in enumerate(names)}

    return RowColumns(
        scenario=[schema.scenarios[index] for index in rows.scenario_B],
        user_id=rows.user_B.astype(str).tolist(),
        item_id=rows.item_B.astype(str).tolist(),
        request_index_B=np.arange(len(rows.scenario_B)),
        user=values(rows.user_values_BF, list(schema.features.user)),
        item=values(rows.item_values_BF, list(schema.features.item)),
    )


def _mean_ne(report: Report) -> float:
    return float(np.mean([cells["all"]["ne"] for cells in report.values()]))
