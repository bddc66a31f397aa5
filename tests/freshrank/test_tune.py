"""The search: what may be varied, that a kill loses and repeats nothing, and the command on a recorded log."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from freshrank.cli import main
from freshrank.one_pass import Pass, TaskFigures
from freshrank.strict import ConfigError, build
from freshrank.tune_page import tune_page
from freshrank.tune_space import Choices, Point, Range, Space, as_settings, at, default_space, parse_space, written_out
from freshrank.tune_study import SamplerName, Trial, open_search
from model.config import ModelConfig
from model.losses import LossConfig
from tests.freshrank import searched_log

torch.set_num_threads(1)


class KilledError(BaseException):
    """A kill in the middle of a pass."""


# The space.


def test_values_and_ranges_are_read() -> None:
    assert parse_space(["optim.dense_lr=1e-3, 0.003", "hinet.tower=[32],[64, 32]", "hinet.expert_hidden=8..64"]) == {
        "optim.dense_lr": Choices(("0.001", "0.003")),
        "hinet.tower": Choices(("[32]", "[64, 32]")),
        "hinet.expert_hidden": Range(8, 64),
    }
    assert not parse_space(["optim.row_lr=1e-3..1"])["optim.row_lr"].is_whole  # type: ignore[union-attr]  # a range
    assert parse_space(["model.optim.row_lr=0.1"]) == parse_space(["optim.row_lr=0.1"])  # as --set has it


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["optim"], "--vary optim: must be PATH=VALUE,VALUE,... or PATH=LOW..HIGH"),
        (["optim.=1"], "--vary optim.=1: must be PATH="),
        (["a=1", "a=2"], "--vary a: given twice"),
        (["a=1", "model.a=2"], "--vary a: given twice"),
        (["a=1,1"], "--vary a: '1,1' is not allowed; at least one value, each once"),
        (["a="], "--vary a: '' is not allowed; at least one value"),
        (["a=3..1"], "--vary a: 3..1 is not allowed; two numbers above 0, the lower first"),
        (["a=0..1"], "--vary a: 0..1 is not allowed; two numbers above 0"),
        (
            ["encoding.numeric_steps=1,2"],
            "--vary encoding.numeric_steps: is not allowed; all trials share one encoding",
        ),
    ],
)
def test_a_space_that_is_none_is_refused_in_a_line(given: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_space(given)
    assert str(error.value).startswith(sentence)


def test_the_default_space_holds_experts_widths_weights_and_rates() -> None:
    model = written_out(ModelConfig(), None)
    space = default_space(model)
    assert space["hinet.num_shared_experts"] == Choices(("1", "2", "4"))
    assert space["hinet.expert_hidden"] == Choices(("64", "128", "256"))
    assert space["embedding.width"] == Choices(("8", "16", "32"))
    assert "loss.max_scenario_weight" in space and {"optim.dense_lr", "optim.row_lr"} < set(space)
    uniform = default_space(ModelConfig(loss=LossConfig(scenario_weight="uniform")))
    assert "loss.scenario_weight" in uniform and "loss.max_scenario_weight" not in uniform
    for path, values in space.items():
        assert isinstance(values, Choices)
        for value in values.values:
            assert at(model, {path: value}) is not None


def test_a_point_changes_its_settings_and_the_file_for_it_says_so() -> None:
    base = ModelConfig(priors={"click": 0.2})
    point = {"hinet.tower": "[64, 32]", "optim.dense_lr": "0.01", "embedding.width": "8"}
    model = at(written_out(base, "hinet"), point)
    assert model.hinet is not None and model.hinet.tower == (64, 32)
    assert (model.optim.dense_lr, model.embedding.width, model.priors) == (0.01, 8, {"click": 0.2})
    settings = as_settings(model, point)["model"]
    assert settings["hinet"] == {"tower": [64, 32]}
    assert build(ModelConfig, settings | {"priors": {"click": 0.2}}) == model


def test_points_and_architectures_that_are_none_are_refused() -> None:
    model = written_out(ModelConfig(), None)
    with pytest.raises(ConfigError, match="^model.optim.lr is not a setting"):
        at(model, {"optim.lr": "1"})
    with pytest.raises(ConfigError, match="^--architecture: nothing is not allowed; hinet"):
        written_out(ModelConfig(), "nothing")


# The search.

GRID: Space = {"a": Choices(("1", "2", "3")), "b": Choices(("10", "20"))}
MIXED: Space = {"a": Choices(("1", "2", "3")), "rate": Range(0.01, 1.0), "width": Range(4, 64)}
SEARCHES: list[tuple[SamplerName, Space, int]] = [("grid", GRID, 6), ("tpe", MIXED, 13)]


def figures(ne: float) -> Pass:
    return Pass(tasks={"click": TaskFigures(ne, 0.5)}, weights={"click": 1.0}, num_parameters=10, num_skipped=0)


def judged(point: Point) -> Pass:
    if point["a"] == "3":
        raise ValueError("a is too large")
    return figures(sum(float(value) for value in point.values()))


def go_on(
    path: Path,
    sampler: SamplerName,
    space: Space,
    num_trials: int,
    run_point: Callable[[Point], Pass] = judged,
    **about: Any,
) -> list[Trial]:
    with open_search(path, space=space, sampler=sampler, seed=1, about=about) as search:
        search.run(num_trials, run_point, lambda number, trial: None)
        return search.trials()


@pytest.mark.parametrize(("sampler", "space", "num_trials"), SEARCHES)
def test_a_search_killed_again_and_again_ends_as_if_it_had_not_been(
    tmp_path: Path, sampler: SamplerName, space: Space, num_trials: int
) -> None:
    whole = go_on(tmp_path / "whole.db", sampler, space, num_trials)
    assert len(whole) == num_trials
    runs: list[Point] = []

    def killed_at_every_fifth(point: Point) -> Pass:
        runs.append(point)
        if len(runs) % 5 == 0:
            raise KilledError
        return judged(point)

    path = tmp_path / "killed.db"
    for _ in range(num_trials):
        try:
            trials = go_on(path, sampler, space, num_trials, killed_at_every_fifth)
            break
        except KilledError:
            continue
    assert trials == whole
    assert len(runs) == num_trials + len(runs) // 5, "only what was under way at a kill was run again"


def test_a_grid_is_gone_through_once_and_then_it_is_over(tmp_path: Path) -> None:
    trials = go_on(tmp_path / "t.db", "grid", GRID, 100)
    assert sorted((trial.point["a"], trial.point["b"]) for trial in trials) == [
        (a, b) for a in ("1", "2", "3") for b in ("10", "20")
    ]
    failed = [trial for trial in trials if trial.mean_ne is None]
    assert {trial.point["a"] for trial in failed} == {"3"} and {trial.reason for trial in failed} == {"a is too large"}
    assert all(trial.mean_ne == judged(trial.point).mean_ne for trial in trials if trial.mean_ne is not None)


def test_tpe_goes_where_it_was_good(tmp_path: Path) -> None:
    trials = go_on(tmp_path / "t.db", "tpe", {"rate": Range(0.001, 1000.0)}, 24, lambda p: figures(float(p["rate"])))
    early, late = ([trial.mean_ne or 0.0 for trial in part] for part in (trials[:10], trials[-10:]))
    assert sorted(late)[5] < sorted(early)[5] / 5


def test_the_baseline_is_run_once(tmp_path: Path) -> None:
    for ne in (0.9, 0.1):
        with open_search(tmp_path / "t.db", space=GRID, sampler="grid", seed=1, about={}) as search:
            assert search.baseline(lambda: figures(ne))["mean_ne"] == 0.9  # noqa: B023 - called at once


def test_a_storage_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    go_on(path, "grid", GRID, 1, examples=100)
    with pytest.raises(ValueError, match="holds a search with another examples; take another file$"):
        go_on(path, "grid", GRID, 1, examples=200)
    with pytest.raises(ValueError, match="holds a search with another sampler, space; take another file$"):
        go_on(path, "tpe", MIXED, 1, examples=100)
    path.write_text("not a database, and long enough to be seen as none\n" * 40)
    with pytest.raises(ValueError, match=f"^--storage {path}: cannot be used: [^\\[\n]*file is not a database$"):
        go_on(path, "grid", GRID, 1)


def test_a_grid_needs_values_and_not_too_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^--vary rate: a range is not allowed with --sampler grid"):
        go_on(tmp_path / "t.db", "grid", MIXED, 1)
    many = {name: Choices(tuple(map(str, range(101)))) for name in "abc"}
    with pytest.raises(ValueError, match="^--sampler grid: 1,030,301 points are not allowed; at most 1,000,000"):
        go_on(tmp_path / "t.db", "grid", many, 1)


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"install the extra: pip install 'freshrank\[studies\]'$"):
        go_on(tmp_path / "t.db", "grid", GRID, 1)


def test_the_page_of_a_search_in_which_all_failed() -> None:
    failed = {"number": 0, "mean_ne": None, "point": {"a": "<3>"}, "reason": "a & b"}
    page = tune_page(
        {
            "source": "log", "architecture": "hinet", "sampler": "grid", "seed": 0, "examples": 3,
            "baseline": {"mean_ne": 1.0}, "best": None, "best_yaml": None, "trials": [failed],
        }
    )  # fmt: skip
    assert "a=&lt;3&gt;" in page and "a &amp; b" in page


# The command.


@pytest.fixture(scope="module")
def log_and_config(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return searched_log.write(tmp_path_factory.mktemp("searched"))


def call(log_and_config: tuple[Path, Path], *arguments: str | Path) -> Any:
    log, config = log_and_config
    return CliRunner().invoke(main, ["tune", *map(str, (log, "--config", config, *arguments))])


def test_tune_finds_a_planted_rate_goes_on_and_writes_its_files(
    log_and_config: tuple[Path, Path], tmp_path: Path
) -> None:
    vary = ["--vary", "optim.dense_lr=0.003,3.0", "--vary", "hinet.expert_hidden=4", "--sampler", "grid"]
    files = ["--storage", tmp_path / "t.db", "--json", tmp_path / "t.json", "--report", tmp_path / "t.html"]
    first = call(log_and_config, *vary, *files, "--trials", "1")
    assert first.exit_code == 0, first.output
    assert len(json.loads((tmp_path / "t.json").read_text())["trials"]) == 1
    done = call(log_and_config, *vary, *files)
    assert done.exit_code == 0, done.output
    assert done.output.count("trial 0:") == 0 and done.output.count("trial 1:") == 1, "it went on where it was"
    result = json.loads((tmp_path / "t.json").read_text())
    assert len(result["trials"]) == 2
    assert result["best"]["point"] == {"optim.dense_lr": "0.003", "hinet.expert_hidden": "4"}
    assert set(result["best"]["tasks"]) == set(searched_log.TASKS)
    ne = [cell["ne"] for cell in result["best"]["tasks"].values()]
    assert result["best"]["mean_ne"] == pytest.approx(sum(ne) / 3) and result["baseline"]["params"] > 0
    assert yaml.safe_load(result["best_yaml"])["model"]["hinet"]["expert_hidden"] == 4
    page = (tmp_path / "t.html").read_text()
    assert "optim.dense_lr" in page and "<svg" in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--vary", "optim=1"], "model.optim: 1 is not a mapping of settings"),
        (["--vary", "optim.dense_lr=0.1,-1"], "model.optim.dense_lr: -1.0 is not allowed; greater than 0"),
        (["--architecture", "nothing"], "--architecture: nothing is not allowed; hinet"),
        (["--vary", "a=0..1"], "--vary a: 0..1 is not allowed"),
        (["--report", "no/folder/x.html"], "no/folder/x.html: there is no folder no/folder"),
    ],
)
def test_mistakes_are_told_in_a_line(
    log_and_config: tuple[Path, Path], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    failed = call(log_and_config, "--storage", tmp_path / "t.db", "--limit", "64", "--trials", "1", *arguments)
    assert failed.exit_code == 2 and f"freshrank: {sentence}" in failed.output
    assert not (tmp_path / "t.db").exists()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("ranklens", "ranklens: say where it is in FRESHRANK_RANKLENS, or give its path: the folder with impressions"),
        ("no/log", "no/log: no such file or folder; ml-1m, ranklens or a recorded log"),
    ],
)
@pytest.mark.parametrize("command", [["tune"], ["study", "frontier"]])
def test_sources_are_named_as_in_a_comparison(
    log_and_config: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, command: list[str], source: str, sentence: str
) -> None:
    monkeypatch.delenv("FRESHRANK_RANKLENS", raising=False)
    done = CliRunner().invoke(main, [*command, source, "--config", str(log_and_config[1])])
    assert done.exit_code == 2 and f"freshrank: {sentence}" in done.output


def test_a_data_set_is_found_where_the_environment_says(
    log_and_config: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, config = log_and_config
    monkeypatch.setenv("FRESHRANK_RANKLENS", str(log))
    vary = ["--vary", "optim.dense_lr=0.003", "--trials", "1", "--limit", "2000", "--storage", str(tmp_path / "t.db")]
    done = CliRunner().invoke(main, ["tune", "ranklens", "--config", str(config), *vary])
    assert done.exit_code == 0 and "trial 0 of 1" in done.output
