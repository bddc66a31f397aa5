"""`freshrank checkpoint`: what the trainer could go on from."""

import click

from freshrank.command import run_options
from freshrank.config import RunConfig


@click.group()
def checkpoint() -> None:
    """Shows the trainer's checkpoints."""


@checkpoint.command("list")
@run_options()
def list_checkpoints(run: RunConfig) -> None:
    """Lists the checkpoints, newest first, and says which of them are whole.

    \b
    Example:
      freshrank checkpoint list --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    from model.checkpoint import checkpoint_paths
    from model.checkpoint_load import check_checkpoint
    from model.exceptions import CheckpointCorruptError

    paths = checkpoint_paths(run.checkpoint.folder)
    if not paths:
        click.echo(f"{run.checkpoint.folder}: no checkpoints")
    for path in paths:
        try:
            manifest = check_checkpoint(path)
        except CheckpointCorruptError as error:
            click.echo(f"{path.name}  broken: {error}")
            continue
        where = " ".join(f"{partition}@{at.offset}" for partition, at in sorted(manifest.positions.items()))
        fits = "fits" if manifest.schema_hash == run.schema.schema_hash() else "of another schema"
        size = sum(length for length, _ in manifest.files.values())
        click.echo(f"{path.name}  step {manifest.step}  version {manifest.version}  {size:,} bytes  {where}  {fits}")
