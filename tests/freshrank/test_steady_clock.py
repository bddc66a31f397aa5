"""A clock that follows the wall clock's steps and not its jumps."""

import logging

import pytest

from freshrank.steady_clock import BELIEVED_AFTER_MS, STEP_MS, SteadyClock, since_boot_ms

START_MS = 1_790_000_000_000
HOUR_MS = 3_600_000


class Clocks:
    """A wall clock that can be set, and a clock that cannot."""

    def __init__(self) -> None:
        self.elapsed_ms = 5_000
        self.ahead_ms = 0
        self.steady = SteadyClock(self.wall_ms, lambda: self.elapsed_ms)

    def wall_ms(self) -> int:
        return START_MS + self.elapsed_ms + self.ahead_ms

    def error_ms(self, *, after_ms: int) -> int:
        """Returns how far the clock under test is from the true time, so much later."""
        self.elapsed_ms += after_ms
        return self.steady.now_ms() - START_MS - self.elapsed_ms


def test_it_is_the_wall_clock_where_that_runs_true() -> None:
    clocks = Clocks()
    assert [clocks.error_ms(after_ms=after_ms) for after_ms in (0, 1, HOUR_MS)] == [0, 0, 0]


@pytest.mark.parametrize("ahead_ms", [STEP_MS + 1, -STEP_MS - 1, HOUR_MS, -HOUR_MS])
def test_a_jump_that_is_taken_back_leaves_no_trace(ahead_ms: int) -> None:
    clocks = Clocks()
    clocks.ahead_ms = ahead_ms
    assert [clocks.error_ms(after_ms=after_ms) for after_ms in (0, 100, BELIEVED_AFTER_MS - 101)] == [0, 0, 0]
    clocks.ahead_ms = 0
    assert clocks.error_ms(after_ms=BELIEVED_AFTER_MS) == 0


def test_a_jump_that_lasts_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    clocks.ahead_ms = HOUR_MS
    assert clocks.error_ms(after_ms=0) == 0
    assert clocks.error_ms(after_ms=BELIEVED_AFTER_MS - 1) == 0
    assert clocks.error_ms(after_ms=1) == HOUR_MS
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_two_short_jumps_do_not_add_up_to_one_that_lasts() -> None:
    clocks = Clocks()
    for ahead_ms in (HOUR_MS, 0, HOUR_MS):
        clocks.ahead_ms = ahead_ms
        assert clocks.error_ms(after_ms=BELIEVED_AFTER_MS // 2 + 1) == 0


def test_small_steps_are_followed_at_once() -> None:
    clocks = Clocks()
    for ahead_ms in (STEP_MS, 2 * STEP_MS, STEP_MS):
        clocks.ahead_ms = ahead_ms
        assert clocks.error_ms(after_ms=10) == ahead_ms


def test_time_since_boot_goes_on() -> None:
    before_ms = since_boot_ms()
    assert 0 < before_ms <= since_boot_ms()
