"""How long do the weights of one request take, while a ranker waits for them?

Processor time per call of `Blender.weights`: production weights, with exploration on 1 % of the requests, and learned
weights of one, three and six steps from production: six context features, networks of [64, 32], four tasks.

    python -m benchmarks.blender_weights
"""

import numpy as np

from benchmarks.harness import Figure, cpu_rate
from utility_blender.blend import Blender, BlenderConfig
from utility_blender.contexts import ContextEncoder
from utility_blender.explore import ExploreConfig
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import LearnedPolicy, Link
from utility_blender.mlp import Mlp
from utility_blender.serving import Lanes
from utility_blender.version import BlenderVersion

COMMAND = "python -m benchmarks.blender_weights"
WEIGHTS = {"click": 1.0, "long_view": 1.0, "order": 5.0, "hide": -2.0}
SCENARIOS = ("home", "search", "deals")
CATEGORIES = tuple(f"context.category_{number}" for number in range(5))
FEATURES = {"context": {**{name.partition(".")[2]: "v3" for name in CATEGORIES}, "hour": 0.3}}
CALLS = 2_000


def blender(num_links: int, share: float = 0.0) -> Blender:
    """Returns a blender whose weights are `num_links` steps from production; 0: production's."""
    explore = ExploreConfig(share=share, holdout=0.0)
    config = BlenderConfig(
        weights={"default": WEIGHTS}, learn=LearnConfig(context=(*CATEGORIES, "context.hour")), explore=explore
    )
    made = Blender(tuple(WEIGHTS), SCENARIOS, config)
    if num_links:
        made.lanes = Lanes(stable=made.made_ready(version(), policy(num_links)))
    return made


def policy(num_links: int) -> LearnedPolicy:
    """Returns steps by networks of random weights."""
    rng = np.random.default_rng(0)
    values = {name: tuple(f"v{number}" for number in range(12)) for name in CATEGORIES}
    encoder = ContextEncoder(scenarios=SCENARIOS, values=values, numbers={"context.hour": (0.0, 1.0)})
    widths = (encoder.width, 64, 32, len(WEIGHTS))
    links = [
        Link(
            encoder,
            Mlp(tuple((rng.normal(0, 0.05, (a, b)), np.zeros(b)) for a, b in zip(widths, widths[1:], strict=False))),
        )
        for _ in range(num_links)
    ]
    return LearnedPolicy(tuple(WEIGHTS), {"default": np.array(list(WEIGHTS.values()))}, tuple(links))


def version() -> BlenderVersion:
    """Returns what goes with the weights."""
    return BlenderVersion(
        version=1,
        base_version=0,
        created_ms=0,
        method="reward_regression",
        tasks=tuple(WEIGHTS),
        schema_hash="",
        scale={scenario: dict.fromkeys(WEIGHTS, 1.0) for scenario in SCENARIOS},
        reward_version="",
        first_snapshot=0,
        last_snapshot=0,
        num_outcomes=0,
        policy={},
        gate={},
    )


def cost_us(made: Blender, repeats: int) -> tuple[float, tuple[float, float]]:
    """Returns microseconds of processor time per request: median, lowest and highest of the runs."""

    def work() -> int:
        for number in range(CALLS):
            made.weights("home", f"r-{number}", FEATURES, user_id="u")
        return CALLS

    rate = cpu_rate(work, repeats=repeats)
    low, high = (1e6 / per_s for per_s in reversed(rate.per_cpu_s_range))
    return 1e6 / rate.per_cpu_s, (low, high)


def measure(repeats: int = 5) -> dict[str, Figure]:
    """Returns the cost of learned weights one step from production, with the others beside it."""
    value, ci = cost_us(blender(1), repeats)
    others = {
        "production weights": blender(0),
        "production weights, 1 % explored": blender(0, share=0.01),
        "learned weights, 3 steps": blender(3),
        "learned weights, 6 steps": blender(6),
    }
    peers = {name: cost_us(made, repeats)[0] for name, made in others.items()}
    note = "learned weights, one step, six features, network of [64, 32], bounds included"
    return {"blender.weights": Figure(value=value, unit="us/request", ci=ci, command=COMMAND, peers=peers, note=note)}


if __name__ == "__main__":
    for key, figure in measure().items():
        print(key, figure.as_json())
