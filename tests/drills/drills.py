"""The drills: what is done, for how long, what must be seen, and how soon all must be well again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.drills.cluster import Cluster

HOUR_S = 3_600
_RESTARTING_S = 45.0
"""A process of ours that is killed has so long where no goal says less: its imports on a busy machine."""


def _nothing(cluster: Cluster) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """One failure."""

    name: str
    what: str
    """In words, for the table."""
    inflict: Callable[[Cluster], None]
    mend: Callable[[Cluster], None] = _nothing
    lasts_s: float = 0.0
    """Between the two."""
    alarm: str
    """Part of the text of an alarm that must be raised."""
    settles_s: float = 0.0
    """After the mending, before anybody asks whether all is well: what is judged window by window comes late."""
    within_s: float = 30.0
    """All must be well so long after the mending: a fresh version served, everybody working, nobody degraded."""
    training_within_s: float | None = None
    """A killed trainer must make its next step so soon."""
    kills_ranker: bool = False
    """Users may go unanswered until it is back, and it comes back without a model."""
    moves_clock: bool = False
    """Of the ranker: its ages cannot be checked meanwhile."""


def all_drills(cluster: Cluster, long_s: float, short_s: float) -> Iterator[Drill]:
    """Yields every drill that can be done here, in order; services are gone for `long_s`, the rest lasts `short_s`."""
    yield from _kills(cluster)
    yield from _redis(long_s)
    yield from _kafka(long_s)
    if cluster.network.can_cut:
        yield Drill(
            name="network-cut",
            what=f"Redis and Kafka behind a cut cable for {long_s:g} s, packets vanish",
            inflict=lambda c: c.network.cut(),
            mend=lambda c: c.network.mend(),
            lasts_s=long_s,
            alarm="ranker: snapshot store gone",
            within_s=10.0,
        )
    yield from _disks(cluster, short_s)
    yield from _clocks(short_s)
    for name in ("joiner", "trainer"):
        yield Drill(
            name=f"slow-{name}",
            what=f"the {name} gets 10 % of its time for {short_s:g} s",
            inflict=lambda c, name=name: c.slow_down(name, 0.1),  # type: ignore[misc]  # mypy knows no default here
            mend=lambda c, name=name: c.speed_up(name),  # type: ignore[misc]
            lasts_s=short_s,
            alarm="",
        )


def _kills(cluster: Cluster) -> Iterator[Drill]:
    for name in cluster.processes:
        yield Drill(
            name=f"kill-{name}",
            what=f"kill −9 of the {name}",
            inflict=lambda c, name=name: c.kill(name),  # type: ignore[misc]
            alarm=f"{name} ",
            within_s=_RESTARTING_S,
            training_within_s=5.0 if name == "trainer" else None,
            kills_ranker=name == "ranker",
        )


def _redis(long_s: float) -> Iterator[Drill]:
    yield Drill(
        name="redis-paused",
        what=f"Redis paused for {long_s:g} s (SIGSTOP)",
        inflict=lambda c: c.redis.pause(),
        mend=lambda c: c.redis.resume(),
        lasts_s=long_s,
        alarm="ranker: snapshot store gone",
        within_s=10.0,
    )
    yield Drill(
        name="redis-wiped",
        what="Redis wiped (FLUSHALL)",
        inflict=lambda c: c.redis.wipe(),
        alarm="",
        within_s=10.0,
    )
    yield Drill(
        name="redis-restarted",
        what=f"Redis killed, {long_s:g} s later back and empty",
        inflict=lambda c: c.redis.kill(),
        mend=lambda c: c.redis.start(),
        lasts_s=long_s,
        alarm="ranker: snapshot store gone",
        within_s=10.0,
    )


def _kafka(long_s: float) -> Iterator[Drill]:
    yield Drill(
        name="kafka-paused",
        what=f"the Kafka broker paused for {long_s:g} s (SIGSTOP)",
        inflict=lambda c: c.broker.pause(),
        mend=lambda c: c.broker.resume(),
        lasts_s=long_s,
        alarm="model age",
        within_s=10.0,
    )
    yield Drill(
        name="kafka-restarted",
        what=f"the Kafka broker killed, started {long_s:g} s later",
        inflict=lambda c: c.broker.restart(pause_ms=1_000 * long_s, is_hard=True),
        mend=_until_up,
        lasts_s=long_s,
        alarm="model age",
        within_s=10.0,
    )


def _until_up(cluster: Cluster) -> None:
    cluster.wait_for(lambda: cluster.broker.is_up, 60.0)


def _disks(cluster: Cluster, short_s: float) -> Iterator[Drill]:
    disk, broker_disk = cluster.disk, cluster.broker_disk
    if disk is not None:
        yield Drill(
            name="disk-full",
            what=f"the disk of checkpoints and of the joiner's state full for {short_s:g} s",
            inflict=lambda _: disk.fill(),
            mend=lambda _: disk.free(),
            lasts_s=short_s,
            alarm="trainer: no checkpoint",
        )
    if broker_disk is not None:
        yield Drill(
            name="broker-disk-full",
            what=f"the broker's disk full for {short_s:g} s; then room, and the broker started",
            inflict=lambda _: broker_disk.fill(),
            mend=_free_broker,
            lasts_s=short_s,
            alarm="model age",
        )


def _free_broker(cluster: Cluster) -> None:
    assert cluster.broker_disk is not None
    cluster.broker_disk.free()
    cluster.broker.restart(pause_ms=0, is_hard=True)
    _until_up(cluster)


def _clocks(short_s: float) -> Iterator[Drill]:
    for name in ("ranker", "trainer", "joiner"):
        for ahead_s, way in ((HOUR_S, "ahead"), (-HOUR_S, "behind")):
            yield Drill(
                name=f"clock-{name}-{way}",
                what=f"the {name}'s clock jumps an hour {way}, and back {short_s:g} s later",
                inflict=lambda c, name=name, ahead_s=ahead_s: c.set_clock(name, ahead_s),  # type: ignore[misc]
                mend=lambda c, name=name: c.set_clock(name, 0),  # type: ignore[misc]
                lasts_s=short_s,
                alarm="",
                moves_clock=name == "ranker",
                # Its gate takes events for those of the future, or has judged nothing for an hour: it blocks, or rolls
                # back, at the end of a window of 10 s, and publishes again after windows that are in order.
                settles_s=25.0 if name == "trainer" else 0.0,
                within_s=120.0 if name == "trainer" else 30.0,
            )
