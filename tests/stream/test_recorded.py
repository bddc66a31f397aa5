"""Recorded logs: order, malformed lines, and what a folder must hold."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from stream.recorded import RecordedLog, RecordedLogWriter, ReplayOrder
from stream.schema import Feedback, Impression, Items, SchemaConfig, TaskConfig

SCHEMA = SchemaConfig(scenarios=("home",), tasks={"click": TaskConfig(action="click", window_ms=1_000)})


def shown(request_id: str, ts: int, **more: Any) -> dict[str, Any]:
    return {"request_id": request_id, "user_id": "u", "scenario": "home", "ts": ts, "items": {"id": ["a"]}, **more}


def click(request_id: str, ts: int, **more: Any) -> dict[str, Any]:
    return {"request_id": request_id, "user_id": "u", "item_id": "a", "action": "click", "ts": ts, **more}


def write(folder: Path, impressions: list[Any], feedback: list[Any], *, packed: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in (("impressions", impressions), ("feedback", feedback)):
        text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        if packed:
            (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / f"{name}.jsonl").write_text(text)
    return folder


def events(folder: Path, order: ReplayOrder = "ts") -> list[tuple[str, str, int]]:
    with RecordedLog(folder, SCHEMA, order=order) as log:
        return [(type(event).__name__, event.request_id, clock_ms) for event, clock_ms in log]


@pytest.mark.parametrize("packed", [False, True])
def test_both_files_are_merged_by_event_time(tmp_path: Path, packed: bool) -> None:
    write(
        tmp_path, [shown("r1", 10), shown("r3", 30), shown("r2", 20)], [click("r2", 25), click("r1", 15)], packed=packed
    )
    assert events(tmp_path) == [
        ("Impression", "r1", 10),
        ("Feedback", "r1", 15),
        ("Impression", "r2", 20),
        ("Feedback", "r2", 25),
        ("Impression", "r3", 30),
    ]


def test_of_equal_times_the_impression_comes_first_then_the_line_above(tmp_path: Path) -> None:
    write(tmp_path, [shown("r1", 10), shown("r2", 10)], [click("r2", 10), click("r1", 10)])
    assert [(kind, request) for kind, request, _ in events(tmp_path)] == [
        ("Impression", "r1"), ("Impression", "r2"), ("Feedback", "r2"), ("Feedback", "r1"),
    ]  # fmt: skip


def test_arrival_order_keeps_the_lines_and_uses_arrival_ts_where_it_stands(tmp_path: Path) -> None:
    write(
        tmp_path,
        [shown("r1", 10), shown("r2", 50, arrival_ts=60), shown("r3", 55)],
        [click("r1", 20, arrival_ts=58), click("r1", 12)],
    )
    assert events(tmp_path, "arrival") == [
        ("Impression", "r1", 10),
        ("Feedback", "r1", 58),
        ("Feedback", "r1", 58),  # no arrival of its own: not before the line above
        ("Impression", "r2", 60),
        ("Impression", "r3", 60),
    ]


def test_what_the_writer_writes_is_read_back(tmp_path: Path) -> None:
    impression = Impression("r1", "u1", "home", 5, Items(id=["a", "b"], propensity=[0.5, 0.5]))
    feedback = Feedback("r1", "u1", "b", "click", ts=9, event_id="e1")
    with RecordedLogWriter(tmp_path / "new") as writer:
        writer.write(impression)
        writer.write(feedback)
    with RecordedLog(tmp_path / "new", SCHEMA) as log:
        assert len(log) == 2
        assert [event for event, _ in log] == [impression, feedback]
        assert log.counters.total == 2


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RecordedLogWriter(tmp_path) as writer:
        writer.write(Feedback("r1", "u1", "b", "click", ts=9))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_malformed_lines_are_counted_and_written_down_and_the_rest_is_read(tmp_path: Path) -> None:
    bad = click("r1", 25)
    del bad["item_id"]
    write(
        tmp_path,
        [shown("r1", 10), "{torn\n", shown("r2", 20, scenario="attic"), "\n", shown("r3", 30)],
        [bad, click("r3", -1), click("r3", 31), '{"request_id": "r3", "us'],
    )
    with RecordedLog(tmp_path, SCHEMA) as log:
        assert [event.request_id for event, _ in log] == ["r1", "r3", "r3"]
        assert (log.counters.impressions, log.counters.feedback, log.counters.malformed) == (2, 1, 5)
        assert log.counters.total == len(log)
    letters = [json.loads(line) for line in (tmp_path / "dead-letter.jsonl").read_text().splitlines()]
    assert sorted((letter["file"], letter["line"]) for letter in letters) == [
        ("feedback.jsonl", 1),
        ("feedback.jsonl", 2),
        ("feedback.jsonl", 4),
        ("impressions.jsonl", 2),
        ("impressions.jsonl", 3),
    ]
    error_of = {(letter["file"], letter["line"]): letter["error"] for letter in letters}
    assert "item_id" in error_of["feedback.jsonl", 1]
    assert "attic" in error_of["impressions.jsonl", 3]


def test_without_a_malformed_line_there_is_no_dead_letter_file(tmp_path: Path) -> None:
    events(write(tmp_path, [shown("r1", 10)], []))
    assert not (tmp_path / "dead-letter.jsonl").exists()


def test_unknown_fields_are_counted_once_per_name_and_ignored(tmp_path: Path) -> None:
    write(tmp_path, [shown("r1", 10, weather="rain"), shown("r2", 11, weather="sun")], [])
    with RecordedLog(tmp_path, SCHEMA) as log:
        assert len(list(log)) == 2
        assert log.unknown_fields == {"weather": 2}


@pytest.mark.parametrize("packed", [False, True])
def test_empty_files_are_an_empty_log(tmp_path: Path, packed: bool) -> None:
    assert events(write(tmp_path, [], [], packed=packed)) == []


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda folder: folder.rmdir(), "no such folder"),
        (lambda folder: None, "impressions.jsonl or impressions.jsonl.gz is needed; there is none"),
        (lambda folder: (folder / "impressions.jsonl").touch(), "feedback.jsonl or feedback.jsonl.gz is needed"),
        (lambda folder: [(folder / f"impressions.jsonl{end}").touch() for end in ("", ".gz")], "both are there"),
    ],
)
def test_a_folder_that_is_no_log_is_refused_in_one_line(tmp_path: Path, prepare: Any, said: str) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(ValueError, match=said) as caught:
        RecordedLog(folder, SCHEMA)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-12], lambda data: b"no gzip", lambda data: data[:20] + b"\xff" * 40]
)
def test_a_damaged_packed_file_is_refused_by_name(tmp_path: Path, damage: Any) -> None:
    write(tmp_path, [shown(f"r{i}", i) for i in range(100)], [], packed=True)
    path = tmp_path / "impressions.jsonl.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"impressions\.jsonl\.gz: cannot be unpacked"):
        RecordedLog(tmp_path, SCHEMA)


def test_an_unknown_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^order: 'best' is not allowed; ts or arrival"):
        RecordedLog(tmp_path, SCHEMA, order="best")  # type: ignore[arg-type]
