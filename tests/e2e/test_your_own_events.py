"""The page on one's own events: its configuration and its script turn a table into a log that is learned."""

import csv
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).parents[2]
PAGE = (REPO_ROOT / "docs/your-own-events.md").read_text(encoding="utf-8")
CONFIG, SCRIPT = (re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[0] for language in ("yaml", "python"))
FIELDS = re.findall(r'(?:line|first)\["(\w+)"\]', SCRIPT) + ["click_ms", "order_ms"]
SLATES, ITEMS = 400, 5


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A shop's log with one line per shown item: hats are clicked often, shoes seldom, a third of the clicks order."""
    rng = random.Random(3)
    path = tmp_path / "shop.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(FIELDS)))
        writer.writeheader()
        for slate in range(SLATES):
            shown_ms = 1_790_000_000_000 + 30_000 * slate
            for position, item in enumerate(rng.sample(range(40), ITEMS)):
                is_clicked = rng.random() < (0.6 if item % 2 else 0.05)
                is_ordered = is_clicked and rng.random() < 0.33
                writer.writerow({
                    "request_id": f"r{slate}", "user": f"u{slate % 50}", "scenario": rng.choice(["home", "search"]),
                    "shown_ms": shown_ms, "age_band": rng.choice(["", "1", "2"]), "device": "ios",
                    "item": f"i{item}", "position": position, "category": "hat" if item % 2 else "shoe",
                    "price": rng.choice(["", "12.5"]), "click_ms": shown_ms + 2_000 if is_clicked else "",
                    "order_ms": shown_ms + 90_000 if is_ordered else "",
                })  # fmt: skip
    return path


def test_a_table_becomes_a_log_that_is_learned(table: Path, tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(CONFIG)
    (tmp_path / "as_events.py").write_text(SCRIPT)
    folder, out = tmp_path / "recorded", tmp_path / "out.json"
    subprocess.run([sys.executable, tmp_path / "as_events.py", table, folder], check=True)
    replay = [sys.executable, "-m", "freshrank.cli", "replay", folder, "--config", tmp_path / "shop.yaml"]
    subprocess.run([*replay, "--json", out, "--log-level", "warning"], cwd=REPO_ROOT, check=True, capture_output=True)

    report = json.loads(out.read_text())
    actions = len((folder / "feedback.jsonl").read_text().splitlines())
    assert report["join"]["impressions"] == SLATES
    assert report["join"]["feedback"] == report["join"]["feedback_positive"] == actions
    assert report["join"]["malformed"] == 0
    assert report["tasks"]["click"]["all"]["n"] == SLATES * ITEMS
    assert report["steps"] > 0
