"""Steps on global micro-batches, as one rank or as one of several: `python -m tests.model.learner_rank_child FOLDER`.

Every rank draws the same global batches and takes its own rows of them. What it saw and became goes to a file.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.admission import AdmissionConfig
from model.config import ModelConfig
from model.delayed_labels import POLICY_CODE, DelayedLabels
from model.embedding_config import EmbeddingConfig
from model.features import EncodedBatch, EncodingConfig
from model.field_ids import FieldIdsConfig
from model.growth import GrowthConfig
from model.labels import LabelBatch
from model.learner import Learner
from model.losses import LossConfig
from model.optim import OptimConfig
from model.ranks import Ranks
from model.score_regularization import ScoreRegularizationConfig
from model.served_teacher import ServedScores
from model.sharding import shards_of_rank
from model.shared_bottom import SharedBottomConfig
from stream.schema import KIND_CODE
from tests.model.rank_world import join
from tests.model.worlds import SCHEMA, TINY_NET, columns, labels

NUM_STEPS = 36
OPEN_SCHEMA = replace(SCHEMA, unknown_scenario="add")
LIMITS = EmbeddingConfig(
    width=4,
    max_rows=180,
    evictions_per_step=3,
    fields={
        "user_id": FieldIdsConfig(ttl_ms=40),
        "item_id": FieldIdsConfig(max_rows=25),
        "item.tags": FieldIdsConfig(row_lr=0.1),
    },
)
ENCODING = EncodingConfig(admission_ids=2, crosses=(("user_id", "item.category"),), crosses_admission=3)
CASES: dict[str, ModelConfig] = {
    "limits": ModelConfig(
        preset="custom",
        hinet=TINY_NET,
        encoding=ENCODING,
        embedding=replace(LIMITS, admission=AdmissionConfig(counter_bits=14)),
        loss=LossConfig(aux_min_positives=20),
        optim=OptimConfig(row_half_life_ms=100, row_clip=0.01, dense_clip=0.5),
        growth=GrowthConfig(scenario_admission=12, open_from_rows=4, open_full_rows=40),
    ),
    "draws": ModelConfig(
        preset="custom",
        hinet=replace(TINY_NET, loss_rows="all", task_layer="global"),
        encoding=ENCODING,
        embedding=EmbeddingConfig(width=4, new_rows="random", admission=AdmissionConfig(rule="probability")),
        loss=LossConfig(weighting="uncertainty", max_example_weight=1.5),
    ),
    "mix": ModelConfig(
        architecture="shared_bottom",
        preset="custom",
        shared_bottom=SharedBottomConfig(bottom=(8, 6), tower=(4,)),
        embedding=EmbeddingConfig(width=4, max_rows=60),
        loss=LossConfig(weighting="mgda"),
    ),
    "held": ModelConfig(
        preset="custom",
        hinet=TINY_NET,
        embedding=replace(LIMITS, admission=AdmissionConfig(counter_bits=14)),
        score_regularization=ScoreRegularizationConfig(teacher="ema", min_examples=2, ema_half_life_steps=5),
    ),
    "served": ModelConfig(
        preset="custom",
        hinet=TINY_NET,
        embedding=EmbeddingConfig(width=4),
        score_regularization=ScoreRegularizationConfig(teacher="served", form="prob_mse"),
    ),
}
"""Between them: admission by count and by draw, ttl, limits of a field and of all, delayed labels, added scenarios,
tasks weighed by what the rows of all ranks say, and scores that are held to those of older models."""


def drawn(learner: Learner, case: str) -> Iterator[tuple[EncodedBatch, LabelBatch]]:
    """Yields global micro-batches: later ones of other ids, some of scenarios that are not listed."""
    rng = np.random.default_rng(7)
    for step in range(NUM_STEPS):
        num_rows = int(rng.integers(8, 40))
        given = columns(rng, 6, num_rows, num_ids=30 + 4 * step)
        if case == "limits":
            given = replace(given, scenario=[n if rng.random() < 0.7 else "brand_new" for n in given.scenario])
        batch, labeled = learner.encode(given), replace(labels(rng, num_rows), watermark_ms=10_000 + 7 * step)
        if step < 3:  # positives first: none is learned before a negative
            labeled = replace(labeled, label_BT=np.maximum(labeled.label_BT, (np.arange(num_rows) > 2)[:, None]))
        if case == "limits":
            labeled = replace(labeled, delayed=delayed(rng, labeled, step))
        if step == 20:  # one broken weight on whatever rank has it: no rank may change anything
            weight_BT = labeled.weight_BT.copy()
            weight_BT[np.nonzero(labeled.mask_BT)[0][0]] = np.nan
            labeled = replace(labeled, weight_BT=weight_BT)
        if case == "served" and step % 4:
            probability_BT = rng.uniform(0.1, 0.9, (num_rows, 2)).astype(np.float32)
            version_B, impression_ms_B = rng.integers(1, 4, num_rows), 9_990 + rng.integers(0, 9, num_rows)
            scores = ServedScores(probability_BT=probability_BT, version_B=version_B, impression_ms_B=impression_ms_B)
            labeled = replace(labeled, served=scores)
        yield batch, replace(labeled, label_BT=labeled.label_BT.astype(np.float32), place_B=np.arange(num_rows))


def delayed(rng: np.random.Generator, labeled: LabelBatch, step: int) -> DelayedLabels | None:
    """Returns what two policies with auxiliary heads need; None in some batches, as if all labels were final."""
    num_rows = len(labeled.label_BT)
    if step % 5 == 4:
        return None
    shape = labeled.label_BT.shape
    policies = [POLICY_CODE["wait"], POLICY_CODE["es_dfm"], POLICY_CODE["dfm"]]
    kinds = [KIND_CODE[kind] for kind in ("early_positive", "early_negative", "matured")]
    return DelayedLabels(
        key_B=rng.integers(1, 2**40, num_rows),
        impression_ms_B=10_000 + 7 * step + rng.integers(0, 5, num_rows),
        policy_BT=rng.choice(policies, shape).astype(np.int8),
        kind_BT=rng.choice(kinds, shape).astype(np.int8),
        delay_ms_BT=np.where(labeled.label_BT > 0, rng.integers(0, 4_000, shape), -1),
        observe_ms_BT=np.full(shape, 500),
        window_ms_BT=np.full(shape, 5_000),
    )


def dealt(num_requests: int, size: int, step: int) -> np.ndarray:
    """Returns the rank of each request: uneven, at some steps all on one rank and none on the others."""
    if step % 6 == 5 or size == 1:
        return np.full(num_requests, step // 6 % size)
    share = np.arange(1, size + 1) ** 2.0
    share[step % size] *= step % 3  # now and then nothing at all
    return np.random.default_rng(step).choice(size, num_requests, p=share / share.sum())


def run(ranks: Ranks, case: str) -> dict[str, Tensor]:
    """Returns what this rank saw (`step.*`), what all have alike (`all.*`) and what is its own (`own.*`)."""
    learner = Learner(OPEN_SCHEMA if case == "limits" else SCHEMA, CASES[case], seed=3, ranks=ranks)
    model, found = learner.trained, {}
    for step, (batch, labeled) in enumerate(drawn(learner, case)):
        rank_R = dealt(batch.num_requests, ranks.size, step)
        rows_B = np.flatnonzero(rank_R[batch.request_index_B] == ranks.rank)
        own, given = batch.take(rows_B), labeled.take(rows_B)
        if not (given.delayed is None or given.delayed.needs_heads_BT().any()):
            given = replace(given, delayed=None)
        scored_BT = learner.score(own)
        report = learner.learn(own, given)
        counts = batch.rows_of_unknown(labeled.first_BT.any(axis=1))
        for name in model.growth.count(counts):
            model.add_scenario(name)
        if model.teacher is not None and step in (5, 12, 19):
            if case == "held":
                model.take_teacher(step, 10_000 + 7 * step)
            model.promote_teacher(step if case == "held" else step // 5, {"home": {"click": (0.9, 0.2)}})
            found[f"step.{step}.teacher"] = torch.tensor([model.teacher.num_held, *model.teacher.masked.values()])
        found[f"step.{step}.scores"] = torch.from_numpy(scored_BT)
        found[f"step.{step}.rows"] = torch.from_numpy(rows_B)
        found[f"step.{step}.logits"] = torch.from_numpy(report.logits_BT)
        found[f"step.{step}.report"] = torch.tensor(of_report(report), dtype=torch.float64)
    found |= {f"all.{name}": tensor for name, tensor in alike(learner).items()}
    found |= {f"own.{name}": tensor for name, tensor in own_state(learner, ranks).items()}
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def of_report(report: Any) -> list[float]:
    """Returns what a report says of all ranks."""
    return [
        report.loss, report.grad_norm, report.made, report.skipped == "loss", report.dense_clipped, report.rows_clipped,
        report.rows_touched, report.rows_admitted, report.weights_capped, report.positives_held_back,
        report.labels_weighed, report.labels_guarded, report.heads_skipped, len(report.policies_begun),
    ]  # fmt: skip


def alike(learner: Learner) -> dict[str, Tensor]:
    """Returns all that every rank has."""
    model, state = learner.trained, learner.trained.state()
    tensors = {name: tensor for name, tensor in state.items() if not ("rows." in name and "reserved" not in name)}
    num_reserved = model.table.layout.num_reserved
    for name in ("weight", "accumulator", "seen.ms"):
        tensors[f"reserved.{name}"] = state[f"rows.{name}"][:num_reserved]
    counters = [
        [one.rows, one.admissions, one.lookups, one.default_lookups, one.missing_lookups, *one.evictions.values()]
        for one in model.table.counters.values()
    ]
    tensors["counters"] = torch.tensor(counters)
    tensors["progress"] = torch.tensor(
        [model.table.clock, model.num_steps, model.shares.num_rows, len(model.registry.names)]
    )
    if model.teacher is not None:
        tensors["teacher.age_ms"] = torch.tensor(model.teacher.age_ms)
    tensors["task_weights"] = torch.from_numpy(model.weighting.weights())
    tensors["opened"] = torch.tensor([share for _, share in model.growth.shares()])
    return tensors


def own_state(learner: Learner, ranks: Ranks) -> dict[str, Tensor]:
    """Returns the rows of a rank by key, its admission counts by shard and its evicted keys."""
    model = learner.trained
    model.serving_full()  # from here on evictions are told
    state = {name.removeprefix("rows."): tensor for name, tensor in model.state().items() if name.startswith("rows.")}
    keys = state["ids.key_of_row"]
    rows = torch.nonzero(keys).flatten()
    rows = rows[torch.argsort(keys[rows])]
    tensors = {"keys": keys[rows]}
    for name in ("weight", "accumulator", "changed_at", "examples", "seen.field", "seen.clock", "seen.ms"):
        tensors[name] = state[name][rows]
    shards = torch.from_numpy(shards_of_rank(ranks.rank, ranks.size))
    tensors["admission.counts"] = state["admission.counts"][shards].long().sum(dim=1)
    tensors["admission.num_counted"] = state["admission.num_counted"][shards]
    return tensors


def main(folder: str) -> None:
    """Runs every case in a world of two, then, with the third rank, in one of three, and writes what came of it."""
    torch.set_num_threads(1)
    for size in (2, 3):
        if int(os.environ["RANK"]) < size:
            os.environ["WORLD_SIZE"] = str(size)
            ranks = join(f"{folder}/{size}")
            for case in CASES:
                save_file(run(ranks, case), f"{folder}/{size}/{case}-{ranks.rank}.safetensors")
            ranks.barrier()
            ranks.close()


if __name__ == "__main__":
    main(str(Path(sys.argv[1])))
