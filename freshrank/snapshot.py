"""`freshrank snapshot`: what was published, what is live, what the gate refused, and the way back."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from freshrank.command import now_ms, run_options
from freshrank.config import RunConfig
from freshrank.exits import CommandError, ExitCode
from freshrank.snapshot_figures import differences, promoted_by_hand, report_lines, snapshot_lines

if TYPE_CHECKING:
    from model.store import SnapshotStore


@click.group()
def snapshot() -> None:
    """Shows, compares, promotes and rolls back the published snapshots."""


@snapshot.command("list")
@run_options()
def list_snapshots(run: RunConfig) -> None:
    """Lists the snapshots that can be served, the live one marked, and those that failed their gate.

    \b
    Example:
      freshrank snapshot list --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    _echo(run, lambda store: snapshot_lines(store, run.trainer.model_name))


@snapshot.command("show")
@click.argument("version", type=click.IntRange(min=1), required=False)
@run_options()
def show(run: RunConfig, version: int | None) -> None:
    """Shows what each lane serves, rejected versions with their reasons, and rollbacks; or one version in full.

    \b
    Example:
      freshrank snapshot show --config configs/demo.yaml
      freshrank snapshot show 41 --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    if version is None:
        _echo(run, lambda store: snapshot_lines(store, run.trainer.model_name, with_reasons=True))
    else:
        _echo(run, lambda store: report_lines(store, version))


@snapshot.command("diff")
@click.argument("first", type=click.IntRange(min=1))
@click.argument("second", type=click.IntRange(min=1))
@run_options()
def diff(run: RunConfig, first: int, second: int) -> None:
    """Tells how far two versions are apart; rejected ones too, while they are kept.

    \b
    Example:
      freshrank snapshot diff 40 41 --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    _echo(run, lambda store: differences(run.schema, store, first, second))


@snapshot.command("promote")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--reason", required=True, help="Why; it is kept with the snapshot's name in the log.")
@run_options()
def promote(run: RunConfig, version: int, reason: str) -> None:
    """Serves a version that its gate refused, under a new number; the trainer starts again and goes on after it.

    \b
    Example:
      freshrank snapshot promote 41 --reason "a new catalogue, seen and wanted" --config configs/demo.yaml
    """  # noqa: D301 - click wants the character

    def act(store: "SnapshotStore") -> Iterator[str]:
        manifest = promoted_by_hand(run.schema, store, version, now_ms())
        yield f"version {version} serves as {manifest.version}: {reason}"

    _echo(run, act)


@snapshot.command("rollback")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--reason", required=True, help="Why; it is kept with the record.")
@click.option(
    "--quarantine", multiple=True, metavar="PARTITION:FROM-TO",
    help="Offsets of `examples` that the trainer skips, TO not included; may be given several times.",
)  # fmt: skip
@run_options()
def rollback(run: RunConfig, version: int, reason: str, quarantine: tuple[str, ...]) -> None:
    """Serves an older full version again, under a new number, in both lanes, and denies those after it.

    The trainer stops at its next publish; started again, it goes on from its newest checkpoint of before.

    \b
    Example:
      freshrank snapshot rollback 40 --reason "clicks fell" --config configs/demo.yaml
      freshrank snapshot rollback 40 --reason bots --quarantine 0:1200-1300 --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    from model.rollback import roll_back_to

    ranges = dict(map(_range, quarantine))

    def act(store: "SnapshotStore") -> Iterator[str]:
        manifest = roll_back_to(store, version, reason=reason, now_ms=now_ms(), quarantine=ranges)
        denied = store.rollbacks()[0].denied
        yield f"version {version} serves as {manifest.version}; denied: {', '.join(map(str, denied)) or 'none'}"

    _echo(run, act)


def _range(text: str) -> tuple[int, tuple[int, int]]:
    partition, _, offsets = text.partition(":")
    first, _, end = offsets.partition("-")
    if not (partition.isdigit() and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise CommandError(ExitCode.USAGE, f"--quarantine: {text!r} is not allowed; PARTITION:FROM-TO, FROM below TO")
    return int(partition), (int(first), int(end))


def _echo(run: RunConfig, lines: "Callable[[SnapshotStore], Any]") -> None:
    """Prints what is said about the run's store; a version that is not there is a wrong argument."""
    from model.exceptions import SnapshotError, SnapshotMissingError
    from model.store_redis import RedisSnapshotStore

    store = RedisSnapshotStore(run.redis.address, run.trainer.model_name, run.store)
    try:
        for line in lines(store):
            click.echo(line)
    except (SnapshotMissingError, SnapshotError) as error:
        raise CommandError(ExitCode.USAGE, str(error)) from error
    finally:
        store.close()
