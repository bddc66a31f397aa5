"""The command line: help from tables, mistakes in one line, exit codes, and no traceback for what can be foreseen."""

import errno
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from freshrank.cli import COMMANDS, main
from freshrank.exits import EXIT_CODES, CommandError, ExitCode, explain
from freshrank.strict import ConfigError
from model.exceptions import CheckpointMismatchError, StaleEpochError, StoreUnavailableError
from stream.exceptions import CopartitionError, FencedError, LocalStoreError, LogUnavailableError
from stream.kafka_security import ClientSettingError

REPO_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_with_an_example_and_is_listed_as_it_says(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    text = command.help or ""
    assert text.split("\n")[0] == COMMANDS[name].short_help
    inner = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    for each in inner:
        assert "Example:" in (each.help or ""), each.name
        assert f"freshrank {name}" in (each.help or ""), each.name


def test_help_of_the_group_lists_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(f"  {name} " in result.output for name in COMMANDS)


def test_group_help_imports_no_room() -> None:
    program = (
        "import sys\ntry:\n import freshrank.cli as c\n c.main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert not {"torch", "numpy", "pyarrow", "confluent_kafka", "litestar"} & set(loaded)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["frob"], "freshrank: No such command 'frob'."),
        (["join"], "freshrank: Missing option '--config'."),
        (["join", "--config", "none.yaml"], "freshrank: none.yaml: cannot be read: No such file or directory"),
        (
            ["config", "check", "configs/demo.yaml", "--set", "join.x=1"],
            "freshrank: join.x is not a setting; allowed: ",
        ),
        (["simulate", "--config", "configs/demo.yaml", "--requests", "0"], "freshrank: Invalid value for '--requests'"),
    ],
)
def test_mistake_is_one_line_on_stderr_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "freshrank.cli", *arguments]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USAGE
    lines = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert len(lines) == 1
    assert lines[0].startswith(sentence)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("join.x is not a setting"), ExitCode.USAGE),
        (ClientSettingError("kafka.client: sasl.x is not supported"), ExitCode.USAGE),
        (CommandError(ExitCode.CHILD_FAILED, "trainer"), ExitCode.CHILD_FAILED),
        (OSError(errno.EADDRINUSE, "Address already in use"), ExitCode.PORT_TAKEN),
        (StoreUnavailableError("the store does not answer"), ExitCode.REDIS_GONE),
        (LogUnavailableError("the broker does not answer"), ExitCode.BROKER_GONE),
        (CopartitionError("2 and 3 partitions"), ExitCode.BROKER_GONE),
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), ExitCode.DISK),
        (LocalStoreError("spill/live: no space left on device"), ExitCode.DISK),
        (CheckpointMismatchError("scenarios changed"), ExitCode.CHECKPOINT),
        (FencedError("newer generation"), ExitCode.FENCED),
        (StaleEpochError("epoch 4"), ExitCode.FENCED),
        (ZeroDivisionError("division by zero"), ExitCode.DEFECT),
    ],
)
def test_failure_has_its_sentence_and_its_code(error: Exception, code: ExitCode) -> None:
    found, sentence = explain(error)
    assert found is code
    assert sentence
    assert "\n" not in sentence


def test_redis_client_errors_are_told_as_such() -> None:
    import redis

    code, sentence = explain(redis.exceptions.ConnectionError("refused"))
    assert code is ExitCode.REDIS_GONE
    assert "redis.url" in sentence


def test_every_exit_code_stands_in_the_table_once() -> None:
    assert [row.code for row in EXIT_CODES] == list(ExitCode)
