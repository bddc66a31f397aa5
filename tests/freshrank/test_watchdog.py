"""A process whose work stands still is ended; one that works, or that was stopped for a while, is not."""

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from freshrank.exits import ExitCode
from freshrank.watchdog import Watchdog

REPO_ROOT = Path(__file__).parents[2]


def test_a_turn_that_takes_too_long_ends_it_once() -> None:
    ended: list[float] = []
    is_ended = threading.Event()

    def end(stood_still_s: float) -> None:
        ended.append(stood_still_s)
        is_ended.set()

    with Watchdog(lambda: False, 0.05, end, tick_s=0.01) as watchdog:
        assert not watchdog.should_stop()
        assert is_ended.wait(10)
    assert len(ended) == 1
    assert ended[0] >= 0.05


def test_turns_that_go_on_do_not_end_it() -> None:
    ended: list[float] = []
    pause = threading.Event()
    with Watchdog(lambda: True, 0.5, ended.append, tick_s=0.01) as watchdog:
        for _ in range(100):
            assert watchdog.should_stop()
            pause.wait(0.01)
    assert ended == []


def test_one_call_that_does_not_come_back_ends_it_though_the_turn_may_take_long() -> None:
    ended: list[float] = []
    is_ended = threading.Event()

    def end(stood_still_s: float) -> None:
        ended.append(stood_still_s)
        is_ended.set()

    with Watchdog(lambda: False, 3_600, end, call=lambda: 7, call_limit_s=0.05, tick_s=0.01):
        assert is_ended.wait(10)
    assert ended[0] >= 0.05


def test_many_calls_and_none_at_all_do_not_end_it() -> None:
    ended: list[float] = []
    pause = threading.Event()
    calls: Iterator[int | None] = itertools.chain(range(20), itertools.repeat(None))
    with Watchdog(lambda: False, 3_600, ended.append, call=lambda: next(calls), call_limit_s=0.05, tick_s=0.01):
        pause.wait(0.6)
    assert ended == []


def test_the_process_ends_with_a_sentence_and_its_code() -> None:
    program = "from freshrank.watchdog import end_process; end_process(120.0)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.BROKER_GONE
    assert done.stderr.startswith("freshrank: the Kafka client has not come back for 120 s: ending without commit")
