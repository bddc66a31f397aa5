"""`freshrank blender` against a real Redis: what it shows, and that it moves what rankers follow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from freshrank.cli import main
from freshrank.config import load_config
from freshrank.exits import ExitCode
from tests.utility_blender.some_versions import some_version
from utility_blender.store import Pointer
from utility_blender.store_redis import RedisBlenderStore

pytestmark = pytest.mark.integration
TASKS = ("click", "order")
RUN: dict[str, Any] = {
    "scenarios": ["home", "search"],
    "tasks": {task: {"action": task, "window_ms": 1000} for task in TASKS},
    "features": {"context": {"mood": "categorical"}},
    "blender": {
        "weights": {"default": {"click": 3.0, "order": 4.0}},
        "scale": {"order": 0.1},
        "learn": {"context": ["context.mood"]},
    },
}


class Cli:
    """The command on one Redis, and the store behind it."""

    def __init__(self, path: Path, url: str, prefix: str) -> None:
        run = {**RUN, "redis": {"url": url}, "blender": {**RUN["blender"], "store": {"prefix": prefix}}}
        path.write_text(yaml.safe_dump(run))
        self._path = path
        config = load_config(path, (), {})
        self.store = RedisBlenderStore(url, config.trainer.model_name, config.blender.store)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["blender", *arguments, "--config", str(self._path), "--log-level", "error"])
        assert result.exit_code == code, result.output
        return result.output


@pytest.fixture
def cli(tmp_path: Path, redis_server: str, request: pytest.FixtureRequest) -> Iterator[Cli]:
    made = Cli(tmp_path / "run.yaml", redis_server, f"test:{request.node.name}")
    yield made
    made.store.close()


def put(cli: Cli, version: int, base: int, weights: list[float]) -> None:
    """Puts weights for `home`, where one unit of a click is 0.2 and of an order 0.1."""
    policy = {"kind": "learned", "tasks": list(TASKS), "base": {"home": weights}, "links": []}
    rules = [{"name": "lift", "value": 0.0123, "limit": "at least 0", "verdict": "passed"}]
    gate = {"passed": True, "reasons": [], "rules": rules}
    scale = {"home": {"click": 0.2, "order": 0.1}}
    cli.store.put(some_version(version, base, gate, policy=policy, scale=scale))


def test_nothing_yet(cli: Cli) -> None:
    assert cli("show") == "serving: the weights of the config\nexploration: off\nserved everybody: none; denied: none\n"


def test_from_promotion_to_rollback(cli: Cli) -> None:
    put(cli, 1, 0, [0.6, 4.0])
    assert cli("promote", "1", "--share", "1") == "version 1 now serves 1 of the requests\n"
    assert cli("promote", "1", "--share", "1") == "version 1 served already 1 of the requests\n"
    put(cli, 2, 1, [0.6, 3.0])
    cli("promote", "2", "--share", "0.1")
    assert cli.store.pointer() == Pointer(2, 0.1, 0, 1)
    assert "serving: version 2 to 0.1 of the requests, else 1\n" in cli("show")
    assert "a larger share" in cli("promote", "2", "--share", "0.01", code=ExitCode.USAGE)
    said = cli("rollback", "1", "--reason", "hides rose")
    assert said == "version 1 serves all requests; denied: 2\n"
    cli.store.reject(some_version(3, 1), ["lift: -0.1; must be above 0"])
    assert cli("show") == (
        "serving: version 1\nexploration: off\nserved everybody: 1; denied: 2\n"
        "rollback 2 -> 1: hides rose\nrejected 3: lift: -0.1; must be above 0\n"
    )
    cli("rollback", "0", "--reason", "start again")
    assert "serving: the weights of the config\n" in cli("show")
    assert "was rolled back" in cli("promote", "1", "--share", "1", code=ExitCode.USAGE)


def test_exploration_is_switched_with_a_reason(cli: Cli) -> None:
    assert cli("explore", "on", "--reason", "a new day") == "exploration is on\n"
    assert cli.store.exploration()
    assert "exploration: on (a new day)\n" in cli("show")
    cli("explore", "off", "--reason", "hides rose")
    assert not cli.store.exploration()
    assert "Missing option '--reason'" in cli("explore", "off", code=ExitCode.USAGE)


def test_weights_are_shown_on_the_scale_and_at_the_length_of_the_configs(cli: Cli) -> None:
    """Scores of a click per unit of the config's scale: 0.6 / 0.2 = 3 and 4 / 0.1 * 0.1 = 4."""
    put(cli, 1, 0, [0.6, 4.0])
    put(cli, 2, 1, [0.8, 3.0])
    shown = cli("show", "1")
    assert "weights in home: click 3, order 4\n" in shown and "search" not in shown
    assert "gate: passed\n  passed: lift 0.0123 (at least 0)\n" in shown
    assert "20,000 explored requests of snapshots 3 to 9" in shown
    assert cli("diff", "0", "1") == "home: 0.0 degrees\n  click: 3 -> 3  x 1.000\n  order: 4 -> 4  x 1.000\n"
    assert cli("diff", "1", "2") == "home: 16.3 degrees\n  click: 3 -> 4  x 1.333\n  order: 4 -> 3  x 0.750\n"


def test_weights_are_shown_for_a_context(cli: Cli) -> None:
    encoder = {"scenarios": [], "values": {"context.mood": ["buy"]}, "numbers": {}}
    mlp = [{"weights": [[-0.2, 0.15]], "bias": [0.0, 0.0]}]
    link = {"encoder": encoder, "mlp": mlp, "clip": 2.0, "strength": 1.0}
    policy = {"kind": "learned", "tasks": list(TASKS), "base": {"home": [3.0, 4.0]}, "links": [link]}
    cli.store.put(some_version(1, policy=policy, scale={"home": {"click": 1.0, "order": 0.1}}))
    assert "click 3, order 4\n" in cli("show", "1")
    # (3 - 5 * 0.2, 4 + 5 * 0.15) = (2, 4.75), brought back to the length of 5
    assert "click 1.94, order 4.608\n" in cli("show", "1", "--context", "context.mood=buy")
    refused = cli("show", "1", "--context", "context.device=ios", code=ExitCode.USAGE)
    assert "context.device is not one of context.mood" in refused


def test_versions_that_are_not_there_are_told(cli: Cli) -> None:
    assert "version 7 is not in the store" in cli("show", "7", code=ExitCode.USAGE)
    assert "version 7 is not in the store" in cli("diff", "0", "7", code=ExitCode.USAGE)
    assert "version 7 cannot be promoted" in cli("promote", "7", "--share", "1", code=ExitCode.USAGE)
