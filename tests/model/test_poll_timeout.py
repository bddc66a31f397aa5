"""How long the trainer's poll waits: never past what is due."""

from dataclasses import replace

import pytest

from model.source import ExampleMessage, MemoryExampleSource
from model.store import MemorySnapshotStore
from tests.model.example_log import Clock, new_trainer, partition_log
from tests.model.test_trainer import CONFIG

MESSAGES = partition_log(seed=1, num_messages=12)


class WaitingSource(MemoryExampleSource):
    """Brings a message at chosen times, and lets a poll that finds nothing take as long as it may."""

    def __init__(self, clock: Clock, arrivals_ms: dict[int, bytes]) -> None:
        super().__init__({0: []}, ends=False)
        self._clock, self._began_ms = clock, clock.ms
        self._arrivals_ms = arrivals_ms
        self.timeouts_ms: list[int] = []

    def poll(self, max_messages: int, timeout_ms: int) -> list[ExampleMessage]:
        self.timeouts_ms.append(timeout_ms)
        end_ms = self._clock.ms + timeout_ms
        for after_ms in sorted(self._arrivals_ms):
            if self._began_ms + after_ms <= end_ms:
                self._clock.ms = max(self._clock.ms, self._began_ms + after_ms)
                self.append(0, self._arrivals_ms.pop(after_ms))
                return super().poll(max_messages, timeout_ms)
        self._clock.ms = end_ms
        return []


@pytest.mark.parametrize(("deterministic", "steps_ms"), [(False, [100]), (True, [])])
def test_rows_are_learned_when_they_have_waited_and_not_a_poll_later(deterministic: bool, steps_ms: list[int]) -> None:
    clock = Clock()
    source = WaitingSource(clock, {0: MESSAGES[0], 60: MESSAGES[1]})
    config = replace(CONFIG, batch_rows=1_000, max_wait_ms=100, deterministic=deterministic)
    trainer = new_trainer(source=source, config=config, clock=clock)
    began_ms, seen = clock.ms, []

    def look() -> bool:
        if trainer.stats.steps > len(seen):
            seen.append(clock.ms - began_ms)
        return clock.ms - began_ms > 500

    trainer.run(look)
    assert seen == steps_ms
    assert min(source.timeouts_ms) >= 1 and max(source.timeouts_ms) == 100


def test_snapshot_that_is_due_does_not_wait_for_a_message() -> None:
    clock, store = Clock(), MemorySnapshotStore()
    source = WaitingSource(clock, {0: MESSAGES[0], 10: MESSAGES[1]})
    config = replace(CONFIG, batch_rows=1, max_wait_ms=1_000, publish_interval_ms=300)
    trainer = new_trainer(source=source, config=config, store=store, clock=clock)
    began_ms = clock.ms
    trainer.run(lambda: clock.ms - began_ms > 2_000)
    manifests = [manifest for version in store.versions() if (manifest := store.manifest(version)) is not None]
    assert [manifest.created_ms - began_ms for manifest in manifests] == [0, 300]
