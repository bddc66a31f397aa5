"""`freshrank plan`: what a load needs, what it costs, and how fresh its rankings are."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from freshrank.plan_load import Load, defaults

_DEFAULT = defaults()
F = TypeVar("F", bound=Callable[..., Any])


def _number(name: str, text: str, kind: type = float) -> Callable[[F], F]:
    """Returns an option with the default of the field of `Load`; `Load` itself says what is allowed."""
    given: dict[str, Any] = {"required": True}
    if name in _DEFAULT:
        given = {"default": _DEFAULT[name], "show_default": _DEFAULT[name] is not None}
    return click.option("--" + name.replace("_", "-"), type=kind, help=text, **given)


@click.command()
@_number("events_per_s", "Items shown and actions on them, per second.")
@_number("items", "Items that have a row in the model.", int)
@_number("users", "Users that have one.", int)
@_number("qps", "Rankings asked for, per second.")
@_number("freshness_s", "From an action to the first ranking that knows it, for 99 of 100 actions.")
@_number("slate", "Items shown per ranking.", int)
@_number("candidates", "Items ranked per request.", int)
@_number("actions_per_item", "Actions per item shown.")
@_number("window_s", "The longest label window.")
@_number("closes", "Different label windows; each trains every item shown once more.", int)
@_number("other_values", "Values of all other fields that have a row.", int)
@_number("sequence_length", "`agents.sequence_length`; every user is taken to have so many.", int)
@click.option("--preset", type=click.Choice(["small", "published"]), default="small", show_default=True)
@_number("width", "Floats per embedding row.", int)
@_number("scenarios", "Scenarios that the publish gate judges.", int)
@_number("replication", "Copies that Kafka keeps.", int)
@_number("retention_days", "How long Kafka keeps messages.")
@_number("commit_interval_ms", "`join.commit_interval_ms`.", int)
@_number("max_wait_ms", "`trainer.max_wait_ms`.", int)
@_number("full_every", "`trainer.full_every`; found if left out.", int)
@_number("hot_rows", "`model.embedding.hot_rows`; as many as a full version holds if left out.", int)
@_number("utilisation", "How busy joiners, ranks, brokers and links may be.")
@_number("ranker_utilisation", "How busy rankers may be.")
@_number("judged_share", "`trainer.judged_share`.")
@_number("ranker_cores", "What if a ranker's tables were shared by so many cores: not built.", int)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the simulation.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def plan(seed: int, as_json: bool, **given: Any) -> None:
    """Plans a deployment: processes, memory, bandwidth, disk, and the freshness that a simulation of it gives.

    Every figure names the measured cost of one core that it rests on, or says that it is assumed, and how far beyond
    what was run it is stretched. Nothing is started and nothing is read but the package. docs/scale.md explains the
    model.

    \b
    Example:
      freshrank plan --events-per-s 10000 --items 1000000 --users 1000000 --qps 450 --freshness-s 2
    """  # noqa: D301 - click wants the character
    import json

    from freshrank.plan_costs import packaged_costs
    from freshrank.plan_solve import plan_for
    from freshrank.plan_text import plan_as_json, plan_text

    costs = packaged_costs()
    try:
        found = plan_for(Load(**given), costs, seed)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(plan_as_json(found, costs, seed), indent=1))
    else:
        for line in plan_text(found, costs, seed):
            click.echo(line)
