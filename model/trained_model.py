"""A model in training: all that steps change, what of it a checkpoint keeps and what a snapshot serves.

Letters: M scenarios, T tasks, B rows.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.assembly import InputLayout
from model.auxiliary import AuxiliaryHeads
from model.calibrator import Pairs
from model.config import ModelConfig
from model.embedding import EmbeddingTable
from model.growth import ScenarioGrowth, check_growth, grow, take_moments
from model.loss_weighting import loss_weighting
from model.losses import ScenarioShares
from model.metrics import Int64Array
from model.network import Network
from model.ranks import Ranks
from model.scenario_registry import ScenarioRegistry
from model.seeding import named_generator
from model.shapes import check_same_shapes
from model.sharded_rows import ShardedRows
from model.teacher import Teacher
from model.whole_rows import Rows, WholeRows
from stream.schema import SchemaConfig

STATE_FORMAT = 6


class TrainedModel:
    """The parts of a model in training; the learner's steps change them.

    On several ranks each has the embedding rows that it owns, and all the rest as the others have it, to the bit.
    """

    def __init__(
        self,
        schema: SchemaConfig,
        layout: InputLayout,
        config: ModelConfig,
        seed: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        num_scenarios, num_tasks = len(schema.scenarios), len(schema.tasks)
        self.growth = ScenarioGrowth(schema, config.growth)
        self.ranks = ranks
        self.table = EmbeddingTable(layout, config.embedding, seed, device, ranks)
        self.rows: Rows[Any] = WholeRows(self.table) if ranks.size == 1 else ShardedRows(self.table, ranks)
        # Drawn on the CPU, so that a seed gives the same network everywhere.
        self.net = config.build_network(layout.network_shape(schema), seed=seed).to(device)
        for index, task in enumerate(schema.tasks):
            if task in config.priors:
                self.net.start_at(index, config.priors[task])
        check_growth(self.net, schema, config.growth)
        self.parameters = dict(self.net.named_parameters())
        self.adam = torch.optim.Adam(self.parameters.values(), lr=config.optim.dense_lr, fused=True)
        self.heads = AuxiliaryHeads(
            tuple(schema.tasks),
            width=self.net.representation_width,
            num_scenarios=num_scenarios,
            min_positives=config.loss.aux_min_positives,
            lr=config.optim.aux_lr,
            seed=seed,
        )
        self.shares = ScenarioShares(num_scenarios, num_tasks, config.loss.half_life_rows)
        self.weighting = loss_weighting(config.loss, tuple(schema.tasks), ranks)
        self.has_negative_MT = np.zeros((num_scenarios, num_tasks), np.bool_)
        """Where a negative was learned, so that positives may be."""
        self.num_steps = 0
        """Steps made, skipped ones not counted."""
        self._schema, self._layout, self._config = schema, layout, config
        self._seed = seed
        self._max_scenario_weight = config.loss.max_scenario_weight
        self._exported_clock = 0
        self._promoted_clock = 0
        regularization = config.score_regularization
        self.teacher: Teacher | None = None
        """What scores are held to; None: nothing."""
        if regularization.weights(tuple(schema.tasks)).any():
            half_life_rows = config.loss.half_life_rows
            self.teacher = Teacher(schema, regularization, self.table, self._served_net, half_life_rows, ranks)

    @property
    def registry(self) -> ScenarioRegistry:
        """The scenarios it has, by index."""
        return self.growth.registry

    def add_scenario(self, name: str) -> None:
        """Adds a scenario that is a copy of the default one; no score of any row changes by it."""
        donor, before = self.registry.index(self.registry.default), self.parameters
        self.net.add_scenario(donor)
        self.parameters = dict(self.net.named_parameters())
        take_moments(self.adam, self.net, before, donor)
        self.heads.add_scenario(donor)
        self.shares.add_scenario(self._max_scenario_weight)
        self.has_negative_MT = np.vstack([self.has_negative_MT, self.has_negative_MT[donor]])
        if self.teacher is not None:
            self.teacher.add_scenario(donor)
        self.growth.add(name)

    def take_teacher(self, version: int, watermark_ms: int) -> None:
        """Copies the model as it is now for its teacher; the copy teaches once `version` is promoted."""
        assert self.teacher is not None
        self.teacher.take(version, watermark_ms, self.net, len(self.registry.names))

    def promote_teacher(self, version: int, calibration: Pairs) -> None:
        """Lets a version that went live, and the scores that it serves with this calibration, teach."""
        assert self.teacher is not None
        self.teacher.promoted(version, self.registry.names, calibration)

    def _served_net(self, num_scenarios: int) -> Network:
        """Returns a network as it is served, of the first so many scenarios, its values to be loaded."""
        net = self._config.build_network(self._layout.network_shape(self._schema), seed=None).for_serving()
        for name in self.registry.names[net.num_scenarios : num_scenarios]:
            net.add_scenario(self.registry.index(self.registry.parents[name]))
        return net.to(self.table.weight.device)

    def open_scenarios(self, num_rows_M: Int64Array) -> None:
        """Takes note of learned rows: added scenarios open to the others as theirs become more."""
        for index, share in self.growth.opened(num_rows_M):
            self.net.open_scenario(index, share)

    def step_noise(self) -> torch.Generator:
        """Returns what the next step draws its dropout masks from: the same after a resume, each rank its own."""
        own = f"/{self.ranks.rank}" if self.ranks.rank else ""
        return named_generator(self._seed, f"step/{self.num_steps}{own}")

    def state(self) -> dict[str, Tensor]:
        """Returns everything for a bit-exact resume, flat, as copies in host memory."""
        tensors = {f"rows.{name}": tensor for name, tensor in self.table.state().items()}
        tensors |= {f"dense.{name}": _copied(tensor) for name, tensor in self.net.state_dict().items()}
        for name, parameter in self.parameters.items():
            for moment, tensor in self.adam.state.get(parameter, {}).items():
                tensors[f"adam.{moment}.{name}"] = _copied(tensor)
        tensors |= {f"heads.{name}": tensor for name, tensor in self.heads.state().items()}
        tensors |= {f"weighting.{name}": tensor for name, tensor in self.weighting.state().items()}
        if self.teacher is not None:
            tensors |= {f"teacher.{name}": tensor for name, tensor in self.teacher.state().items()}
        tensors["loss.share_MT"] = torch.from_numpy(self.shares.share_MT.copy())
        tensors["loss.has_negative_MT"] = torch.from_numpy(self.has_negative_MT.copy())
        return tensors

    def state_meta(self) -> dict[str, Any]:
        """Returns the part of the state that is not tensors, as JSON values."""
        return {
            "format": STATE_FORMAT,
            "num_steps": self.num_steps,
            "loss_rows": self.shares.num_rows,
            "exported_clock": self._exported_clock,
            "promoted_clock": self._promoted_clock,
            "growth": self.growth.state(),
            "teacher": None if self.teacher is None else self.teacher.state_meta(),
        }

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Becomes the model whose `state` and `state_meta` are given.

        Raises:
            ValueError: another format, or names or shapes that are not this model's; nothing is learned then.
        """
        if meta.get("format") != STATE_FORMAT:
            raise ValueError(f"format: {meta.get('format')!r} is not allowed; {STATE_FORMAT}")
        self._grow_to(meta["growth"])
        dense = _under("dense.", tensors)
        check_same_shapes(dense, self.net.state_dict())
        rows = _under("rows.", tensors)
        check_same_shapes(
            {"row": rows["weight"][:1], "counters": rows["admission.counts"]},
            {"row": self.table.weight[:1], "counters": self.table.state()["admission.counts"]},
        )
        self.net.load_state_dict(dense)
        for index, share in self.growth.shares():  # what it says now: the configuration may have changed
            self.net.open_scenario(index, share)
        self.adam.state.clear()
        for name, parameter in self.parameters.items():
            moments = {m: tensors.get(f"adam.{m}.{name}") for m in ("step", "exp_avg", "exp_avg_sq")}
            if moments["step"] is not None:
                self.adam.state[parameter] = {
                    m: tensor.to(parameter.device, copy=True) for m, tensor in moments.items() if tensor is not None
                }
        self.table.load_state(rows)
        self.heads.load_state(_under("heads.", tensors))
        self.weighting.load_state(_under("weighting.", tensors))
        self.shares.share_MT = tensors["loss.share_MT"].numpy().copy()
        self.has_negative_MT = tensors["loss.has_negative_MT"].numpy().copy()
        self.shares.num_rows = int(meta["loss_rows"])
        self.num_steps = int(meta["num_steps"])
        self._exported_clock = int(meta["exported_clock"])
        self._promoted_clock = int(meta["promoted_clock"])
        if self.teacher is not None:
            self.teacher.load_state(_under("teacher.", tensors), meta["teacher"] or {}, self.registry)

    def _grow_to(self, state: Mapping[str, Any]) -> None:
        """Gives a new model the scenarios that were added to the one whose growth is given."""
        self.growth.load_state(state)
        for name in self.registry.names[self.net.num_scenarios :]:
            self.heads.add_scenario(self.registry.index(self.registry.parents[name]))
        grow(self.net, self.registry)
        self.parameters = dict(self.net.named_parameters())
        self.adam.param_groups[0]["params"] = list(self.parameters.values())

    def serving_full(self) -> dict[str, Tensor]:
        """Returns what serving needs, no optimiser state: complete, but for rows that left memory (`cold_rows`).

        Where such rows are, `rows.evicted` is told all the same: readers keep some of them.
        """
        tensors = self._serving(since=0)
        return tensors if self.table.cold is not None else tensors | {"rows.evicted": tensors["rows.evicted"][:0]}

    def serving_delta(self) -> dict[str, Tensor]:
        """Returns what changed since the last promoted export: rows, evicted keys, and all that is small.

        A row that was changed and then evicted is only evicted; one that was evicted and admitted again is only a row.
        Before anything was promoted it is everything. `rows.cooled`, where rows leave memory, are the keys of `cooled`.
        """
        return self._serving(since=self._promoted_clock)

    def mark_promoted(self) -> None:
        """Makes the last export (`serving_full` or `serving_delta`) the base of the next delta."""
        self._promoted_clock = self._exported_clock
        self.table.forget_evicted(self._promoted_clock)
        if self.table.cold is not None:
            self.table.cold.mark_promoted()

    @property
    def num_cold(self) -> int:
        """Rows that are not in memory."""
        return len(self.table.cold) if self.table.cold is not None else 0

    def cold_rows(self) -> Iterator[tuple[Int64Array, Tensor]]:
        """Yields keys and weights [.., W] of all rows that are not in memory, piece by piece."""
        for rows in self.table.cold.all() if self.table.cold is not None else ():
            yield rows.keys, rows.weight

    def cooled(self) -> tuple[Int64Array, Tensor]:
        """Returns keys and weights [N, W] of the rows that left memory since the last promoted export and are not back.

        Before anything was promoted, of all that are not there.
        """
        pieces = list(self.table.cold.cooled()) if self.table.cold is not None else []
        weights = [piece.weight for piece in pieces] or [self.table.weight[:0].cpu()]
        return np.concatenate([np.empty(0, np.int64), *(piece.keys for piece in pieces)]), torch.cat(weights)

    def evicted(self) -> Int64Array:
        """Returns the keys that lost their row, in memory or not, since the last promoted export."""
        return self.table.evicted(self._promoted_clock)

    def _serving(self, *, since: int) -> dict[str, Tensor]:
        keys, weights, evicted = self.table.changes(since)
        self._exported_clock = self.table.clock
        served = self.net.for_serving().state_dict()
        tensors = {f"dense.{name}": _copied(tensor) for name, tensor in served.items()}
        if self.table.cold is not None:
            tensors["rows.cooled"] = torch.from_numpy(self.table.cold.cooled_keys())
            self.table.cold.mark_exported()
        return tensors | {
            "rows.keys": torch.from_numpy(keys),
            "rows.weights": weights.cpu(),
            "rows.evicted": torch.from_numpy(evicted),
            "rows.reserved": self.table.reserved().cpu(),
        }


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
