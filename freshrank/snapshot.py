"""`freshrank snapshot`: what was published, what is live, and what its gate refused."""

import click

from freshrank.command import run_options
from freshrank.config import RunConfig


@click.group()
def snapshot() -> None:
    """Shows the published snapshots."""


@snapshot.command("list")
@run_options()
def list_snapshots(run: RunConfig) -> None:
    """Lists the snapshots that can be served, the live one marked, and those that failed their gate.

    \b
    Example:
      freshrank snapshot list --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    from model.store_redis import RedisSnapshotStore

    store = RedisSnapshotStore(run.redis.url, run.trainer.model_name, run.store)
    live = store.pointer()
    if live is None:
        click.echo(f"{run.trainer.model_name}: no snapshot yet")
    for version in store.versions():
        manifest = store.manifest(version)
        if manifest is None:  # retired while we look
            continue
        mark = "*" if live is not None and version == live.version else " "
        base = f" on {manifest.base_version}" if manifest.kind == "delta" else ""
        about = f"step {manifest.step}  {manifest.payload_bytes:,} bytes  run {manifest.run_id}"
        click.echo(f"{mark} {version}  {manifest.kind}{base}  {about}")
    for rejection in store.rejected():
        click.echo(f"- {rejection.manifest.version}  refused: {rejection.reason}")
    store.close()
