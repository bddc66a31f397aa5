"""Several ranks that train one model together, as processes of their own: what one rank would have made of the log.

Bit for bit the same: which rows are in which micro-batch and in what order, positions, watermark, counts, versions, and
every figure of served scores. To the order of float sums: the weights, and with them the figures of the model's scores.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from model.ranks import Ranks
from tests.model.rank_world import outputs, start_ranks
from tests.model.trainer_rank_child import JOBS, run_job

CHILD = "tests.model.trainer_rank_child"
SIZES = (2, 3)
IN_LOG_ORDER = [name for name, job in JOBS.items() if job.config.deterministic]
EXACT = ("n", "positives")
Results = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every world leaves its models: `<size>/<job>`."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """What each rank of worlds of one, two and three found, by size."""
    alone = {name: run_job(job, Ranks.alone(), folder / "1" / name) for name, job in JOBS.items()}
    worlds = {}
    for size in SIZES:
        (folder / str(size)).mkdir()
        worlds[size] = start_ranks(CHILD, size, folder / str(size))
    found: Results = {1: [msgspec.json.decode(msgspec.json.encode(alone))]}
    for size, processes in worlds.items():
        texts = outputs(processes, timeout_s=300)
        assert all(text.endswith("exit 0") for text in texts), "\n".join(texts)
        found[size] = [
            msgspec.json.decode((folder / str(size) / f"result-{rank}.json").read_bytes()) | {"said": text}
            for rank, text in enumerate(texts)
        ]
    return found


def model_of(folder: Path, size: int, job: str) -> dict[str, torch.Tensor]:
    """The model that a world has learned, its rows by key."""
    model = load_file(folder / str(size) / job / "model.safetensors")
    order = torch.argsort(model["rows.keys"])
    return model | {name: model[name][order] for name in ("rows.keys", "rows.weights")}


def assert_same_figures(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for task, by_scenario in theirs.items():
        for scenario, figures in by_scenario.items():
            found = ours[task][scenario]
            assert {name: found[name] for name in EXACT} == {name: figures[name] for name in EXACT}, (task, scenario)
            for name, value in figures.items():
                expected = None if value is None else pytest.approx(value, rel=1e-3, abs=1e-3)
                assert found[name] == expected, (task, scenario, name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("job", IN_LOG_ORDER)
def test_they_learn_what_one_rank_learns_of_the_same_log(results: Results, folder: Path, size: int, job: str) -> None:
    alone, ranks = results[1][0][job], [result[job] for result in results[size]]
    for name in ("positions", "stats", "watermark_ms"):
        assert [rank[name] for rank in ranks] == [alone[name]] * size, name
    lead = ranks[0]
    assert lead["manifest"][:4] == alone["manifest"][:4] and lead["snapshots"] == alone["snapshots"]
    assert_same_figures(lead["manifest"][4], alone["manifest"][4])
    for name in ("scenarios", "has_gates", "served"):
        assert lead[name] == alone[name], name
    for span in ("lifetime", "window", "closed"):
        assert_same_figures(lead["report"][span], alone["report"][span])
    ours, theirs = model_of(folder, size, job), model_of(folder, 1, job)
    assert ours.keys() == theirs.keys() and torch.equal(ours["rows.keys"], theirs["rows.keys"])
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, rtol=1e-3, atol=1e-5), name


def test_the_jobs_are_about_what_they_are_called(results: Results) -> None:
    stats = {name: results[1][0][name]["stats"] for name in JOBS}
    assert stats["mixed"]["dead_letters"] == 3
    assert stats["scenarios"]["unknown_rows"] > 0 and stats["scenarios"]["scenarios_added"] == 1
    assert stats["corrected"]["labels_weighed"] > 0
    assert stats["held"]["held"] > 0 and stats["held"]["steps"] == 0
    assert results[1][0]["mixed"]["has_gates"]


@pytest.mark.parametrize("size", SIZES)
def test_in_order_of_arrival_every_row_is_learned_once(results: Results, size: int) -> None:
    alone, ranks = results[1][0]["arrival"], [result["arrival"] for result in results[size]]
    for rank in ranks:
        assert rank["positions"] == alone["positions"]
        assert {**rank["stats"], "steps": 0} == {**alone["stats"], "steps": 0}


@pytest.mark.parametrize("size", SIZES)
def test_one_rank_that_is_told_to_stop_stops_all_and_they_go_on_from_one_checkpoint(
    results: Results, size: int
) -> None:
    whole = results[1][0]["mixed"]
    for rank in results[size]:
        stopped, resumed = rank["stop"]["stopped"], rank["stop"]["resumed"]
        assert stopped == results[size][0]["stop"]["stopped"]
        assert 0 < stopped["stats"]["steps"] < whole["stats"]["steps"]
        assert resumed["positions"] == whole["positions"]
        for name in ("examples", "steps", "messages"):
            assert resumed["stats"][name] == whole["stats"][name], name


@pytest.mark.parametrize("size", SIZES)
def test_what_does_not_belong_together_is_refused_in_a_line(results: Results, size: int) -> None:
    for rank in results[size]:
        assert rank["schema"].startswith("RanksDifferError: schema hash: rank 1 has ")
        assert ", rank 0 has " in rank["schema"]
        assert rank["partitions"] == "RanksDifferError: partition 0 is read by ranks 0 and 1"


@pytest.mark.parametrize("size", SIZES)
def test_a_rank_that_cannot_go_on_ends_all_of_them_and_says_why(results: Results, size: int) -> None:
    *others, last = results[size]
    assert last["broken"] == "OSError: the disk is gone"
    assert {rank["broken"] for rank in others} == {f"RankLostError: rank {size - 1} ends: OSError: the disk is gone"}


def test_uneven_and_missing_partitions_are_told_in_one_line_each(results: Results) -> None:
    lead, second = (result["said"] for result in results[2])
    assert "5 partitions over 2 ranks: the most that one reads is 3, the least 2" in lead
    assert "This rank reads nothing, it only keeps its share of the rows rank=1" in second
    assert "over 2 ranks" not in second
