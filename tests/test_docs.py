"""The documents cannot lie: generated parts are what the code says, and what prose names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from freshrank import docs, reference
from freshrank.cli import COMMANDS
from freshrank.config import RunConfig
from freshrank.metrics import metric_table
from freshrank.settings_file import parse_yaml

ROOT = docs.ROOT
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"])
RECIPES = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_setting_event_field_answer_and_metric_is_documented() -> None:
    assert reference.undocumented() == []


def test_generated_parts_are_up_to_date() -> None:
    # In a process of its own: click keeps the first help text it makes, and another test may have made it elsewhere.
    command = [sys.executable, "-m", "freshrank.docs", "--check"]
    checked = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_every_module_says_in_its_first_line_what_it_is() -> None:
    empty = [line for line in reference.tree().splitlines() if line.endswith(".py")]
    assert empty == []


def test_insert_refuses_a_document_without_the_place() -> None:
    with pytest.raises(ValueError, match="once each"):
        docs.insert("nothing here", "settings", "table")


def test_check_names_the_document_that_is_out_of_date(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "stale", lambda: {ROOT / "docs/cli.md": "new text"})
    assert docs.main(["--check"]) == 1
    assert "docs/cli.md is not what the code says; run `make docs`" in capsys.readouterr().err


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_recipes_and_commands_named_exist(path: Path) -> None:
    text = path.read_text()
    recipes = set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE))
    commands = set(re.findall(r"(?:`|^    )freshrank ([a-z-]+)", text, re.MULTILINE))
    assert recipes - RECIPES == set()
    assert commands - COMMANDS.keys() == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_configurations_shown_are_allowed(path: Path) -> None:
    for text in re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        RunConfig(parse_yaml(text)).check()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_metrics_named_exist(path: Path) -> None:
    named = set(re.findall(r"`(freshrank_[a-z0-9_]+)`", path.read_text()))
    assert named - {row.name for row in metric_table()} == set()
