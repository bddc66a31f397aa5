"""The command line: one group, one module per command, loaded when it is called."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from freshrank.exits import ExitCode


class CommandRow(NamedTuple):
    """Where a command is, and the first line of its help: `freshrank --help` must not import them all."""

    where: str
    short_help: str


COMMANDS = {
    "up": CommandRow("freshrank.up:up", "Runs the whole loop on this machine."),
    "join": CommandRow("freshrank.join:join", "Makes labelled examples from impressions and feedback, exactly once."),
    "train": CommandRow("freshrank.train:train", "Learns from examples and publishes snapshots."),
    "rank": CommandRow("freshrank.rank:rank", "Serves rankings over HTTP with the newest snapshot."),
    "agents": CommandRow("freshrank.agents:agents", "Keeps each user's last actions in Redis, and online metrics."),
    "blend": CommandRow("freshrank.blend:blend", "Learns the weights of the utility from explored requests."),
    "simulate": CommandRow("freshrank.simulate:simulate", "Acts as the users of a world with known truth."),
    "monitor": CommandRow("freshrank.monitor:monitor", "Serves the live page."),
    "probe": CommandRow(
        "freshrank.probe_command:probe",
        "Acts as a made-up user once in a while and measures when the rankings know it.",
    ),
    "replay": CommandRow(
        "freshrank.replay:replay",
        "Replays the recorded log in FOLDER: the same joiner and trainer as live, in one process, driven by event time.",  # noqa: E501 - as in its own help,
    ),
    "convert": CommandRow(
        "freshrank.convert:convert", "Converts the data set NAME in the folder SOURCE into a recorded log in FOLDER."
    ),
    "verify-join": CommandRow(
        "freshrank.verify_join:verify_join", "Verifies the joiner's labels: lost, double, contradictory, wrong."
    ),
    "compare": CommandRow(
        "freshrank.compare:compare", "Compares models on SOURCE: a recorded log, or a data set by name or folder."
    ),
    "tune": CommandRow(
        "freshrank.tune:tune",
        "Searches for the settings of a model with the least progressive NE on SOURCE, as mean over its tasks.",
    ),
    "gates": CommandRow(
        "freshrank.gates:gates",
        "Shows how a trained model's gates use their experts: mean weights, entropies, dead experts, distances of tasks.",  # noqa: E501 - as in its own help
    ),
    "ope": CommandRow(
        "freshrank.ope:ope",
        "Judges weights by explored requests: of the log in FOLDER, recorded or saved, or else of the broker.",
    ),
    "churn": CommandRow(
        "freshrank.churn:churn",
        "Compares the rankings of two models, OLD and NEW, on the same requests, before and after the blender.",
    ),
    "study": CommandRow("freshrank.study:study", "Measures parts of the product in synthetic worlds with known truth."),
    "plan": CommandRow(
        "freshrank.plan:plan",
        "Plans a deployment: processes, memory, bandwidth, disk, and the freshness that a simulation of it gives.",
    ),
    "topics": CommandRow("freshrank.topics:topics", "Creates the topics of a run, or shows them."),
    "snapshot": CommandRow(
        "freshrank.snapshot:snapshot", "Shows, compares, promotes and rolls back the published snapshots."
    ),
    "blender": CommandRow(
        "freshrank.blender:blender", "Shows and moves the learned weights of the utility, and switches exploration."
    ),
    "checkpoint": CommandRow("freshrank.checkpoint:checkpoint", "Shows the trainer's checkpoints."),
    "config": CommandRow("freshrank.show:config", "Shows or checks the configuration of a run."),
}
"""All commands, in the order of the help."""


class LazyGroup(click.Group):
    """A group that imports a command when it is called, so that a joiner never imports torch.

    It also is the last place a failure reaches: one line on stderr and a code of `freshrank.exits`, no traceback.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns a command by its name; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].where.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.short_help) for name, row in COMMANDS.items()])

    def main(  # type: ignore[override]  # one form instead of click's overloads; it always exits
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Runs a command line and exits with its code."""
        extra["standalone_mode"] = False
        try:
            code = super().main(args, prog_name, **extra)
        except click.exceptions.Exit as error:
            code = error.exit_code
        except click.Abort:
            code = ExitCode.OK
        except click.ClickException as error:
            print(f"freshrank: {' '.join(error.format_message().split())}", file=sys.stderr)
            code = ExitCode.USAGE
        except Exception as error:  # the door to the user: everything is told, nothing is swallowed
            from freshrank.command import fail

            code = fail(error)
        sys.exit(code if isinstance(code, int) else ExitCode.OK)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="freshrank")
def main() -> None:
    """Learns to rank from a stream, while it serves.

    Events become labels, labels become steps, steps become snapshots, snapshots become rankings.

    \b
    Example:
      freshrank up --for 60
    """  # noqa: D301 - click wants the character


if __name__ == "__main__":
    main()
