"""The runner of the benchmarks: which modules it takes, what it writes, what a failing one does to the others."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks.device_step import FARTHEST
from benchmarks.harness import Figure, cpu_rate

ROOT = Path(__file__).parents[1]
GOOD = """'''P2: how fast is it?'''
from types import SimpleNamespace
def measure():
    figure = {"value": 2.0, "unit": "items/CPU-s", "ci": [1.0, 3.0], "peers": {"dict": 4.0}, "command": "python -m x"}
    return {"P2": SimpleNamespace(as_json=lambda: figure)}
"""
FAILING = "def measure():\n    raise ValueError('no broker')\n"
ENDLESS = "import time\ndef measure():\n    time.sleep(3600)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "support.py").write_text("def helper(): ...\n")
    monkeypatch.setattr(runner, "FOLDER", folder)
    monkeypatch.setattr(runner, "RESULTS", folder / "results")
    return folder


def test_every_benchmark_of_this_repository_is_found_and_asks_a_question() -> None:
    found = runner.modules()
    assert "benchmarks.demo" in found
    assert not {"benchmarks.harness", "benchmarks.__main__"} & set(found)
    assert [module for module in found if not runner.question(module).endswith("?")] == []


def test_a_failing_benchmark_is_named_and_the_others_are_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.py").write_text(FAILING)
    (folder / "good.py").write_text(GOOD)
    assert runner.main() == 1
    printed = capsys.readouterr().out
    assert "FAILED: exit code 1: ValueError: no broker; again with `python -m benchmarks.bad`" in printed
    assert "P2                 2 items/CPU-s  [1, 3]  dict 4" in printed
    latest = json.loads((folder / "results/latest.json").read_text())
    assert latest == {
        "P2": {
            "value": 2.0,
            "unit": "items/CPU-s",
            "ci": [1.0, 3.0],
            "peers": {"dict": 4.0},
            "command": "python -m x",
            "question": "how fast is it?",
        }
    }
    assert json.loads((folder / "results/machine.json").read_text())["cores"] >= 1


def test_all_well_is_exit_code_zero(folder: Path) -> None:
    (folder / "good.py").write_text(GOOD)
    assert runner.main() == 0


def test_a_goal_measured_twice_is_an_error_and_the_first_counts(folder: Path) -> None:
    (folder / "a.py").write_text(GOOD)
    (folder / "b.py").write_text(GOOD.replace("2.0", "9.0"))
    assert runner.main() == 1
    assert json.loads((folder / "results/latest.json").read_text())["P2"]["value"] == 2.0


def test_a_named_benchmark_runs_alone_and_the_other_results_stand(folder: Path) -> None:
    (folder / "good.py").write_text(GOOD)
    (folder / "bad.py").write_text(FAILING)
    (folder / "results").mkdir()
    (folder / "results/latest.json").write_text('{"P9": {"value": 1.0}}')
    assert runner.main(["good"]) == 0
    assert set(json.loads((folder / "results/latest.json").read_text())) == {"P2", "P9"}


def test_a_benchmark_that_is_not_there_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "good.py").write_text(GOOD)
    assert runner.main(["nonsense"]) == 2
    assert capsys.readouterr().err == "benchmarks.nonsense: not one of benchmarks.good\n"


def test_a_benchmark_beyond_its_limit_is_stopped(folder: Path) -> None:
    (folder / "endless.py").write_text(ENDLESS)
    assert runner.run("benchmarks.endless", limit_s=0.5) == "stopped after 0.5 s"


def test_figure_as_json_has_the_fields_of_the_results_file() -> None:
    figure = Figure(value=1.0, unit="ms", ci=(0.5, 2.0), command="python -m benchmarks.x", peers={"loop": 3.0})
    assert figure.as_json() == {
        "value": 1.0,
        "unit": "ms",
        "ci": [0.5, 2.0],
        "peers": {"loop": 3.0},
        "command": "python -m benchmarks.x",
    }


def test_cpu_rate_counts_units_and_leaves_the_warm_up_out() -> None:
    runs: list[int] = []

    def work() -> int:
        runs.append(sum(i * i for i in range(20_000)))
        return 1_000

    rate = cpu_rate(work, repeats=3, warmup=2)
    assert len(runs) == 5
    low, high = rate.per_cpu_s_range
    assert 0 < low <= rate.per_cpu_s <= high


def test_a_step_on_a_device_is_the_learners_and_is_measured_without_a_broker(
    tmp_path: Path,
) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('confluent_kafka', 'redis', 'rocksdict', 'litestar')));"
        "from benchmarks import device_limits, device_step as d;"
        "device_limits._COPY_BYTES = 1 << 20; d.REPEATS = d.NUM_BATCHES = 1; sys.exit(d.main())"
    )
    out, profile = tmp_path / "out.json", tmp_path / "profile.txt"
    argv = ["--device", "cpu", "--batch-rows", "64", "--preset", "small", "--json", str(out), "--profile", str(profile)]
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["precision"] for row in rows] == ["float32", "bfloat16"]
    for row in rows:
        assert 0 <= row["distance_to_learner"] < FARTHEST[row["precision"]]
        # 0.71 M dense parameters, of which a row runs its own scenario's; a product forward and two backward of each.
        assert 1.2e6 < row["limit"]["flops"] < 3e6
        assert min(row[way]["examples_per_s"] for way in ("step", "learn", "messages")) > 0
    assert "aten::addmm" in profile.read_text()
