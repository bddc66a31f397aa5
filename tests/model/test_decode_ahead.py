"""Messages decoded ahead: the same order, the same bits, the same errors in their places, and an end of the thread."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from model.decode_ahead import DecodeAhead
from model.examples import DecodedExamples
from model.exceptions import ExampleError
from model.source import ExampleMessage, MemoryExampleSource
from model.trainer import Trainer
from tests.model.example_log import Clock, new_trainer
from tests.model.test_resume import EVERY_BATCH, LOG, after_rounds, assert_same_bits, deterministic, never
from tests.model.train_child import CONFIG

VALUES = [f"m{n}".encode() for n in range(10)]


class Decoder:
    """Takes its time where it is told to, and does not like some messages."""

    def __init__(self, *, bad: tuple[bytes, ...] = ()) -> None:
        self.began: list[bytes] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._bad = bad

    def decode(self, value: bytes) -> DecodedExamples:
        self.began.append(value)
        assert self.may_go_on.wait(10)
        if value in self._bad:
            raise ExampleError(f"{value!r} is bad")
        return value  # type: ignore[return-value]  # whatever is decoded is only passed on


def ahead_of(decoder: Decoder, max_messages: int = 4, log: dict[int, list[bytes]] | None = None) -> DecodeAhead:
    ahead = DecodeAhead(MemoryExampleSource(log or {0: VALUES}), decoder.decode, max_messages=max_messages)
    ahead.seek({})
    return ahead


def drained(ahead: DecodeAhead, max_messages: int = 3) -> list[ExampleMessage]:
    found: list[ExampleMessage] = []
    while set(ahead.finished()) < set(ahead.partitions()):
        found += ahead.poll(max_messages, 1)
    return found


def decoded(ahead: DecodeAhead, value: bytes) -> object:
    return ahead.decode(value)


def num_threads() -> int:
    return sum(thread.name.startswith("decode-ahead") for thread in threading.enumerate())


@pytest.mark.parametrize("max_messages", [1, 2, 100])
@pytest.mark.parametrize("poll_messages", [1, 3, 64])
def test_messages_come_as_the_source_gives_them(max_messages: int, poll_messages: int) -> None:
    log = {0: VALUES, 1: [b"", b"x", b""]}
    decoder = Decoder(bad=(b"x", b"m3"))
    ahead = ahead_of(decoder, max_messages, log)
    plain = MemoryExampleSource(log)
    plain.seek({})
    expected = plain.poll(1_000, 0)
    polled = drained(ahead, poll_messages)
    assert polled == expected
    decoder.began.clear()
    for message in polled:
        if message.value in (b"x", b"m3"):
            with pytest.raises(ExampleError, match="is bad"):
                ahead.decode(message.value)
        else:
            assert decoded(ahead, message.value) == message.value
    assert decoder.began == []  # each was decoded once, before it was asked for
    ahead.close()


def test_the_next_messages_are_decoded_while_nobody_asks() -> None:
    decoder = Decoder()
    ahead = ahead_of(decoder)
    first = ahead.poll(2, 1)
    assert [message.value for message in first] == VALUES[:1]
    second = ahead.poll(2, 1)
    assert [message.value for message in second] == VALUES[1:2]
    for _ in range(1_000):
        if decoder.began == VALUES[:4]:
            break
        threading.Event().wait(0.01)
    assert decoder.began == VALUES[:4]  # though only two were handed out
    ahead.close()


def test_no_more_is_held_than_allowed() -> None:
    decoder = Decoder()
    ahead = ahead_of(decoder, max_messages=3)
    for handed_out in range(1, len(VALUES) + 1):
        assert len(ahead.poll(1, 1)) == 1
        assert len(decoder.began) <= handed_out + 3
    assert ahead.finished() == [0]
    ahead.close()


def test_a_partition_is_finished_once_its_messages_are_handed_out() -> None:
    ahead = ahead_of(Decoder(), max_messages=100)
    assert len(ahead.poll(100, 1)) == 1 and ahead.finished() == []
    while not ahead.finished():
        ahead.poll(100, 1)
    assert ahead.poll(100, 1) == []
    ahead.close()


def test_what_was_decoded_ahead_is_dropped_by_a_seek() -> None:
    ahead = ahead_of(Decoder())
    ahead.poll(4, 1)
    ahead.seek({0: 5})
    assert [message.offset for message in drained(ahead)] == [5, 6, 7, 8, 9]
    ahead.close()


def test_a_message_that_nobody_asked_for_is_passed_over_and_a_strange_one_is_decoded_here() -> None:
    decoder = Decoder()
    ahead = ahead_of(decoder)
    polled = drained(ahead)
    assert [decoded(ahead, value) for value in (polled[4].value, b"strange")] == [VALUES[4], b"strange"]
    assert decoder.began[-1] == b"strange"
    ahead.close()


def test_closing_waits_for_the_message_at_hand_and_drops_the_others() -> None:
    decoder = Decoder()
    ahead = ahead_of(decoder, max_messages=10)
    ahead.poll(1, 1)
    decoder.may_go_on.clear()
    waiting = threading.Thread(target=ahead.poll, args=(9, 1))
    waiting.start()
    while len(decoder.began) < 2:
        threading.Event().wait(0.01)
    closing = threading.Thread(target=ahead.close)
    closing.start()
    decoder.may_go_on.set()
    closing.join(10)
    waiting.join(10)
    assert not closing.is_alive() and num_threads() == 0


def ahead_config(max_messages: int) -> Trainer:
    return deterministic(None, replace(EVERY_BATCH, decode_ahead=max_messages))


@pytest.fixture(scope="module")
def plain() -> Trainer:
    trainer = deterministic(None)
    trainer.run(never)
    return trainer


def test_a_trainer_ends_with_the_same_bits(plain: Trainer) -> None:
    ahead = ahead_config(7)
    ahead.run(never)
    assert_same_bits(ahead, plain)
    assert ahead.stats.dead_letters == plain.stats.dead_letters == 2 and num_threads() == 0


def test_a_trainer_that_was_stopped_goes_on_where_it_was(plain: Trainer, tmp_path: Path) -> None:
    config = replace(EVERY_BATCH, decode_ahead=5)
    deterministic(tmp_path, config).run(after_rounds(20))
    resumed = deterministic(tmp_path, config)
    resumed.run(never)
    assert_same_bits(resumed, plain)


def test_dead_letters_come_once_each_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[int, list[tuple[int, int]]] = {}
    for max_messages in (0, 6):
        letters = found.setdefault(max_messages, [])
        trainer = new_trainer(
            source=MemoryExampleSource(LOG),
            checkpoint_dir=None,
            config=replace(CONFIG, decode_ahead=max_messages),
            clock=Clock(step_ms=1),
        )
        monkeypatch.setattr(
            trainer._intake,
            "_dead_letter",
            lambda message, _, to=letters: to.append((message.partition, message.offset)),
        )
        trainer.run(never)
    assert sorted(found[6]) == sorted(found[0]) == [(0, 4), (1, 0)]


def test_a_failure_ends_the_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = ahead_config(10)

    def fail(*_: object) -> None:
        raise RuntimeError("no step today")

    monkeypatch.setattr(trainer.learner, "learn", fail)
    with pytest.raises(RuntimeError, match="no step today"):
        trainer.run(never)
    assert num_threads() == 0


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="decode_ahead: -1 is not allowed; at least 0"):
        replace(CONFIG, decode_ahead=-1)
