"""The small log of `example_log` with scenarios in it that the schema does not list."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from model.config import ModelConfig
from model.growth import GrowthConfig
from tests.model.example_log import MODEL, SCHEMA, encode, slate

GROWING = replace(SCHEMA, unknown_scenario="add")
GROWTH = GrowthConfig(scenario_admission=20, open_from_rows=12, open_full_rows=90)
GROWING_MODEL: ModelConfig = replace(MODEL, growth=GROWTH)

Naming = Callable[[np.random.Generator, int], str | None]
"""From a slate's number to the scenario it is of; None: one of the listed ones."""


def deals_from(number: int, share: float = 0.4) -> Naming:
    """A scenario `deals` that appears in the middle."""
    return lambda rng, at: "deals" if rng.random() < share and at >= number else None


def growing_log(seed: int, num_messages: int, naming: Naming, *, first: int = 0) -> list[bytes]:
    """One partition: messages of three slates, event time rising by a second per slate."""
    rng = np.random.default_rng(seed)
    messages = []
    for message in range(num_messages):
        slates = [slate(rng, first + 3 * message + n, with_scores=False) for n in range(3)]
        for emission in slates:
            name = naming(rng, int(emission.impression.ts) // 1_000)
            emission.impression.scenario = name or emission.impression.scenario
        messages.append(encode(slates, GROWING))
    return messages
