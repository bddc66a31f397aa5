"""P4: how many examples per CPU-second does a HiNet training step learn, and how near is that to its matrix products?

Batch 512, 20 fields of width 16, 3 scenarios, 2 tasks, one thread. Ids are Zipf distributed and warm (admitted). A step
is all of `Learner.learn`: look-up, admission, forward, loss, backward, guard, clipping, Adam, row-wise Adagrad.

Peers, in the same run: `plain loop`, the same network with one `nn.Linear` at a time on one `nn.Embedding` per field
(sparse gradients, sparse Adagrad; its ids are rows already, so it looks nothing up and admits nothing); `plain loop,
dense only`, without its embeddings; `matrix products`, the bare float32 GEMMs of our step on the same shapes; and
`bfloat16 products`, our step with `model.precision: bfloat16`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Figure, Rate, cpu_rate
from model.config import ModelConfig
from model.features import EncodingConfig, RowColumns
from model.hinet_config import HiNetConfig
from model.labels import LabelBatch
from model.learner import Learner
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig, TaskConfig

COMMAND = "python -m benchmarks.hinet_step"
NUM_ROWS, NUM_FIELDS, WIDTH, NUM_TASKS = 512, 20, 16, 2
SHARES = (0.6, 0.3, 0.1)
NUM_BATCHES, STEPS_PER_RUN = 8, 8

CATEGORICAL = FeatureConfig(kind="categorical")
SCHEMA = SchemaConfig(
    scenarios=("home", "search", "deals"),
    tasks={name: TaskConfig(action=name, window_ms=60_000) for name in ("click", "order")},
    features=FeaturesConfig(
        user={f"u{n}": CATEGORICAL for n in range(7)},
        context={f"c{n}": CATEGORICAL for n in range(4)},
        item={f"i{n}": CATEGORICAL for n in range(7)},
    ),
)


def batches(
    num_requests: int, rng: np.random.Generator, *, num_rows: int = NUM_ROWS, num_batches: int = NUM_BATCHES
) -> list[RowColumns]:
    """Returns batches whose rows belong to `num_requests` requests; ids and values are Zipf distributed."""

    def values(count: int, vocabulary: int) -> list[str]:
        return [str(n) for n in np.minimum(rng.zipf(1.3, count), vocabulary)]

    return [
        RowColumns(
            scenario=[SCHEMA.scenarios[i] for i in rng.choice(3, num_requests, p=SHARES)],
            user_id=values(num_requests, 100_000),
            item_id=values(num_rows, 100_000),
            request_index_B=np.sort(np.arange(num_rows) % num_requests),
            user={f"u{n}": values(num_requests, 100) for n in range(7)},
            context={f"c{n}": values(num_requests, 20) for n in range(4)},
            item={f"i{n}": values(num_rows, 1_000) for n in range(7)},
        )
        for _ in range(num_batches)
    ]


def learner_step(
    config: ModelConfig,
    num_requests: int,
    *,
    num_rows: int = NUM_ROWS,
    num_batches: int = NUM_BATCHES,
    device: torch.device | None = None,
) -> Callable[[], int]:
    """Returns a run of whole training steps; every batch has been learned once before."""
    rng, learner = np.random.default_rng(0), Learner(SCHEMA, config, seed=0, device=device)
    drawn = batches(num_requests, rng, num_rows=num_rows, num_batches=num_batches)
    encoded = [learner.encode(columns) for columns in drawn]
    on_BT = np.ones((num_rows, NUM_TASKS), bool)
    labels = [
        LabelBatch(
            label_BT=(rng.random(on_BT.shape) < 0.1).astype(np.float32),
            mask_BT=on_BT,
            weight_BT=on_BT.astype(np.float32),
            first_BT=on_BT,
        )
        for _ in encoded
    ]

    def work() -> int:
        for batch, given in zip(encoded, labels, strict=True):
            report = learner.learn(batch, given)
            assert report.skipped is None and 0.0 < report.loss < 10.0
        return len(encoded) * num_rows

    return work


class PlainSei(nn.Module):
    """K experts and a gate, one linear layer at a time."""

    def __init__(self, num_experts: int, num_gates: int, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out), nn.ReLU())
            for _ in range(num_experts)
        )
        self.gates = nn.ModuleList(nn.Linear(width, num_experts) for _ in range(num_gates))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Returns the mix of the first gate, [B, d]."""
        outputs = torch.stack([expert(x_BD) for expert in self.experts], dim=1)
        mixed_Bd: Tensor = (self.gates[0](x_BD).softmax(dim=1)[:, :, None] * outputs).sum(dim=1)
        return mixed_Bd


class PlainHeads(nn.Module):
    """One scenario's task experts, gates and towers, one at a time."""

    def __init__(self, config: HiNetConfig) -> None:
        super().__init__()
        self.num_own, num_shared, width = (
            config.num_task_experts,
            config.num_shared_task_experts,
            3 * config.expert_width,
        )
        self.experts = PlainSei(NUM_TASKS * self.num_own + num_shared, 0, width, config.task_hidden, config.task_width)
        self.gates = nn.ModuleList(nn.Linear(width, self.num_own + num_shared) for _ in range(NUM_TASKS))
        widths = [config.task_width, *config.tower]
        self.towers = nn.ModuleList(
            nn.Sequential(
                *(m for a, b in zip(widths, widths[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())),
                nn.Linear(widths[-1], 1),
            )
            for _ in range(NUM_TASKS)
        )

    def forward(self, c_BC: Tensor) -> Tensor:
        """Returns the logits, [B, T]."""
        experts, logits = [expert(c_BC) for expert in self.experts.experts], []
        for j, (gate, tower) in enumerate(zip(self.gates, self.towers, strict=True)):
            own, shared = experts[j * self.num_own : (j + 1) * self.num_own], experts[NUM_TASKS * self.num_own :]
            seen = torch.stack(own + shared, dim=1)
            logits.append(tower((gate(c_BC).softmax(dim=1)[:, :, None] * seen).sum(dim=1)))
        return torch.cat(logits, dim=1)


class PlainHiNet(nn.Module):
    """HiNet with a Python loop over experts, tasks and scenarios; rows run their own scenario's heads only."""

    def __init__(self, config: HiNetConfig, width: int) -> None:
        super().__init__()
        sizes = (width, config.expert_hidden, config.expert_width)
        self.shared = PlainSei(config.num_shared_experts, 1, *sizes)
        self.own = nn.ModuleList(PlainSei(config.num_scenario_experts, 1, *sizes) for _ in SHARES)
        self.embedding = nn.Embedding(len(SHARES), config.scenario_embedding)
        self.attention = nn.Linear(config.scenario_embedding, len(SHARES))
        self.heads = nn.ModuleList(PlainHeads(config) for _ in SHARES)

    def forward(self, x_BD: Tensor, offsets: list[int]) -> Tensor:
        """Returns [B, T] for rows sorted by scenario."""
        shared, own = self.shared(x_BD), [sei(x_BD) for sei in self.own]
        logits = []
        for i, (start, stop) in enumerate(zip(offsets, offsets[1:], strict=False)):
            z = self.attention(self.embedding.weight[i])
            others = [m for m in range(len(SHARES)) if m != i]
            a = z[others].softmax(dim=0)
            mix = torch.stack([a[n] * own[m][start:stop] for n, m in enumerate(others)]).sum(dim=0)
            c_BC = torch.cat([shared[start:stop], own[i][start:stop], mix], dim=1)
            logits.append(self.heads[i](c_BC))
        return torch.cat(logits)


def plain_step(config: HiNetConfig, *, with_embeddings: bool) -> Callable[[], int]:
    """Returns a run of steps of the plain-loop form."""
    torch.manual_seed(0)
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call] # torch leaves it untyped
    rng = np.random.default_rng(0)
    net = PlainHiNet(config, NUM_FIELDS * WIDTH)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    tables = nn.ModuleList(nn.Embedding(1_000, WIDTH, sparse=True) for _ in range(NUM_FIELDS))
    adagrad = torch.optim.Adagrad(tables.parameters(), lr=0.05)
    row_FB = torch.from_numpy(np.minimum(rng.zipf(1.3, (NUM_FIELDS, NUM_ROWS)), 1_000) - 1)
    x_BD = torch.randn(NUM_ROWS, NUM_FIELDS * WIDTH).requires_grad_()
    label_BT = (torch.rand(NUM_ROWS, NUM_TASKS) < 0.1).float()
    offsets = scenario_offsets()

    def work() -> int:
        for _ in range(STEPS_PER_RUN):
            adam.zero_grad(set_to_none=True)
            adagrad.zero_grad(set_to_none=True)
            if with_embeddings:
                x = torch.cat([table(row_B) for table, row_B in zip(tables, row_FB, strict=True)], dim=1)
            else:
                x = x_BD
            loss = F.binary_cross_entropy_with_logits(net(x, offsets), label_BT)
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped
            torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            adam.step()
            if with_embeddings:
                adagrad.step()
        assert 0.0 < loss.item() < 10.0
        return STEPS_PER_RUN * NUM_ROWS

    return work


def scenario_offsets() -> list[int]:
    """Returns where each scenario's rows start when a batch holds exactly its share of each."""
    return [0, *np.cumsum(np.round(np.array(SHARES) * NUM_ROWS).astype(int))[:-1].tolist(), NUM_ROWS]


def products(config: HiNetConfig) -> Iterator[tuple[int, int, int, int]]:
    """Yields (batch, rows, in, out) of every product of a forward pass."""
    offsets, width = scenario_offsets(), NUM_FIELDS * WIDTH
    for num_experts in (config.num_shared_experts, *[config.num_scenario_experts] * len(SHARES)):
        yield 1, NUM_ROWS, width, num_experts * (config.expert_hidden + 1)
        yield num_experts, NUM_ROWS, config.expert_hidden, config.expert_width
    seen = config.num_task_experts + config.num_shared_task_experts
    num_experts = NUM_TASKS * config.num_task_experts + config.num_shared_task_experts
    for start, stop in zip(offsets, offsets[1:], strict=False):
        yield 1, stop - start, 3 * config.expert_width, num_experts * config.task_hidden + NUM_TASKS * seen
        yield num_experts, stop - start, config.task_hidden, config.task_width
        widths = [config.task_width, *config.tower, 1]
        for fan_in, out in zip(widths, widths[1:], strict=False):
            yield NUM_TASKS, stop - start, fan_in, out


def num_flops(config: HiNetConfig) -> float:
    """Returns the floating point operations of a step's products per example: forward and two backward."""
    return sum(3 * 2.0 * n * rows * fan_in * out for n, rows, fan_in, out in products(config)) / NUM_ROWS


def products_step(config: HiNetConfig) -> Callable[[], int]:
    """Returns a run of the bare products of steps, forward and both backward ones, into memory that is there."""
    shapes = list(products(config))
    operands = [(torch.randn(n, b, i), torch.randn(n, i, o), torch.randn(n, b, o)) for n, b, i, o in shapes]
    results = [(torch.empty(n, b, o), torch.empty(n, i, o), torch.empty(n, b, i)) for n, b, i, o in shapes]

    def work() -> int:
        for _ in range(STEPS_PER_RUN):
            for (x, w, g), (y, dw, dx) in zip(operands, results, strict=True):
                torch.bmm(x, w, out=y)
                torch.bmm(x.transpose(1, 2), g, out=dw)
                torch.bmm(g, w.transpose(1, 2), out=dx)
        return STEPS_PER_RUN * NUM_ROWS

    return work


def measure() -> dict[str, Figure]:
    """Returns P4 for both presets: `P4` is the small one, `P4.published` the paper's size."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            "P4": figure("small"),
            "P4.published": figure("published"),
        }
    finally:
        torch.set_num_threads(num_threads)


def figure(preset: str) -> Figure:
    """Returns the figure of one preset, its peers measured in between."""
    encoding = EncodingConfig(history_length=0)
    config = ModelConfig(preset="small" if preset == "small" else "published", encoding=encoding)
    runs: dict[str, Rate] = {
        "ours": cpu_rate(learner_step(config, NUM_ROWS)),
        "plain loop": cpu_rate(plain_step(config.network, with_embeddings=True)),
        "plain loop, dense only": cpu_rate(plain_step(config.network, with_embeddings=False)),
        "matrix products": cpu_rate(products_step(config.network)),
        "bfloat16 products": cpu_rate(learner_step(replace(config, precision="bfloat16"), NUM_ROWS)),
        "slates of 10": cpu_rate(learner_step(config, -(-NUM_ROWS // 10))),
    }
    ours, ceiling = runs.pop("ours"), runs["matrix products"].per_cpu_s
    gflops = num_flops(config.network) * ceiling / 1e9
    return Figure(
        value=ours.per_cpu_s,
        unit="examples/CPU-s",
        ci=ours.per_cpu_s_range,
        command=COMMAND,
        peers={name: rate.per_cpu_s for name, rate in runs.items()},
        note=(
            f"preset {preset}, single-item slates; {ours.per_cpu_s / ceiling:.0%} of the rate of its matrix products"
            f" ({gflops:.0f} GFLOP/s), {ours.per_cpu_s / runs['plain loop'].per_cpu_s:.2f} x the plain loop;"
            " `slates of 10` is ours with ten rows per request"
        ),
    )


if __name__ == "__main__":
    for key, one in measure().items():
        print(key, one.as_json())
