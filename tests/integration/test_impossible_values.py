"""Clocks in the year 2099 and features that are no numbers, through codec, joiner and trainer to the snapshot."""

import msgspec
import numpy as np
import pytest
import torch

from freshrank.in_process import InProcessLoop
from model.trainer_config import TrainerConfig
from stream.codec import EventDecoder, encode
from stream.exceptions import DecodeError
from stream.join import JoinConfig
from stream.schema import Feedback, Impression
from tests.model.example_log import METRICS
from tests.model.gate_stream import EPOCH_MS, MODEL, SCHEMA, slate

YEAR_2099_MS = 4_086_000_000_000


def test_a_clock_in_2099_moves_no_watermark_and_no_model_goes_bad() -> None:
    torch.set_num_threads(1)
    config = TrainerConfig(batch_rows=64, metrics=METRICS, publish_interval_ms=1_000)
    loop = InProcessLoop(SCHEMA, JoinConfig(max_ahead_ms=200), MODEL, config, start_ms=EPOCH_MS)
    rng = np.random.default_rng(0)
    clock_ms = EPOCH_MS
    for number in range(400):
        clock_ms += 50
        shown = slate(rng, number, clock_ms).impression
        if number % 10 == 9:
            shown.ts = YEAR_2099_MS
        loop.observe(shown, clock_ms)
        feedback = Feedback(
            event_id=f"e{number}", request_id=shown.request_id, user_id=shown.user_id, item_id=shown.items.id[0],
            action="click", ts=shown.ts + 1,
        )  # fmt: skip
        loop.observe(feedback, clock_ms)
        assert loop.trainer.gauges.watermark_ms <= clock_ms + 200
    assert loop.core.counters.clock_ahead >= 40
    assert loop.trainer.stats.examples > 1_000, "the others are learned as ever"
    live = loop.trainer.publish()
    assert live is not None and live.watermark_ms <= clock_ms + 200
    assert all(torch.isfinite(tensor).all() for tensor in loop.trainer.learner.trained.serving_full().values())


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"1e999"])
def test_a_feature_that_is_no_number_is_a_dead_letter(value: bytes) -> None:
    good = slate(np.random.default_rng(0), 1, EPOCH_MS).impression
    wire = encode(good)
    assert isinstance(EventDecoder(SCHEMA).impression(wire), Impression)
    age = msgspec.json.encode(good.user["age"])
    with pytest.raises(DecodeError):
        EventDecoder(SCHEMA).impression(wire.replace(b'"age":' + age, b'"age":' + value))
