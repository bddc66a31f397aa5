"""Messages of `examples` in memory, as a joiner would have written them: needs neither a broker nor its client."""

import time

import numpy as np

from benchmarks.hinet_step import SCHEMA, SHARES
from stream.examples import ExampleEncoder
from stream.join import JoinConfig, JoinCore
from stream.schema import Feedback, Impression, Items

SLATE = 20


def messages(num_slates: int, seed: int = 0, *, items_per_message: int = 512) -> list[bytes]:
    """Returns the messages of `examples` of so many slates, each joined as its window closes."""
    rng = np.random.default_rng(seed)
    config = JoinConfig(grace_ms=0, out_of_orderness_ms=0, max_ahead_ms=0, batch_items=items_per_message)
    core, encoder = JoinCore(SCHEMA, config), ExampleEncoder(SCHEMA, config)
    start_ms = time.time_ns() // 1_000_000 - 3_600_000

    def values(vocabulary: int, count: int) -> list[str]:
        return [str(n) for n in np.minimum(rng.zipf(1.3, count), vocabulary)]

    found: list[bytes] = []
    emissions = []
    num_clicks = 0
    for number in range(num_slates):
        ts, user = start_ms + 10 * number, values(100_000, 1)[0]
        ids = [f"{item}-{place}" for place, item in enumerate(values(50_000, SLATE))]
        slate = Impression(f"r{number}", user, SCHEMA.scenarios[rng.choice(3, p=SHARES)], ts, Items(ids))
        slate.items.features = {name: values(1_000, SLATE) for name in SCHEMA.features.item}
        slate.user = {name: values(100, 1)[0] for name in SCHEMA.features.user}
        slate.context = {name: values(20, 1)[0] for name in SCHEMA.features.context}
        emissions += core.advance(ts - 1) + core.observe_impression(slate, number)
        for place in np.flatnonzero(rng.random(SLATE) < 0.1).tolist():
            click = Feedback(f"r{number}", user, ids[place], "click", ts, event_id=f"{number}/{place}")
            emissions += core.observe_feedback(click, num_clicks)
            num_clicks += 1
        if number % 200 == 199:
            found += encoder.encode(emissions)
            emissions = []
    emissions += core.advance(ts + SCHEMA.max_window_ms + 1)
    return found + encoder.encode(emissions)
