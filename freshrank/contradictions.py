"""Settings that are right by themselves and wrong together."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from freshrank.places import addresses

if TYPE_CHECKING:
    from freshrank.config import RunConfig


def contradictions(run: "RunConfig") -> Iterator[str]:
    """Yields a sentence for each pair of sections that cannot be right together."""
    from model.learner import Learner
    from stream.timeline import Timeline
    from utility_blender.blend import Blender

    scenarios = run.schema.scenarios
    try:
        Timeline(run.schema, run.join.grace_ms, run.join.outcome_window_ms)
    except ValueError as error:
        yield str(error)
    try:
        Blender(list(run.schema.tasks), scenarios, run.blender)
    except ValueError as error:
        yield f"blender.{error}"
    try:
        Learner(run.schema, run.model, seed=0)
    except ValueError as error:
        yield f"model.{error}"
    if run.join.idle_ms < run.join.commit_interval_ms:
        yield (
            f"join.idle_ms: {run.join.idle_ms} is not allowed; at least join.commit_interval_ms "
            f"({run.join.commit_interval_ms}), or topics are called idle between two commits"
        )
    may_be_more = run.schema.unknown_scenario == "add" and set(run.sim.scenarios) > set(scenarios)
    if run.monitor.simulator and set(run.sim.scenarios) != set(scenarios) and not may_be_more:
        yield f"sim.scenarios: {', '.join(run.sim.scenarios)} is not what the run lists: {', '.join(scenarios)}"
    if run.monitor.simulator and run.sim.moods and "mood" not in run.schema.features.context:
        yield "sim.moods: needs the feature `mood`; declare it: features.context.mood: categorical"
    ports = [int(address.rpartition(":")[2]) for address in addresses(run.monitor.ranker)]
    if run.ranker.server.port not in ports:
        yield f"ranker.server.port: {run.ranker.server.port} is not among those the page asks: {run.monitor.ranker}"
    owner: dict[str, str] = {f"{run.monitor.host}:{run.monitor.port}": "monitor.port"}
    for process, address in run.monitor.targets().items():
        if address in owner:
            yield f"monitor.{process}: {address} is taken by {owner[address]}"
        owner[address] = f"monitor.{process}"
