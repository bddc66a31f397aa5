"""The health of a process: its loop turns, and the door says so even when it does not."""

from collections.abc import Callable

import httpx
import pytest

from freshrank.health import Heartbeat
from freshrank.metrics import Reading, serve_metrics


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_loop_is_well_while_it_turns_and_not_before_it_has_begun(clock: Clock) -> None:
    heartbeat = Heartbeat(lambda: False, limit_s=10, elapsed_s=clock)
    clock.now_s = 500.0  # a long start is not a turn
    assert heartbeat.problem() == "has not begun"
    heartbeat.should_stop()
    assert heartbeat.problem() is None
    clock.now_s += 10.0
    assert heartbeat.problem() is None
    clock.now_s += 1.0
    assert heartbeat.problem() == "has stood still for 11 s"
    heartbeat.should_stop()
    assert heartbeat.problem() is None


@pytest.mark.parametrize("answer", [True, False])
def test_loop_is_told_what_it_asks(answer: bool) -> None:
    assert Heartbeat(lambda: answer).should_stop() is answer


def test_door_tells_health_beside_the_metrics(free_port: Callable[[], int], clock: Clock) -> None:
    heartbeat = Heartbeat(lambda: False, limit_s=10, elapsed_s=clock)
    address = f"127.0.0.1:{free_port()}"
    serve_metrics("joiner", address, lambda: [Reading("freshrank_joiner_commits_total", 5)], heartbeat.problem)

    def health() -> tuple[int, str]:
        answer = httpx.get(f"http://{address}/healthz", trust_env=False)
        return answer.status_code, answer.text

    assert health() == (503, "has not begun\n")
    heartbeat.should_stop()
    assert health() == (200, "ok\n")
    assert "freshrank_joiner_commits_total 5.0" in httpx.get(f"http://{address}/metrics", trust_env=False).text
    clock.now_s += 60.0
    assert health() == (503, "has stood still for 60 s\n")
