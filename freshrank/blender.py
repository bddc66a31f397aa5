"""`freshrank blender`: learned weights by hand: what serves and why, promote, roll back, the switch of exploration."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from freshrank.command import run_options
from freshrank.config import RunConfig

if TYPE_CHECKING:
    from utility_blender.store import BlenderStore
    from utility_blender.version import BlenderVersion

_CONTEXT = click.option(
    "--context",
    "context",
    multiple=True,
    metavar="FEATURE=VALUE",
    help="Feature of the request the weights are shown for (`context.mood=buy`); those left out are null.",
)
_REASON = click.option("--reason", required=True, help="Why, for those who look later.")


@click.group()
def blender() -> None:
    """Shows and moves the learned weights of the utility, and switches exploration."""


@blender.command()
@click.argument("version", type=click.IntRange(min=1), required=False)
@_CONTEXT
@run_options()
def show(run: RunConfig, version: int | None, context: tuple[str, ...]) -> None:
    """Shows what serves, what is denied and what was rejected; with VERSION, that one: weights, origin, gate.

    \b
    Example:
      freshrank blender show --config configs/demo.yaml
      freshrank blender show 3 --config configs/demo.yaml --context context.mood=buy
    """  # noqa: D301 - click wants the character
    with _opened(run) as store:
        for line in _overview(store) if version is None else _details(run, store.get(version), context):
            click.echo(line)


@blender.command()
@click.argument("before", type=click.IntRange(min=0))
@click.argument("after", type=click.IntRange(min=0))
@_CONTEXT
@run_options()
def diff(run: RunConfig, before: int, after: int, context: tuple[str, ...]) -> None:
    """Compares the weights of two versions, 0 being the config's: by task, as factor, and the angle between them.

    \b
    Example:
      freshrank blender diff 0 3 --config configs/demo.yaml --context context.mood=buy
    """  # noqa: D301 - click wants the character
    with _opened(run) as store:
        old, new = (_weights(run, store.get(number) if number else None, context) for number in (before, after))
    for scenario in [name for name in run.schema.scenarios if name in old and name in new]:
        old_T, new_T = old[scenario], new[scenario]
        click.echo(f"{scenario}: {_angle(old_T, new_T):.1f} degrees")
        for task, was, is_now in zip(run.schema.tasks, old_T, new_T, strict=True):
            factor = f"x {is_now / was:.3f}" if was else "not used"
            click.echo(f"  {task}: {was:.4g} -> {is_now:.4g}  {factor}")


@blender.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), required=True, help="Share of the requests.")
@run_options()
def promote(run: RunConfig, version: int, share: float) -> None:
    """Serves VERSION, whose gate has passed, to a share of the requests; a share only grows.

    \b
    Example:
      freshrank blender promote 3 --share 0.1 --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    with _opened(run) as store:
        pointer = store.pointer()
        has_moved = store.promote(version, share=share, epoch=pointer.epoch if pointer else 0)
    click.echo(f"version {version} {'now serves' if has_moved else 'served already'} {share:g} of the requests")


@blender.command()
@click.argument("version", type=click.IntRange(min=0))
@_REASON
@run_options()
def rollback(run: RunConfig, version: int, reason: str) -> None:
    """Serves VERSION to everybody again, 0 being the config's weights; what came after it is denied for good.

    \b
    Example:
      freshrank blender rollback 0 --reason "hides rose" --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    with _opened(run) as store:
        denied = store.rollback(version, reason)
    click.echo(f"version {version} serves all requests; denied: {_listed(denied)}")


@blender.command()
@click.argument("state", type=click.Choice(["on", "off"]))
@_REASON
@run_options()
def explore(run: RunConfig, state: str, reason: str) -> None:
    """Switches the exploration of all rankers on or off, within 2 s.

    \b
    Example:
      freshrank blender explore off --reason "hides rose" --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    with _opened(run) as store:
        store.set_exploration(state == "on", reason)
    click.echo(f"exploration is {state}")


@contextmanager
def _opened(run: RunConfig) -> "Iterator[BlenderStore]":
    from utility_blender.store_redis import RedisBlenderStore

    store = RedisBlenderStore(run.redis.address, run.trainer.model_name, run.blender.store)
    try:
        yield store
    finally:
        store.close()


def _overview(store: "BlenderStore") -> Iterator[str]:
    pointer = store.pointer()
    if pointer is None or pointer.version == 0:
        yield "serving: the weights of the config"
    elif pointer.share == 1:
        yield f"serving: version {pointer.version}"
    else:
        yield f"serving: version {pointer.version} to {pointer.share:g} of the requests, else {pointer.previous}"
    reason = store.exploration_reason()
    yield f"exploration: {'on' if store.exploration() else 'off'}{f' ({reason})' if reason else ''}"
    yield f"served everybody: {_listed(store.versions())}; denied: {_listed(sorted(store.denied()))}"
    for line in store.rollbacks():
        yield f"rollback {line}"
    for version, reasons in store.rejected():
        yield f"rejected {version.version}: {'; '.join(reasons)}"


def _details(run: RunConfig, version: "BlenderVersion", context: tuple[str, ...]) -> Iterator[str]:
    yield f"version {version.version}, {version.method}, around version {version.base_version}"
    yield (
        f"learned from {version.num_outcomes:,} explored requests of snapshots {version.first_snapshot} to "
        f"{version.last_snapshot}, reward table {version.reward_version}"
    )
    for scenario, weights_T in _weights(run, version, context).items():
        named = ", ".join(f"{task} {weight:.4g}" for task, weight in zip(run.schema.tasks, weights_T, strict=True))
        yield f"weights in {scenario}: {named}"
    yield f"gate: {'passed' if version.passed else 'not passed'}"
    for rule in version.gate.get("rules", ()):
        value = rule["value"]
        yield f"  {rule['verdict']}: {rule['name']} {'-' if value is None else f'{value:.4g}'} ({rule['limit']})"


def _weights(run: RunConfig, version: "BlenderVersion | None", context: tuple[str, ...]) -> dict[str, list[float]]:
    """Returns the weights of every scenario that a version serves, on the scale and at the length of production's."""
    import numpy as np

    from utility_blender.blend import Blender
    from utility_blender.explore import ExploreConfig
    from utility_blender.learned import policy_from_dict
    from utility_blender.policy import directions
    from utility_blender.serving import Lanes

    for_everybody = replace(run.blender, explore=ExploreConfig(holdout=0.0))
    of_run = Blender(list(run.schema.tasks), run.schema.scenarios, for_everybody, busy_s=lambda: 0.0)
    if version is not None:
        of_run.lanes = Lanes(stable=of_run.made_ready(version, policy_from_dict(version.policy)))
    features, one_of_each_TT = _features(run, context), np.eye(len(of_run.tasks))
    weights = {}
    for scenario in run.schema.scenarios:
        got, static_T = of_run.weights(scenario, "", features), of_run.production(scenario)
        if got.fallback is None:
            per_score_T = of_run.utility(one_of_each_TT, got.weights_T, got.scale_T)
            on_config_scale_T = per_score_T / of_run.utility(one_of_each_TT, np.ones_like(static_T))
            weights[scenario] = directions(on_config_scale_T[None, :], static_T[None, :])[0].tolist()
    return weights


def _features(run: RunConfig, context: tuple[str, ...]) -> Mapping[str, Mapping[str, Any]]:
    """Returns the features that the weights may depend on, those not given as null.

    Raises:
        ClickException: one that they do not depend on.
    """
    known = run.blender.learn.context
    given = dict(pair.partition("=")[::2] for pair in context)
    if unknown := [name for name in given if name not in known]:
        raise click.ClickException(f"--context: {unknown[0]} is not one of {', '.join(known) or 'none'}")
    features: dict[str, dict[str, Any]] = {"user": {}, "context": {}}
    for full_name in known:
        side, _, name = full_name.partition(".")
        value: str | float | None = given.get(full_name)
        kind = getattr(run.schema.features, side)[name].kind
        if value is not None and kind == "numeric":
            try:
                value = float(value)
            except ValueError as error:
                raise click.ClickException(f"--context: {full_name}: {value!r} is not a number") from error
        features[side][name] = value
    return features


def _angle(one_T: list[float], other_T: list[float]) -> float:
    import numpy as np

    cosine = np.dot(one_T, other_T) / (np.linalg.norm(one_T) * np.linalg.norm(other_T))
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def _listed(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"
