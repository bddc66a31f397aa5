"""Requests go first, and not for ever."""

import threading
import time

import pytest

from ranker.right_of_way import RightOfWay
from tests.ranker.given import DEADLINE_S


def test_nobody_waits_for_nobody() -> None:
    RightOfWay(time.monotonic, patience_s=10 * DEADLINE_S).patience()()


@pytest.mark.parametrize("num_requests", [1, 2])
def test_work_beside_goes_on_when_the_last_request_is_answered(num_requests: int) -> None:
    right_of_way = RightOfWay(time.monotonic, patience_s=10 * DEADLINE_S)
    for _ in range(num_requests):
        right_of_way.__enter__()
    gone_on = threading.Event()
    give_way = right_of_way.patience()

    def work() -> None:
        give_way()
        gone_on.set()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(num_requests):
        assert not gone_on.wait(0.02)
        right_of_way.__exit__(None, None, None)
    assert gone_on.wait(DEADLINE_S)
    thread.join()


def test_a_request_that_fails_is_over_too() -> None:
    right_of_way = RightOfWay(time.monotonic, patience_s=10 * DEADLINE_S)
    with pytest.raises(ZeroDivisionError), right_of_way:
        raise ZeroDivisionError
    right_of_way.patience()()


def test_patience_is_spent_once_over_all_steps() -> None:
    now_s = [0.0]
    right_of_way = RightOfWay(lambda: now_s[0], patience_s=0.01)
    with right_of_way:
        give_way = right_of_way.patience()
        now_s[0] = 5.0
        thread = threading.Thread(target=give_way)
        thread.start()
        while thread.is_alive():
            now_s[0] += 0.004
            thread.join(0.01)
        give_way()  # the clock stands still: with patience left this would wait for good
