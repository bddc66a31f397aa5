"""Small logs of any label policy with the truth known: what the joiner's table says goes out when, no joiner needed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.features import EncodingConfig
from model.hinet_config import HiNetConfig
from model.losses import LossConfig
from model.optim import OptimConfig
from model.progressive import MetricsConfig
from model.trainer_config import TrainerConfig
from stream.emission import Emission, LabelColumn
from stream.examples import ExampleEncoder
from stream.join import JoinConfig
from stream.policy import POLICIES
from stream.schema import (
    OBSERVING_POLICIES,
    FeatureConfig,
    FeaturesConfig,
    Impression,
    Items,
    KindName,
    PolicyName,
    SchemaConfig,
    TaskConfig,
)

OBSERVE_MS, WINDOW_MS, GRACE_MS = 10_000, 60_000, 2_000
TASK = "order"
SHARE = {"a": 0.1, "b": 0.2, "c": 0.35, "d": 0.6}
"""True P(y=1) by category."""
EARLY = {"a": 0.7, "b": 0.4, "c": 0.6, "d": 0.5}
"""Share of the positives that come before the early look."""


def schema_of(**policies: PolicyName) -> SchemaConfig:
    """One task per policy."""
    return SchemaConfig(
        scenarios=("home",),
        tasks={
            name: TaskConfig(
                action=name,
                window_ms=WINDOW_MS,
                policy=policy,
                observe_ms=OBSERVE_MS if policy in OBSERVING_POLICIES else None,
            )
            for name, policy in policies.items()
        },
        features=FeaturesConfig(item={"category": FeatureConfig(kind="categorical")}),
    )


CONFIG = TrainerConfig(batch_rows=64, metrics=MetricsConfig(cohort_ms=5_000))
MODEL = ModelConfig(
    preset="custom",
    hinet=HiNetConfig(expert_hidden=16, expert_width=8, task_hidden=16, task_width=8, tower=(8,)),
    encoding=EncodingConfig(user_id=False, item_id=False, history_length=0),
    embedding=EmbeddingConfig(width=8),
    loss=LossConfig(aux_min_positives=300),
    optim=OptimConfig(dense_lr=5e-3),
)


@dataclass(frozen=True)
class Slate:
    """One slate with its whole future."""

    impression: Impression
    delay_ms: dict[str, np.ndarray]
    """By task: of each item's first feedback, -1 for none within the window."""


def slates(
    seed: int,
    number: int,
    tasks: Sequence[str] = (TASK,),
    *,
    every_ms: int = 500,
    start_ms: int = 1_000,
    num_items: int = 4,
    scores: float | None = None,
) -> list[Slate]:
    """Slates at an even pace, items of random categories, outcomes as `SHARE` and `EARLY` say."""
    rng = np.random.default_rng(seed)
    result = []
    for n in range(number):
        category = rng.choice(list(SHARE), num_items)
        delays = {}
        for task in tasks:
            positive = rng.random(num_items) < [SHARE[c] for c in category]
            early = rng.random(num_items) < [EARLY[c] for c in category]
            when = np.where(
                early,
                rng.integers(0, OBSERVE_MS + 1, num_items),
                rng.integers(OBSERVE_MS + 1, WINDOW_MS + 1, num_items),
            )
            delays[task] = np.where(positive, when, -1)
        items = Items(
            id=[f"i{c}{k}" for k, c in enumerate(category)],
            features={"category": category.tolist()},
            scores={} if scores is None else {task: [scores] * num_items for task in tasks},
        )
        at_ms = start_ms + n * every_ms
        result.append(Slate(Impression(f"r{seed}-{n}", "u", "home", at_ms, items), delays))
    return result


def emissions(slate: Slate, schema: SchemaConfig) -> Iterable[Emission]:
    """What goes out for one slate, one trigger at a time."""
    for task, config in schema.tasks.items():
        policy, at_ms = POLICIES[config.policy], slate.impression.ts
        found: dict[tuple[int, KindName, int], list[int]] = {}
        delays = slate.delay_ms[task].tolist()
        for row, delay in enumerate(delays):
            is_early = config.observe_ms is not None and 0 <= delay <= config.observe_ms
            triggers: list[tuple[int, KindName | None, int]] = [(at_ms, policy.shown, 0)]
            if config.observe_ms is not None:
                look_ms = at_ms + config.observe_ms + GRACE_MS
                triggers.append((look_ms, policy.early_positive if is_early else policy.early_negative, int(is_early)))
            if delay >= 0 and not is_early:
                look_ms = at_ms + (config.observe_ms + GRACE_MS if config.observe_ms is not None else 0)
                triggers.append((max(at_ms + delay, look_ms), policy.positive, 1))
            close_ms = at_ms + config.window_ms + GRACE_MS
            close = policy.close_early_positive if is_early else policy.close_positive
            triggers.append((close_ms, close if delay >= 0 else policy.close_negative, int(delay >= 0)))
            for trigger_ms, kind, label in triggers:
                if kind is not None:
                    found.setdefault((trigger_ms, kind, label), []).append(row)
        for (trigger_ms, kind, label), rows in found.items():
            column = LabelColumn(
                [kind] * len(rows), [label] * len(rows), [delays[row] if label else -1 for row in rows]
            )
            yield Emission(slate.impression, rows, {task: column}, trigger_ms, trigger_ms)


def messages(log: Iterable[Slate], schema: SchemaConfig, *, until_ms: float = float("inf")) -> list[bytes]:
    """The stream in order of what triggered it, one partition; ends at `until_ms`."""
    out = (emission for slate in log for emission in emissions(slate, schema) if emission.trigger_ms <= until_ms)
    ordered = sorted(out, key=lambda emission: emission.trigger_ms)
    encoder = ExampleEncoder(schema, JoinConfig(grace_ms=GRACE_MS, batch_items=64))
    return encoder.encode(ordered)
