"""Which feedback a manifest names, and the times that go with it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from model.examples import ExampleDecoder
from model.feedback_sample import FeedbackSample
from model.snapshot import MAX_FEEDBACK_TIMES
from model.source import ExampleMessage, MemoryExampleSource
from model.store import MemorySnapshotStore
from tests.model.example_log import SCHEMA, Clock, new_trainer, partition_log
from tests.model.test_trainer import CONFIG, KEEP_ALL

LOG = {0: partition_log(seed=1, num_messages=12), 1: partition_log(seed=2, num_messages=8)}


def stamps(times_ms: Sequence[int]) -> list[list[int]]:
    return [[ms, ms + 1, 7] for ms in times_ms]


def test_sample_is_bounded_and_spread_out() -> None:
    sample = FeedbackSample()
    sample.add(np.arange(10), np.arange(10) + 1, 7)
    assert sample.stamps().tolist() == stamps(range(10))
    for start in range(0, 100_000, 1_000):
        sample.add(np.arange(start, start + 1_000), np.arange(start, start + 1_000) + 1, 7)
    kept = sample.stamps()[:, 0].tolist()
    assert len(kept) == MAX_FEEDBACK_TIMES
    assert kept == sorted(kept) and kept[-1] == 99_999
    assert sample.stamps().tolist() == stamps(kept), "the times of an action stay together"
    assert len(sample._stamps_N3) <= FeedbackSample._ROOM
    sample.clear()
    assert sample.stamps().tolist() == []


class StampedSource(MemoryExampleSource):
    """Says of each message when it was written."""

    def poll(self, max_messages: int, timeout_ms: int) -> list[ExampleMessage]:
        return [one._replace(written_ms=written_ms(one)) for one in super().poll(max_messages, timeout_ms)]


def written_ms(message: ExampleMessage) -> int:
    return 1_000 * (message.partition + 1) + message.offset


def test_each_action_has_the_times_of_its_own_message_and_step() -> None:
    store = MemorySnapshotStore(KEEP_ALL)
    config = replace(CONFIG, publish_interval_ms=1, batch_rows=7)  # batches of several messages, and messages cut up
    trainer = new_trainer(source=StampedSource(LOG), store=store, config=config, clock=Clock(step_ms=1))
    trainer.run(lambda: False)
    decoder = ExampleDecoder(SCHEMA, trainer.learner.encoder)
    expected = {
        (int(event_ms), written_ms(ExampleMessage(partition, offset, b"")))
        for partition, messages in LOG.items()
        for offset, message in enumerate(messages)
        for event_ms in decoder.decode(message).rows.feedback_ms_BT.ravel()
        if event_ms >= 0
    }
    manifests = [manifest for version in store.versions() if (manifest := store.manifest(version)) is not None]
    found = [pair for m in manifests for pair in zip(m.feedback_ms, m.feedback_joined_ms, strict=True)]
    assert set(found) == expected
    before_ms = 0
    for manifest in manifests:
        assert all(before_ms <= ms <= manifest.created_ms for ms in manifest.feedback_trained_ms)
        before_ms = manifest.created_ms
