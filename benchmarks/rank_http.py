"""How long does a ranking of 500 candidates take, in process and over HTTP? Goals P7 and P8.

The server is a process of its own on one core, with a real Redis for sequences and snapshots; the load is an open loop
at 50 requests/s from another core. Every value of the requests has a row of its own in the model.
"""

import asyncio
import json
import os
import time

import msgspec
import numpy as np
import redis
import torch

from benchmarks.harness import Figure
from benchmarks.open_loop import open_loop
from benchmarks.rank_server import LOAD_CORE, Served, ranker_server, stay_on
from benchmarks.rank_snapshots import DELTA_ROWS, Publisher, publishing, redis_server
from benchmarks.rank_world import BLENDER, NUM_USERS, SCHEMA, World
from model.config import ModelConfig, Preset
from model.features import FeatureEncoder
from model.precision import Precision
from model.store_redis import RedisSnapshotStore
from ranker.api import RankResponse
from ranker.follow import SnapshotFollower
from ranker.freshness import FreshnessRecorder
from ranker.rank import rank, request_columns
from ranker.request import RequestDecoder, RequestLimits
from ranker.stats import RankerStats
from stream.codec import encode, encode_sequence
from stream.schema import Sequence
from utility_blender.blend import Blender

NUM_BODIES = 100
REQUESTS_PER_S = 50
WARM_UP_S, DURATION_S = 2, 10
COMMAND = "python -m benchmarks.rank_http"
PRESETS: tuple[Preset, ...] = ("small", "published")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
NOW_MS = 1_790_000_000_000


def p99(latencies_ms: list[float]) -> float:
    """Returns the 99th percentile."""
    return float(np.percentile(latencies_ms, 99))


def p99_figure(latencies_ms: list[float], peers: dict[str, float], without_sequence: float = 0.0) -> Figure:
    """Returns the p99 of all requests, with the range of the p99 of five parts of the run."""
    of_parts = [p99(part.tolist()) for part in np.array_split(latencies_ms, 5)]
    p50 = float(np.median(latencies_ms))
    load = os.getloadavg()[0]
    return Figure(
        value=p99(latencies_ms),
        unit="ms",
        ci=(min(of_parts), max(of_parts)),
        command=COMMAND,
        peers=peers,
        note=f"p50 {p50:.2f} ms; {without_sequence:.1%} without a sequence; load of the machine {load:.1f}",
    )


def check(answers: list[bytes]) -> float:
    """Returns the share of answers without the user's sequence: on a busy machine Redis is not always there in 20 ms.

    Raises:
        RuntimeError: an answer is not a full slate by a model, best first, or most are without a sequence.
    """
    num_without = 0
    for answer in answers:
        response = msgspec.json.decode(answer, type=RankResponse)
        utility = [item.utility for item in response.items if item.utility is not None]
        num_without += "sequence" in response.degraded
        if len(utility) != 10 or utility != sorted(utility, reverse=True) or 2 * num_without > len(answers):
            raise RuntimeError(f"not an answer worth timing: {answer!r}")
    return num_without / len(answers)


def in_process(redis_url: str, model: str, bodies: list[bytes], sequence: Sequence) -> dict[str, list[float]]:
    """Returns ms of each request without HTTP and Redis, from body to encoded answer and impression, stage by stage.

    Stages: `whole` by the wall clock; in CPU time `decode`, `encode`, `score`, and `cpu` for all of them and the rest.
    """
    follower = SnapshotFollower(
        RedisSnapshotStore(redis_url, model), SCHEMA, RankerStats(), FreshnessRecorder(lambda: NOW_MS)
    )
    follower.round()
    live = follower.live
    assert live is not None
    decoder = RequestDecoder(SCHEMA, RequestLimits(), RankerStats())
    blender = Blender(tuple(SCHEMA.tasks), SCHEMA.scenarios, BLENDER)
    ms: dict[str, list[float]] = {stage: [] for stage in ("whole", "a request", "decode", "encode", "score")}
    for number in range(3 * len(bodies)):
        body, start_s, start_cpu_s = bodies[number % len(bodies)], time.perf_counter(), time.process_time()
        request = decoder.rank(body)
        ranking = rank(request, sequence, live, blender, request_id=f"r-{number}", now_ms=NOW_MS)
        answer = msgspec.json.encode(ranking.response)
        encode(ranking.impression)
        ms["a request"].append((time.process_time() - start_cpu_s) * 1000)
        ms["whole"].append((time.perf_counter() - start_s) * 1000)
        check([answer])
        clock_s = [time.process_time()]
        request = decoder.rank(body)
        clock_s.append(time.process_time())
        batch = live.model.encode(request_columns(request, sequence, NOW_MS))
        clock_s.append(time.process_time())
        live.model.score(batch)
        clock_s.append(time.process_time())
        for stage, spent_s in zip(("decode", "encode", "score"), np.diff(clock_s).tolist(), strict=True):
            ms[stage].append(spent_s * 1000)
    return {stage: of_stage[len(bodies) :] for stage, of_stage in ms.items()}


def over_http(server: Served, bodies: list[bytes]) -> tuple[list[float], dict[str, float], float]:
    """Returns the latency in ms of each request of an open loop, after a warm-up, the server's CPU time, `check`'s say.

    The load stays on its own core meanwhile.
    """

    async def load(duration_s: float) -> tuple[list[float], list[bytes]]:
        return await open_loop(
            "127.0.0.1", server.port, "/v1/rank", bodies, per_s=REQUESTS_PER_S, duration_s=duration_s
        )

    cores = os.sched_getaffinity(0)
    stay_on(LOAD_CORE)
    try:
        asyncio.run(load(WARM_UP_S))
        start_s = server.cpu_s()
        latencies_ms, answers = asyncio.run(load(DURATION_S))
        cpu_ms = (server.cpu_s() - start_s) * 1000 / len(answers)
    finally:
        os.sched_setaffinity(0, cores)
    return latencies_ms, {"CPU of the server per request": cpu_ms}, check(answers)


def measure() -> dict[str, Figure]:
    """Returns P7 for both sizes in both precisions, over HTTP and in process, and P8 for the small one."""
    torch.set_num_threads(1)
    world = World()
    bodies = [json.dumps(world.request()).encode() for _ in range(NUM_BODIES)]
    sequence = world.sequence()
    figures = {}
    with redis_server() as redis_url:
        redis_client = redis.Redis.from_url(redis_url)
        redis_client.mset({f"freshrank:seq:user-{n}": encode_sequence(world.sequence()) for n in range(NUM_USERS)})
        for preset in PRESETS:
            keys = world.keys(bodies, FeatureEncoder(SCHEMA, ModelConfig(preset=preset).encoding))
            for precision in PRECISIONS:
                publisher = Publisher(redis_url, preset, keys, precision)
                publisher.publish(*publisher.build())
                ms = in_process(redis_url, publisher.model, bodies, sequence)
                cpu_ms = {
                    f"CPU of {stage}": float(np.median(ms[stage]))
                    for stage in ("a request", "decode", "encode", "score")
                }
                suffix = ("" if preset == "small" else f".{preset}") + (
                    "" if precision == "float32" else f".{precision}"
                )
                figures[f"P7.in_process{suffix}"] = p99_figure(ms["whole"], cpu_ms)
                with ranker_server(redis_url, publisher.model) as server:
                    quiet_ms, cost, without = over_http(server, bodies)
                    figures[f"P7{suffix}"] = p99_figure(quiet_ms, {"in process": p99(ms["whole"]), **cost}, without)
                    if not suffix:
                        figures["P8"] = _rise(publisher, server, bodies, quiet_ms)
    return figures


def _rise(publisher: Publisher, server: Served, bodies: list[bytes], quiet_ms: list[float]) -> Figure:
    """Returns P8: by how much the p99 is higher while a delta lands every second."""
    deltas = [publisher.build(DELTA_ROWS) for _ in range(WARM_UP_S + DURATION_S)]
    with publishing(publisher, deltas):
        busy_ms, _, _ = over_http(server, bodies)
    rise = 100 * (p99(busy_ms) / p99(quiet_ms) - 1)
    return Figure(
        value=rise,
        unit="%",
        ci=(rise, rise),
        command=COMMAND,
        peers={"p99 quiet ms": p99(quiet_ms), "p99 with a delta a second ms": p99(busy_ms)},
        note=f"deltas of {DELTA_ROWS} rows, {len(deltas[0][1])} bytes",
    )


def main() -> None:
    """Prints the figures."""
    for goal, figure in measure().items():
        print(goal, json.dumps(figure.as_json()), flush=True)


if __name__ == "__main__":
    main()
