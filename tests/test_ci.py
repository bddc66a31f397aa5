"""The workflow of a public forge: it runs what a checkout runs, with as little power as it needs."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]


def test_every_python_that_the_project_names_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert JOBS["checks"]["strategy"]["matrix"]["python"] == named
    assert project["requires-python"] == f">={named[0]}"


def test_it_calls_what_is_there() -> None:
    runs = [step["run"] for step in STEPS if "run" in step]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    recipes = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {run.split()[1] for run in runs if run.startswith("make ")}
    assert {run for run in runs if not run.startswith("make ")} == {".ci/run"}
    assert made == {"smoke"} <= recipes


def test_it_may_read_and_no_more_and_others_code_is_named_by_its_hash() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert WORKFLOW["concurrency"]["group"]
    assert not any("permissions" in job or "secrets." in str(job) for job in JOBS.values())
    for step in STEPS:
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
            assert step.get("with", {}).get("persist-credentials") is False or "checkout" not in step["uses"]
    assert all(job["timeout-minutes"] for job in JOBS.values())
