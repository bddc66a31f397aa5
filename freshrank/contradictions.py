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
    yield from _blender(run)
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


def _blender(run: "RunConfig") -> Iterator[str]:
    """Yields what learning the weights lacks."""
    features = [f"{side}.{name}" for side in ("user", "context") for name in getattr(run.schema.features, side)]
    for name in run.blender.learn.context:
        if name not in features:
            yield f"blender.learn.context: {name} is not allowed; one of {', '.join(features)}"
    marks = run.blender.explore.excluding_feature
    if marks and marks not in run.schema.features.user:
        allowed = ", ".join(run.schema.features.user) or "none is declared"
        yield f"blender.explore.excluding_feature: {marks} is no user feature; one of {allowed}"
    known = sorted({task.action for task in run.schema.tasks.values()} | set(run.blender.reward.values))
    for action in run.blender.gate.guarded:
        if action not in known:
            yield f"blender.gate.guarded: {action} is not known; one of {', '.join(known)}"
    if run.blender.learn.method == "off":
        return
    if not any(run.blender.reward.values.values()):
        yield "blender.reward.values: learning needs to know what actions are worth; give each a number"
    if run.blender.reward.aggregate != "sum":
        yield (
            f"blender.reward.aggregate: {run.blender.reward.aggregate} is not allowed where weights are learned; sum, "
            "the gate values items one by one"
        )
    if run.blender.explore.law != "lognormal":
        yield (
            f"blender.explore.law: {run.blender.explore.law} is not allowed where weights are learned; lognormal, the "
            "gate draws again"
        )
    if not run.blender.explore.share:
        yield "blender.explore.share: 0 is not allowed where weights are learned; above 0"
    if run.join.outcome_window_ms is None:
        yield "join.outcome_window_ms: must be given where weights are learned; it is the window of the reward"
    if not run.monitor.blender:
        yield "monitor.blender: must be given where weights are learned, as host:port"
