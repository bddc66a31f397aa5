"""Online learners of others on the same examples: Vowpal Wabbit and river, one model per task.

They get the keys that the networks get (one-hot values of the same fields, numbers in the same buckets), the same
batches, and see a label when the networks do: a batch is scored whole, then learned example by example. A missing value
is no feature. Letters: B rows, T tasks.
"""

import importlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from freshrank.compare_data import CompareBatch
from model.features import EncodedBatch, Field
from model.hashing import MISSING_KEY
from model.key_lists import KeyLists
from model.metrics import logit_of

Float32Array = npt.NDArray[np.float32]


class OnlineModel(Protocol):
    """What a comparison needs of a model."""

    num_weights: int | None
    """Numbers it has learned, those of a network's embedding rows not counted; None: unknown."""
    num_skipped: int
    """Batches it could not learn from, because something was not finite."""

    def prepare(self, batch: CompareBatch) -> Any:
        """Returns the batch in the model's own form; not part of the time measured, as encoding is for nobody."""

    def score(self, prepared: Any) -> Float32Array:
        """Returns the logits, [B, T], and learns nothing."""

    def score_then_learn(self, prepared: Any) -> Float32Array:
        """Returns the logits, [B, T], from before it learned the batch, and learns it."""


class PeerError(ValueError):
    """A peer cannot run here; the text says what to install."""


class Value(NamedTuple):
    """One value of a row: the place of its field, its key, and its share of the field."""

    field: int
    key: int
    share: float


class VowpalWabbit:
    """Vowpal Wabbit (Langford et al.): sparse logistic regression with adaptive updates.

    It also gets the products of the user's id with the item's list fields (genres, tags), which a linear model needs to
    tell users' tastes apart. Of the settings tried on both data sets these did best; its defaults, and products of all
    fields with all, overfit on one pass (`docs/compare.md`). It goes without the configuration's crosses: with those of
    `configs/ranklens.yaml` in place of its own products it does worse (RankLens: AUC 0.7785 instead of 0.7806).
    """

    def __init__(self, fields: Sequence[Field], starts: Sequence[float], seed: int, rate: float) -> None:
        vw = _needed("vowpalwabbit")
        self.num_weights: int | None = None
        self.num_skipped = 0
        self._letters = _letters(fields)
        self._left_out = {place for place, one in enumerate(fields) if one.cross is not None}
        arguments = [*VW_ARGUMENTS, "-l", str(rate), "--random_seed", str(seed)]
        for one, other in products(fields, self._letters):
            arguments += ["-q", one + other]
        self._models = [
            vw.Workspace(" ".join(["--quiet", *arguments, "--constant", f"{start:.6g}"])) for start in starts
        ]

    def prepare(self, batch: CompareBatch) -> tuple[list[str], CompareBatch]:
        """Returns the rows as VW's text, without labels."""
        return [self._text(values) for values in row_values(batch.encoded)], batch

    def score(self, prepared: tuple[list[str], CompareBatch]) -> Float32Array:
        """Returns the logits, [B, T]."""
        texts, _ = prepared
        return np.array([[model.predict(text) for model in self._models] for text in texts], np.float32)

    def score_then_learn(self, prepared: tuple[list[str], CompareBatch]) -> Float32Array:
        """Returns the logits, [B, T], from before the batch."""
        texts, batch = prepared
        logit_BT = self.score(prepared)
        for row, task in _trained(batch):
            label = "1" if batch.labels.label_BT[row, task] else "-1"
            self._models[task].learn(f"{label} {batch.labels.weight_BT[row, task]:.6g} {texts[row]}")
        return logit_BT

    def _text(self, values: Sequence[Value]) -> str:
        parts, field = [], -1
        for value in values:
            if value.field in self._left_out:
                continue
            if value.field != field:
                field = value.field
                parts.append(f"|{self._letters[field]}")
            number = value.key & _VW_MASK
            parts.append(f"{number}" if value.share == 1.0 else f"{number}:{value.share:.4g}")
        return " ".join(parts)


VW_ARGUMENTS = ("--loss_function", "logistic", "-b", "22", "--adaptive", "--invariant")
_VW_MASK = (1 << 31) - 1


class River:
    """One river classifier per task, on a row's values as a dictionary."""

    def __init__(
        self,
        fields: Sequence[Field],
        starts: Sequence[float],
        make: Callable[[float], Any],
        *,
        has_history: bool = True,
    ) -> None:
        self.num_weights: int | None = None
        self.num_skipped = 0
        self._models = [make(start) for start in starts]
        self._left_out = set() if has_history else {i for i, one in enumerate(fields) if one.name.startswith("history")}

    def prepare(self, batch: CompareBatch) -> tuple[list[dict[int, float]], CompareBatch]:
        """Returns the rows as dictionaries."""
        rows = [
            {value.key * 64 + value.field: value.share for value in values if value.field not in self._left_out}
            for values in row_values(batch.encoded)
        ]
        return rows, batch

    def score(self, prepared: tuple[list[dict[int, float]], CompareBatch]) -> Float32Array:
        """Returns the logits, [B, T]."""
        rows, _ = prepared
        probability_BT = np.array(
            [[model.predict_proba_one(row)[True] for model in self._models] for row in rows], np.float64
        )
        return logit_of(probability_BT).astype(np.float32)

    def score_then_learn(self, prepared: tuple[list[dict[int, float]], CompareBatch]) -> Float32Array:
        """Returns the logits, [B, T], from before the batch."""
        rows, batch = prepared
        logit_BT = self.score(prepared)
        for row, task in _trained(batch):
            self._models[task].learn_one(rows[row], bool(batch.labels.label_BT[row, task]))
        return logit_BT


def _river_lr(fields: Sequence[Field], starts: Sequence[float], seed: int, rate: float) -> OnlineModel:
    linear_model, optim = _needed("river.linear_model"), _needed("river.optim")

    def make(start: float) -> Any:
        return linear_model.LogisticRegression(optimizer=optim.AdaGrad(rate), intercept_init=start)

    return River(fields, starts, make)


def _river_fm(fields: Sequence[Field], starts: Sequence[float], seed: int, rate: float) -> OnlineModel:
    facto, optim = _needed("river.facto"), _needed("river.optim")

    def make(start: float) -> Any:
        return facto.FMClassifier(
            n_factors=8,
            weight_optimizer=optim.AdaGrad(rate),
            latent_optimizer=optim.AdaGrad(rate / 2),
            intercept=start,
            seed=seed,
        )

    return River(fields, starts, make, has_history=False)


class Peer(NamedTuple):
    """How to make a peer, and whether its seed changes anything."""

    make: Callable[[Sequence[Field], Sequence[float], int, float], OnlineModel]
    """From the fields, the logit at which each task starts, the seed and the learning rate."""
    is_random: bool
    module: str
    """What must be installed."""
    rate: float
    """The learning rate, where the name says none."""


PEERS: Mapping[str, Peer] = {
    "vw": Peer(VowpalWabbit, is_random=False, module="vowpalwabbit", rate=0.1),
    "river_lr": Peer(_river_lr, is_random=False, module="river", rate=0.1),
    "river_fm": Peer(_river_fm, is_random=True, module="river", rate=0.1),
}
"""`river_fm` goes without the user's history: its cost grows with the square of the values of a row."""


def peer_of(name: str) -> Peer | None:
    """Returns the peer of a name such as `vw` or `vw:rate=0.2`; None if it is none.

    Raises:
        ValueError: another setting, or a rate that is not above 0; the peer is not installed.
    """
    peer_name, colon, setting = name.partition(":")
    peer = PEERS.get(peer_name)
    if peer is None:
        return None
    _needed(peer.module)
    if not colon:
        return peer
    key, _, text = setting.partition("=")
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if key != "rate" or not 0 < rate < math.inf:
        raise ValueError(f"models: {name} is not allowed; {peer_name}, or {peer_name}:rate=0.2 with a rate above 0")
    return peer._replace(rate=rate)


def row_values(batch: EncodedBatch) -> Iterator[list[Value]]:
    """Yields each row's values in the order of `FeatureEncoder.fields`; those of a list share 1 among them."""
    num_request = len(batch.request_keys_FR) + len(batch.request_lists)
    of_request = _entry_values(batch.request_keys_FR, batch.request_lists, 0)
    of_item = _entry_values(batch.item_keys_FB, batch.item_lists, num_request)
    for row, request in enumerate(batch.request_index_B.tolist()):
        yield of_request[request] + of_item[row]


def _entry_values(keys_FN: npt.NDArray[np.int64], lists: Sequence[KeyLists], first: int) -> list[list[Value]]:
    num_entries = keys_FN.shape[1]
    entries: list[list[Value]] = [[] for _ in range(num_entries)]
    for field, keys_N in enumerate(keys_FN.tolist(), start=first):
        for entry, key in zip(entries, keys_N, strict=True):
            if key != MISSING_KEY:
                entry.append(Value(field, key, 1.0))
    for field, one in enumerate(lists, start=first + len(keys_FN)):
        keys, offsets = one.keys_N.tolist(), one.offsets.tolist()
        for entry, start, stop in zip(entries, offsets, offsets[1:], strict=False):
            # A value that stands twice counts twice, as in the networks' mean.
            counts: dict[int, float] = {}
            for key in keys[start:stop]:
                if key != MISSING_KEY:
                    counts[key] = counts.get(key, 0.0) + 1 / (stop - start)
            entry += [Value(field, key, share) for key, share in counts.items()]
    return entries


def _trained(batch: CompareBatch) -> list[tuple[int, int]]:
    """Returns (row, task) of every label to learn, row by row."""
    rows, tasks = np.nonzero(batch.labels.mask_BT & (batch.labels.weight_BT > 0))
    return list(zip(rows.tolist(), tasks.tolist(), strict=True))


def _letters(fields: Sequence[Field]) -> str:
    """Returns one letter per field: VW knows its namespaces by their first."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    if len(fields) > len(letters):
        raise PeerError(f"vw: {len(fields)} fields are not allowed; at most {len(letters)}")
    return letters[: len(fields)]


def products(fields: Sequence[Field], letters: str) -> Iterator[tuple[str, str]]:
    """Yields the pairs of letters to multiply: the user's with every list of the item."""
    named = list(zip(fields, letters, strict=True))
    users = [letter for one, letter in named if one.name == "user_id"]
    lists = [letter for one, letter in named if one.side == "item" and one.many and one.cross is None]
    return itertools.product(users, lists)


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise PeerError(f"{package} is not installed; pip install 'freshrank[studies]'") from error
