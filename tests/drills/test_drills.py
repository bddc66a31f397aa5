"""What the drills rely on: the checker sees each mistake, alarms are raised for what happens, and users go on."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freshrank import launch
from freshrank.command import now_ms
from freshrank.config import load_config
from freshrank.scrape import Scrape
from freshrank.supervisor import Supervisor
from ranker.api import RankedItem, RankResponse
from tests.chaos.cluster import wait_for
from tests.drills.checker import Asked, Continuity, Rules, feedback_problems, rank_problems
from tests.drills.clock import MovableClock
from tests.drills.load import FEEDBACK, RANK, Reply, Users
from tests.drills.network import Network
from tests.drills.report import between, drill_lines, markdown, seen, wrong_answers
from tests.drills.services import RedisServer
from tests.drills.watch import alarms

REPO_ROOT = Path(__file__).parents[2]
ASKED = Asked(item_ids=["a", "b", "c"], scenario="home", size=2)
RULES = Rules(tasks=["click", "order"], scale={"order": 2.0})


def ranked(**changed: Any) -> RankResponse:
    """Returns a right answer to `ASKED`, or one with something changed."""
    scores = {"c": {"click": 0.5, "order": 0.2}, "a": {"click": 0.25, "order": 0.1}}
    items = [
        RankedItem(id=name, position=n, utility=of["click"] + 3 * of["order"] / 2, scores=of, propensity=1.0)
        for n, (name, of) in enumerate(scores.items())
    ]
    right = RankResponse(
        request_id="r1", items=items, snapshot=7, blender=0, weights={"click": 1.0, "order": 3.0}, fallback=None,
        model_age_ms=900, explore=False, scenario="home",
    )  # fmt: skip
    return msgspec.structs.replace(right, **changed)


def unranked(**changed: Any) -> RankResponse:
    """Returns a right answer of a ranker that has no model, or one with something changed."""
    items = [RankedItem(id=name, position=n, utility=None, scores={}, propensity=1.0) for n, name in enumerate("ab")]
    right = RankResponse(
        request_id="r2", items=items, snapshot=0, blender=0, weights={}, fallback=None, model_age_ms=None,
        explore=False, scenario=None, degraded=["no_model", "sequence"],
    )  # fmt: skip
    return msgspec.structs.replace(right, **changed)


def with_item(place: int, **changed: Any) -> list[RankedItem]:
    """Returns the items of a right answer, one of them changed."""
    items = ranked().items
    items[place] = msgspec.structs.replace(items[place], **changed)
    return items


def problems(answer: RankResponse) -> list[str]:
    return rank_problems(ASKED, RULES, 200, msgspec.json.encode(answer))[1]


def test_right_answers_have_no_problems() -> None:
    assert problems(ranked()) == []
    assert problems(ranked(degraded=["sequence", "snapshots"])) == []
    assert problems(unranked()) == []
    explored = [msgspec.structs.replace(item, propensity=None) for item in ranked().items]
    assert problems(ranked(explore=True, items=explored)) == []
    assert rank_problems(ASKED, RULES, 503, b"whatever a refusal says")[1] == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ranked(items=ranked().items[:1]), "1 items where 2"),
        (ranked(items=with_item(1, id="c")), "an item twice"),
        (ranked(items=with_item(1, id="stranger")), "no candidate"),
        (ranked(items=with_item(1, position=2)), "positions"),
        (ranked(items=with_item(0, propensity=None)), "propensity"),
        (ranked(items=with_item(0, utility=None)), "no finite number"),
        (ranked(items=with_item(0, utility=0.9)), "weighted sum"),
        (ranked(items=with_item(0, scores={"click": 1.5, "order": 0.2})), "no probability"),
        (ranked(items=with_item(0, scores={"click": 0.5})), "not one per task"),
        (ranked(items=ranked().items[::-1]), "do not descend"),
        (ranked(weights={"click": 1.0}), "weights"),
        (ranked(scenario="search"), "scored as search"),
        (ranked(snapshot=0), "no version"),
        (ranked(model_age_ms=None), "no version or age"),
        (ranked(degraded=["sequence", "sequence"]), "flag twice"),
        (ranked(degraded=["no_model"]), "though no model ranked it"),
        (unranked(items=unranked().items[::-1]), "order of the input"),
        (unranked(degraded=["sequence"]), "no flag"),
        (unranked(snapshot=3), "a version"),
    ],
)
def test_each_wrong_answer_is_told(answer: RankResponse, told: str) -> None:
    assert any(told in problem for problem in problems(answer)), problems(answer)


@pytest.mark.parametrize("body", [b"", b"{", b'{"request_id": "r1"}', b'{"utility": NaN}', b"\xff"])
def test_what_is_no_slate_is_told(body: bytes) -> None:
    assert "not a slate" in rank_problems(ASKED, RULES, 200, body)[1][0]


def test_a_not_a_number_is_told_wherever_it_stands() -> None:
    body = msgspec.json.encode(ranked()).replace(b"0.25", b"NaN")
    assert "not a slate" in rank_problems(ASKED, RULES, 200, body)[1][0]


def test_feedback_must_be_accepted_whole() -> None:
    assert feedback_problems(2, 202, b'{"accepted": 2}') == []
    assert feedback_problems(2, 202, b'{"accepted": 1}') == ["1 actions accepted of 2"]
    assert "not an answer" in feedback_problems(2, 202, b"{}")[0]
    assert feedback_problems(2, 503, b'{"error": "full"}') == []


def test_answers_must_fit_those_before() -> None:
    between_answers = Continuity()
    assert between_answers.problems(ranked(), 10_000, 10_010) == []
    assert between_answers.problems(ranked(), 10_200, 10_210) == [
        "a request id for the second time",
        "age 900 ms does not fit what version 7 said before",
    ]
    older = ranked(request_id="r3", snapshot=6, model_age_ms=2_000)
    assert between_answers.problems(older, 10_005, 10_020) == [], "it was under way when version 7 was first seen"
    older.request_id, older.model_age_ms = "r4", 2_210
    assert between_answers.problems(older, 10_220, 10_230) == ["version 6 after version 7"]
    assert between_answers.problems(unranked(), 10_240, 10_250) == ["version 0 after version 7"]
    between_answers.may_be_new = True
    assert between_answers.problems(unranked(request_id="r5"), 10_260, 10_270) == []
    future = ranked(request_id="r6", snapshot=8, model_age_ms=-5_000)
    assert between_answers.problems(future, 10_280, 10_290) == ["age -5000 ms does not fit what version 8 said before"]
    between_answers.trusts_clock = False
    assert between_answers.problems(ranked(request_id="r7", snapshot=9, model_age_ms=-5_000), 10_295, 10_299) == []


def test_alarms_are_raised_by_what_has_changed() -> None:
    ranker = "process_start_time_seconds 100.0\nfreshrank_ranker_store_unavailable_total {}\n"
    joiner = 'freshrank_joiner_watermark_age_seconds{{partition="0"}} {}\n'
    before = {"ranker": Scrape.parse(ranker.format(2.0)), "joiner": Scrape.parse(joiner.format(1.0))}
    assert alarms(before, before) == set()
    after = {"ranker": Scrape.parse(ranker.format(3.0)), "joiner": Scrape.parse(joiner.format(60.0))}
    assert alarms(before, after) == {"ranker: snapshot store gone", "joiner's watermark above 10 s"}
    again = {"ranker": Scrape.parse("process_start_time_seconds 130.0\n"), "joiner": None}
    assert alarms(before, again) == {"ranker was started again", "joiner does not answer"}


def test_a_stretch_of_time_in_numbers() -> None:
    replies = [Reply(RANK, n / 10, n / 10 + 0.01 * (n + 1), 200, ["sequence"] if n < 3 else [], []) for n in range(10)]
    replies += [
        Reply(RANK, 0.5, 0.6, 0, [], []),
        Reply(FEEDBACK, 0.5, 0.6, 503, [], []),
        Reply(RANK, 5, 6, 500, [], []),
    ]
    replies += [Reply(RANK, 0.5, 0.51, 200, [], ["an item twice"])]
    users = seen(between(replies, 0.0, 1.0))
    assert (users["requests"], users["feedback"], users["unanswered"], users["wrong"]) == (12, 1, 1, 1)
    assert users["errors"] == {"503": 1}
    assert users["degraded"] == {"sequence": 3}
    assert users["max_ms"] == 100.0
    assert wrong_answers(replies) == ["an item twice (1 times)"]
    row = {
        "name": "n", "what": "w", "recovered_s": None, "missing_until_s": {}, "alarms": {"late": 3.0, "first": 1.0},
        "problems": ["p"], "users": {"before": users, "during": users, "after": seen([])},
    }  # fmt: skip
    text = "\n".join([*drill_lines(row), *markdown([row])])
    for told in ("FAILED", "never", "first (after 1.0 s)", "1 wrong", "1 x HTTP 503", "! p", "1 × 503"):
        assert told in text


def test_a_clock_can_be_moved(tmp_path: Path) -> None:
    path, monotonic_s = tmp_path / "clock", [0.0]
    path.write_text("0")
    clock = MovableClock(path, lambda: 5_000_000_000, lambda: monotonic_s[0])
    assert clock.time() == 5.0
    path.write_text("-3600")
    monotonic_s[0] = 0.2
    assert clock.time_ns() == -3_595_000_000_000


def test_users_go_on_while_redis_hangs_and_see_the_ranker_come_back(
    free_port: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest drill there is: no broker at all, Redis paused, the ranker killed."""
    monkeypatch.chdir(REPO_ROOT)
    redis, port = RedisServer(tmp_path / "redis", free_port(), Network()), free_port()
    places = {"redis.url": redis.url, "ranker.server.port": port, "kafka.bootstrap_servers": f"127.0.0.1:{free_port()}"}
    run = load_config(Path("configs/demo.yaml"), [f"{name}={value}" for name, value in places.items()])
    specs = [spec for spec in launch.specs(run) if spec.name == "ranker"]
    supervisor = Supervisor(specs, tmp_path, lambda: time.monotonic_ns() // 1_000_000)
    users = Users(run, f"127.0.0.1:{port}", 40.0, 0, now_ms)

    def answered() -> list[Reply]:
        return [reply for reply in users.replies if reply.path == RANK and reply.status == 200]

    def go_on(until: Callable[[], object]) -> bool:
        def look() -> object:
            supervisor.poll()
            return until()

        return wait_for(look, 60.0)

    supervisor.start()
    try:
        users.continuity.may_be_new = True
        users.start()
        assert go_on(lambda: len(answered()) > 20)
        redis.pause()
        assert go_on(lambda: "sequence" in answered()[-1].degraded)
        redis.resume()
        assert go_on(lambda: "sequence" not in answered()[-1].degraded)
        first = supervisor.status()[0].pid
        assert first is not None
        num_answered = len(answered())
        os.kill(first, signal.SIGKILL)
        assert go_on(lambda: supervisor.status()[0].num_restarts == 1 and len(answered()) > num_answered + 20)
    finally:
        users.close()
        supervisor.stop()
        redis.close()
    assert {reply.status for reply in users.replies if reply.path == RANK} <= {0, 200}
    assert wrong_answers(users.replies) == []
