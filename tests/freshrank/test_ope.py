"""`freshrank ope` on a recorded log of the world of scored requests, and item inclusion on RankLens."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from freshrank.cli import main
from freshrank.ope_ranklens import ranklens_rows
from freshrank.ope_source import outcomes_of_folder
from stream.join import JoinConfig
from stream.recorded import RecordedLogWriter
from stream.schema import Candidates, Feedback, Impression, Items, SchemaConfig, Served, TaskConfig
from tests.utility_blender.planted import EXPLORE, make_world
from utility_blender.outcomes import Outcomes

WORLD = make_world()
OUTCOMES = WORLD.explored(2_200, WORLD.static, EXPLORE, seed=1)
SCHEMA = SchemaConfig(
    scenarios=("home",), tasks={name: TaskConfig(action=name, window_ms=10_000) for name in OUTCOMES.tasks}
)
CONFIG = """
scenarios: [home]
tasks: {{{tasks}}}
blender:
  weights: {{default: {{{weights}}}}}
  scale: {{{scale}}}
  reward: {{values: {{repin: 3, closeup: 1, long_click: 1, hide: -2}}}}
  gate: {{resamples: 200}}
"""


def events(outcomes: Outcomes) -> list[Impression | Feedback]:
    """Returns the requests as they would have been logged."""
    written: list[Impression | Feedback] = []
    for row in range(outcomes.num_requests):
        place_C, scores_CT = outcomes.position_NC[row], outcomes.scores_NCT[row].astype(float)
        shown = np.argsort(np.where(place_C < 0, 99, place_C))[: outcomes.size_N[row]].tolist()
        others = np.flatnonzero(place_C < 0).tolist()

        def scores(items: list[int], of: np.ndarray = scores_CT) -> dict[str, list[float]]:
            return {task: of[items, t].tolist() for t, task in enumerate(outcomes.tasks)}

        def by_task(values_NT: np.ndarray, at: int = row) -> dict[str, float]:
            return dict(zip(outcomes.tasks, values_NT[at].tolist(), strict=True))

        served = Served(
            snapshot=1, weights=by_task(outcomes.weights_NT), explore=True, center=by_task(outcomes.center_NT),
            log_density=float(outcomes.log_density_N[row]), law="lognormal", tau=0.3, truncate=2.0,
            scale=by_task(outcomes.scale_NT),
        )  # fmt: skip
        request, user, ts = outcomes.request_id[row], outcomes.user_id[row], int(outcomes.ts_ms_N[row])
        written.append(
            Impression(
                request, user, "home", ts,
                Items(id=[f"i{j:02d}" for j in shown], scores=scores(shown)),
                served=served,
                candidates=Candidates(id=[f"i{j:02d}" for j in others], scores=scores(others)),
            )
        )  # fmt: skip
        written += [
            Feedback(request, user, f"i{j:02d}", outcomes.actions[a], ts + 500, event_id=f"{request}:{j}:{a}")
            for j, a in np.argwhere(outcomes.value_NCA[row] > 0).tolist()
        ]
    return written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a recorded log and `run.yaml`."""
    where = tmp_path_factory.mktemp("ope")
    with RecordedLogWriter(where) as log:
        for event in events(OUTCOMES):
            log.write(event)
    production = WORLD.static.weights_of["home"]

    def numbers(values: np.ndarray) -> str:
        return ", ".join(f"{task}: {float(value)!r}" for task, value in zip(OUTCOMES.tasks, values, strict=True))

    tasks = ", ".join(f"{task}: {{action: {task}, window_ms: 10000}}" for task in OUTCOMES.tasks)
    text = CONFIG.format(tasks=tasks, weights=numbers(production), scale=numbers(WORLD.scale_T))
    (where / "run.yaml").write_text(text, encoding="utf-8")
    return where


def run(folder: Path, *args: str) -> Result:
    arguments = ["ope", str(folder), "--config", str(folder / "run.yaml"), "--log-level", "error", *args]
    return CliRunner().invoke(main, arguments)


def test_a_recorded_log_is_joined_to_the_outcomes_it_was_written_from(folder: Path) -> None:
    found = outcomes_of_folder(folder, SCHEMA, JoinConfig())
    assert list(found.request_id) == list(OUTCOMES.request_id)
    np.testing.assert_array_equal(found.position_NC, OUTCOMES.position_NC)
    np.testing.assert_allclose(found.scores_NCT, OUTCOMES.scores_NCT)
    order = [found.actions.index(action) for action in OUTCOMES.actions]
    np.testing.assert_array_equal(found.value_NCA[:, :, order], OUTCOMES.value_NCA)
    np.testing.assert_allclose(found.log_density_N, OUTCOMES.log_density_N)


def test_harmful_weights_are_refused_with_reasons_a_page_and_figures(folder: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "ope.html", tmp_path / "ope.json"
    harmful = "static:repin=1,closeup=1,long_click=1,hide=1"
    result = run(folder, "--policy", harmful, "--report", str(page), "--json", str(figures))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("refused: 2200 explored requests\nhome: centre ")
    assert "home: lower bound of the lift, item inclusion: -" in result.output
    written = json.loads(figures.read_text(encoding="utf-8"))
    assert written["decision"]["passed"] is False
    assert written["report"]["replayed"] == 1.0
    assert written["plan"]["is_measured"] is True
    text = page.read_text(encoding="utf-8")
    assert "<h2>Refused</h2>" in text
    assert text.count("<svg") == 4
    assert "over own mean" not in text  # the weights are constant


def test_the_plan_says_how_many_requests_a_verdict_needs(folder: Path) -> None:
    result = run(folder, "--plan")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("2,200 explored requests, 86,4")  # one a second
    assert "scaled from our simulation" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["0.2%", "0.5%", "1.0%", "2.0%", "5.0%"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--policy: say what to judge, or --plan how many requests a verdict needs"),
        (["--policy", "static:repin=x"], "--policy: static:repin=x is not allowed; static:TASK=WEIGHT,TASK=WEIGHT"),
        (["--policy", "static:repin=1"], "--policy: weights.default: no weight for closeup, long_click, hide"),
        (["--policy", "nowhere.json"], "--policy: nowhere.json is not allowed; a version, static:"),
        (["--plan", "--center", "7"], "--center: no request was explored around version 7"),
    ],
)
def test_what_cannot_be_judged_is_one_line(folder: Path, args: list[str], message: str) -> None:
    result = run(folder, *args)
    assert result.exit_code != 0
    assert message in result.output


def test_weights_may_come_from_a_file_by_scenario(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    weights = dict(zip(OUTCOMES.tasks, WORLD.static.weights_of["home"].tolist(), strict=True))
    file.write_text(json.dumps({"default": weights}), encoding="utf-8")
    result = run(folder, "--policy", str(file))
    assert result.exit_code == 0, result.output
    assert "lift +0 (+0 to +0) by item inclusion" in result.output


def test_requests_of_models_that_were_rolled_back_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot_N = np.where(np.arange(OUTCOMES.num_requests) < 300, 7, 1)
    monkeypatch.setattr("freshrank.ope._outcomes", lambda run, folder: replace(OUTCOMES, snapshot_N=snapshot_N))
    monkeypatch.setattr("freshrank.blend.rolled_back_snapshots", lambda run: lambda: {7})
    result = CliRunner().invoke(main, ["ope", "--plan", "--config", str(folder / "run.yaml"), "--log-level", "error"])
    assert result.exit_code == 0 and result.stdout.startswith("1,900 explored requests"), result.output


def test_a_folder_without_exploration_says_so(tmp_path: Path) -> None:
    with RecordedLogWriter(tmp_path) as log:
        log.write(Impression("r", "u", "home", 1, Items(id=["a"])))
    with pytest.raises(ValueError, match="no explored request with logged candidates$"):
        outcomes_of_folder(tmp_path, SCHEMA, JoinConfig())


def test_item_inclusion_finds_the_held_out_value_of_policies_on_ranklens(ranklens_folder: Path) -> None:
    rows = {row.policy: row for row in ranklens_rows(ranklens_folder, seed=0)}
    assert len(rows) == 12
    for row in rows.values():
        assert abs(row.off) < 2, row
        assert abs(row.mean_weight - 1) < 0.01, row
    assert rows["popularity"].estimate - rows["-popularity"].estimate > 10 * rows["popularity"].se
