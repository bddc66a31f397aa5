"""Converting RankLens: what becomes what, without looking ahead."""

import gzip
import os
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from freshrank.cli import main
from freshrank.config import load_config
from freshrank.convert import convert
from freshrank.ranklens import GENRES, STYLES, convert_ranklens
from stream.recorded import RecordedLog
from stream.schema import Feedback, Impression

CONFIG = Path(__file__).parents[2] / "configs" / "ranklens.yaml"
ITEMS = """item_id,title,genres,tags,popularity,vote_avg,vote_cnt,budget,runtime,release_ts,director,actors
7,Seven,crime|thriller,dark|a|b|c|d|e|f|g|h|i|j|k,9.5,8.3,1000.0,33000000.0,127.0,811641600.0,d. fincher,pitt|norton
8,Eight,,,1.5,5.0,10.0,0.0,90.0,1038614400.0,,
"""
SCENARIOS = "scenario_id,inferred_tag,n_candidates,n_slates\n0,horror,2,1\n1,time travel,2,2\n"
HEADER = "ts_ms,slate_id,user_id,scenario_id,n_candidates,position,item_id,click,p_item_at_position,p_item_in_slate\n"
SLATES = HEADER + (
    "1000000,0,5,0,4,1,8,0,0.25,0.5\n"
    "1000000,0,5,0,4,0,7,1,0.25,0.5\n"
    "1005000,1,5,1,4,0,8,1,0.25,0.5\n"
    "1005000,1,5,1,4,1,9,0,0.25,0.5\n"
    "1010001,2,5,1,4,0,7,0,0.25,0.5\n"
    "1010001,2,5,1,4,1,8,0,0.25,0.5\n"
)


def source(folder: Path, **replaced: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in {"items": ITEMS, "scenarios": SCENARIOS, "impressions": SLATES, **replaced}.items():
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def events(folder: Path) -> list[Impression | Feedback]:
    with RecordedLog(folder, load_config(CONFIG).schema) as log:
        found = [event for event, _ in log]
        assert log.counters.malformed == 0
        assert not log.unknown_fields
    return found


def test_slates_clicks_features_and_propensities_are_those_of_the_source(tmp_path: Path) -> None:
    summary = convert_ranklens(source(tmp_path / "csv"), tmp_path / "log")
    assert (summary.impressions, summary.items, summary.feedback, summary.users) == (3, 6, 2, 1)
    assert summary.scenarios == {"genre": 1, "style": 0, "theme": 2}
    first = events(tmp_path / "log")[0]
    assert isinstance(first, Impression)
    assert (first.request_id, first.user_id, first.scenario, first.ts) == ("s0", "u5", "genre", 1_000_000)
    assert first.items.id == ["7", "8"]
    assert first.items.propensity == [0.5, 0.5]
    assert first.context == {"listing": "0"}
    assert first.items.features["genres"] == [["crime", "thriller"], []]
    assert first.items.features["tags"][0] == ["dark", "a", "b", "c", "d", "e", "f", "g", "h", "i"]
    assert first.items.features["year"] == [1995.0, 2002.0]
    assert first.items.features["budget"] == [33_000_000.0, None]
    assert first.items.features["director"] == ["d. fincher", None]


def test_a_film_that_the_source_does_not_describe_has_missing_features(tmp_path: Path) -> None:
    convert_ranklens(source(tmp_path / "csv"), tmp_path / "log")
    slate = next(event for event in events(tmp_path / "log") if event.request_id == "s1")
    assert isinstance(slate, Impression)
    assert slate.items.id == ["8", "9"]
    assert slate.items.features["year"] == [2002.0, None]
    assert slate.items.features["genres"][1] == []


def test_clicks_come_five_seconds_after_their_slate(tmp_path: Path) -> None:
    convert_ranklens(source(tmp_path / "csv"), tmp_path / "log")
    clicks = [event for event in events(tmp_path / "log") if isinstance(event, Feedback)]
    assert [(c.request_id, c.item_id, c.ts) for c in clicks] == [("s0", "7", 1_005_000), ("s1", "8", 1_010_000)]


def test_a_slate_knows_only_what_came_before_it(tmp_path: Path) -> None:
    convert_ranklens(source(tmp_path / "csv"), tmp_path / "log")
    slates = [event for event in events(tmp_path / "log") if isinstance(event, Impression)]
    assert [slate.user for slate in slates] == [
        {"past_slates": 0.0},
        {"past_slates": 0.0},  # its person's click comes at this very moment
        {"past_slates": 2.0, "clicks_per_slate": 1.0},
    ]
    sequences = [slate.sequence for slate in slates]
    assert [s.item_id for s in sequences if s is not None] == [[], [], ["8", "7"]]
    assert [s.ts for s in sequences if s is not None] == [[], [], [1_010_000, 1_005_000]]


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert_ranklens(source(tmp_path / "csv"), tmp_path / name)
    for file in ("impressions.jsonl.gz", "feedback.jsonl.gz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        (
            {"impressions": SLATES.replace("1005000,1", "soon,1")},
            r"impressions\.csv\.gz line 4: ts_ms: 'soon' is not a number",
        ),
        (
            {"impressions": SLATES.replace(",5,1,4,0,7", ",5,9,4,0,7")},
            "scenario_id: '9' is not one of scenarios",
        ),
        ({"items": ITEMS.replace("127.0", "inf")}, r"items\.csv\.gz line 2: runtime: 'inf' is not a finite number"),
        ({"items": ITEMS.replace("director", "chef")}, r"items\.csv\.gz: column director is missing"),
    ],
)
def test_what_is_wrong_with_the_source_is_said_in_one_line(tmp_path: Path, replaced: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        convert_ranklens(source(tmp_path / "csv", **replaced), tmp_path / "log")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "log" / "impressions.jsonl.gz").exists()


def test_the_command_names_what_it_can_convert(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["convert", "movies", str(tmp_path), str(tmp_path / "log")], "ranklens"),
        (["convert", "ranklens", str(tmp_path), str(tmp_path / "log")], "items.csv.gz: no such file"),
        (["convert", "ranklens", str(tmp_path / "gone"), str(tmp_path / "log")], "gone"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        said_lines = capfd.readouterr().err.strip().splitlines()
        assert len(said_lines) == 1
        assert said in said_lines[0]


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        convert,
        ["ranklens", str(source(tmp_path / "csv")), str(tmp_path / "log")],
    )
    assert result.exit_code == 0
    assert "3 impressions of 6 items (genre 1, style 0, theme 2), 2 feedback of 1 users" in result.output


@pytest.mark.skipif("FRESHRANK_RANKLENS" not in os.environ, reason="FRESHRANK_RANKLENS: no folder with RankLens given")
def test_the_real_data_is_converted_whole(tmp_path: Path) -> None:
    summary = convert_ranklens(Path(os.environ["FRESHRANK_RANKLENS"]), tmp_path)
    assert (summary.impressions, summary.items, summary.feedback, summary.users) == (9_800, 235_200, 46_125, 2_145)
    assert summary.scenarios == {"genre": 2_800, "style": 2_700, "theme": 4_300}
    found = events(tmp_path)
    assert Counter(type(event) for event in found) == {Impression: 9_800, Feedback: 46_125}


def test_no_tag_is_of_two_sorts() -> None:
    assert not GENRES & STYLES
