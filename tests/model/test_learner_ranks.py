"""One rank, two ranks and three on the same global micro-batches: the same model, whoever computed it.

Sums over rows are taken in another order, so that numbers agree up to rounding: within 1e-5 after 36 steps (about 2e-7
is seen). What counts things is equal, and what all ranks have is the same to the bit.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.ranks import Ranks
from tests.model import learner_rank_child
from tests.model.learner_rank_child import CASES, NUM_STEPS
from tests.model.rank_world import outputs, start_ranks

CHILD = "tests.model.learner_rank_child"
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What two ranks and three left behind, by their number."""
    folder = tmp_path_factory.mktemp("ranks")
    for size in (2, 3):
        (folder / str(size)).mkdir()
    texts = outputs(start_ranks(CHILD, 3, folder), timeout_s=280)
    assert all(text.endswith("exit 0") for text in texts), "\n".join(texts)
    return {size: folder / str(size) for size in (2, 3)}


@pytest.fixture(scope="module")
def alone() -> dict[str, Found]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {case: learner_rank_child.run(Ranks.alone(), case) for case in CASES}
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", list(CASES))
def test_ranks_learn_what_one_rank_learns(
    worlds: dict[int, Path], alone: dict[str, Found], case: str, size: int
) -> None:
    one, ranks = alone[case], [load_file(worlds[size] / f"{case}-{rank}.safetensors") for rank in range(size)]
    for step in range(NUM_STEPS):
        for name in ("logits", "scores"):
            ours = torch.empty_like(one[f"step.{step}.{name}"])
            for rank in ranks:
                ours[rank[f"step.{step}.rows"]] = rank[f"step.{step}.{name}"]
            check_close(f"step.{step}.{name}", ours, one[f"step.{step}.{name}"])
        if f"step.{step}.teacher" in one:
            assert all(rank[f"step.{step}.teacher"].tolist() == one[f"step.{step}.teacher"].tolist() for rank in ranks)
        report = one[f"step.{step}.report"]
        for rank in ranks:
            check_close(f"step.{step}", rank[f"step.{step}.report"][:2], report[:2])
            assert rank[f"step.{step}.report"][2:].tolist() == report[2:].tolist(), step
            assert torch.equal(bits(rank[f"step.{step}.report"]), bits(ranks[0][f"step.{step}.report"]))
    replicated = {name for name in one if name.startswith("all.")}
    assert len(replicated) > 40
    for rank in ranks:
        assert {name for name in rank if name.startswith("all.")} == replicated
        for name in replicated:
            assert torch.equal(bits(rank[name]), bits(ranks[0][name])), f"{name} differs between ranks"
            check_close(name, rank[name], one[name])
    # every key is on one rank, with all that is known of it
    keys = torch.cat([rank["own.keys"] for rank in ranks])
    assert all(len(rank["own.keys"]) for rank in ranks)
    order = torch.argsort(keys)
    for name in (name for name in one if name.startswith("own.") and ".admission." not in name):
        check_close(name, torch.cat([rank[name] for rank in ranks])[order], one[name])
    for name in ("own.admission.counts", "own.admission.num_counted"):
        shards = torch.zeros_like(one[name])
        for number, rank in enumerate(ranks):
            shards[number::size] = rank[name]
        assert torch.equal(shards, one[name]) and one[name].any() == (case != "draws")


def check_close(name: str, ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
    if ours.is_floating_point():
        assert torch.allclose(ours, theirs, equal_nan=True, **TOLERANCE), (
            f"{name}: {(ours - theirs).abs().nan_to_num().max()}"
        )
    else:
        assert torch.equal(ours, theirs), name


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def test_the_cases_do_what_they_are_for(alone: dict[str, Found]) -> None:
    limits = alone["limits"]
    expired, full = limits["all.counters"][:, 5], limits["all.counters"][:, 6]
    assert expired.sum() > 30 and (full > 0).sum() > 1
    reports = torch.stack([limits[f"step.{step}.report"] for step in range(NUM_STEPS)])
    skipped, clipped, held_back, weighed, begun = (reports[:, column].sum() for column in (3, 5, 9, 10, 13))
    assert skipped == 1 and clipped > 10 and held_back > 0 and weighed > 50 and begun == 2
    assert limits["all.progress"].tolist()[3] == 4 and 0 < limits["all.opened"] <= 1
    for case in ("held", "served"):
        num_held, *masked = alone[case]["step.19.teacher"].tolist()
        assert num_held > 50 and sum(masked) > 100, case
    for case in ("draws", "mix"):
        assert alone[case]["all.task_weights"].std() > 0
