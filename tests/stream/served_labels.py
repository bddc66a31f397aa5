"""Messages of `examples` with served scores, made by the joiner's own encoder."""

from collections.abc import Sequence

import numpy as np

from stream.emission import Emission, LabelColumn
from stream.examples import ExampleEncoder
from stream.join import JoinConfig
from stream.schema import Impression, Items, KindName, SchemaConfig, Served, TaskConfig
from stream.settled_labels import LABEL, Labels

WINDOW_MS, GRACE_MS = 1_000, 100
SCHEMA = SchemaConfig(
    scenarios=("home", "search"),
    tasks={
        "click": TaskConfig(action="click", window_ms=WINDOW_MS, policy="eager"),
        "order": TaskConfig(action="order", window_ms=WINDOW_MS, policy="wait"),
    },
)
ENCODER = ExampleEncoder(SCHEMA, JoinConfig(grace_ms=GRACE_MS))


def emission(
    *,
    at: int = 0,
    scenario: str = "home",
    version: int = 1,
    scores: Sequence[float | None] = (0.5,),
    labels: Sequence[int] = (0,),
    kind: KindName = "final",
    task: str = "click",
    watermark_ms: int = 0,
) -> Emission:
    """Returns the labels of one task for one slate."""
    num_items = len(labels)
    shown = Impression(
        f"r{at}", "u", scenario, at, Items([f"i{n}" for n in range(num_items)], scores={task: list(scores)}),  # type: ignore[dict-item]
        served=Served(snapshot=version),
    )  # fmt: skip
    delays = [10 if label else -1 for label in labels]
    column = LabelColumn([kind] * num_items, list(labels), delays)
    return Emission(shown, range(num_items), {task: column}, at, watermark_ms)


def message(*emissions: Emission) -> bytes:
    """Returns the emissions as one message."""
    (value,) = ENCODER.encode(emissions)
    return value


def served(scores: Sequence[float], labels: Sequence[int], *, version: int = 1, close_ms: int = 0) -> Labels:
    """Returns labels of one cell."""
    found = np.zeros(len(scores), LABEL)
    found["score"], found["label"], found["version"], found["close_ms"] = scores, labels, version, close_ms
    return found


LATER = 6
"""Messages after which a slate's window has closed in `random_log`."""


def random_log(seed: int, num_messages: int) -> list[bytes]:
    """Returns a partition's messages: three slates each, clicks at once and their negatives when the window closes."""
    rng = np.random.default_rng(seed)
    rows: list[list[Emission]] = [[] for _ in range(num_messages + LATER)]
    for number in range(num_messages):
        for place in range(3):
            scores = rng.beta(2, 6, 5)
            clicks, orders = rng.random(5) < scores, rng.random(5) < scores / 4
            shared = {
                "at": 200 * number + 10 * place,
                "scenario": ("home", "search")[int(rng.integers(2))],
                "version": max(1, number // 4 + int(rng.integers(-1, 2))),
            }
            for to, is_wanted in ((number, clicks), (number + LATER, ~clicks)):
                if is_wanted.any():
                    wanted = {"scores": scores[is_wanted], "labels": clicks[is_wanted].astype(int)}
                    rows[to].append(emission(**shared, **wanted, watermark_ms=200 * to))
            closed_ms = 200 * (number + LATER)
            rows[number + LATER].append(
                emission(**shared, task="order", scores=scores / 4, labels=orders.astype(int), watermark_ms=closed_ms)
            )
    return [message(*emissions) for emissions in rows if emissions]
