"""A search that can be killed: trials are stored when they have ended, and nothing else is.

    choose a point (from the trials that have ended) -> one pass over the source -> store its figures as a trial

Which point comes next depends on the trials before it, the space and the seed alone, so a search that was killed goes
on as if it had not been.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from freshrank.one_pass import Pass
from freshrank.tune_space import Choices, Point, Space

if TYPE_CHECKING:
    import optuna

SamplerName = Literal["grid", "tpe"]
MAX_GRID = 1_000_000
"""Points of a grid, at most."""
_STUDY_NAME = "freshrank tune"
_ABOUT, _BASELINE, _FIGURES, _REASON = "about", "baseline", "figures", "reason"


class Trial(NamedTuple):
    """A trial that has ended."""

    point: Point
    mean_ne: float | None
    """None: it failed."""
    figures: Mapping[str, Any]
    """`tasks`, `params` and `skipped_steps`; empty if it failed."""
    reason: str
    """Why it failed."""


def import_optuna() -> Any:
    """Returns the module.

    Raises:
        ValueError: it is not installed; names the extra.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("freshrank tune needs optuna; install the extra: pip install 'freshrank[studies]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Search:
    """Trials of one space, in a file; see `open_search`."""

    def __init__(self, study: "optuna.Study", space: Space, sampler: SamplerName, seed: int) -> None:
        self._study, self._space, self._sampler, self._seed = study, space, sampler, seed
        self._optuna = import_optuna()

    def baseline(self, run: Callable[[], Pass]) -> dict[str, Any]:
        """Returns the figures of the configuration as it was given; runs it the first time."""
        if _BASELINE not in self._study.user_attrs:
            self._study.set_user_attr(_BASELINE, _figures(run()))
        return dict(self._study.user_attrs[_BASELINE])

    def trials(self) -> list[Trial]:
        """Returns all trials, in their order."""
        return [
            Trial(
                point={path: self._text(path, value) for path, value in trial.params.items()},
                mean_ne=trial.value if trial.state == self._optuna.trial.TrialState.COMPLETE else None,
                figures=trial.user_attrs.get(_FIGURES, {}),
                reason=trial.user_attrs.get(_REASON, ""),
            )
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def run(self, num_trials: int, run_point: Callable[[Point], Pass], on_trial: Callable[[int, Trial], None]) -> None:
        """Goes on until there are `num_trials`, those of earlier runs included, or the grid is at its end.

        A point that `run_point` refuses with ValueError is a failed trial. `on_trial` gets each with its number.
        """
        while len(self._study.get_trials(deepcopy=False)) < num_trials:
            point = self._next_on_grid() if self._sampler == "grid" else self._next_of_tpe()
            if point is None:
                return
            try:
                figures = _figures(run_point(point))
            except ValueError as error:
                ended = {"state": self._optuna.trial.TrialState.FAIL, "user_attrs": {_REASON: str(error)}}
            else:
                ended = {"value": figures["mean_ne"], "user_attrs": {_FIGURES: figures}}
            params = {path: self._stored(path, text) for path, text in point.items()}
            trial = self._optuna.trial.create_trial(params=params, distributions=self._distributions, **ended)
            self._study.add_trial(trial)
            trials = self.trials()
            on_trial(len(trials) - 1, trials[-1])

    def _next_on_grid(self) -> Point | None:
        done = {tuple(sorted(trial.point.items())) for trial in self.trials()}
        return next((point for point in self._grid() if tuple(sorted(point.items())) not in done), None)

    def _grid(self) -> Iterator[Point]:
        """Yields all points, in an order drawn by the seed, so that the first few are spread over the whole grid."""
        values = [choices.values for choices in self._space.values() if isinstance(choices, Choices)]
        sizes = [len(each) for each in values]
        for index in np.random.default_rng(self._seed).permutation(math.prod(sizes)):
            places = np.unravel_index(index, sizes)
            yield {path: each[int(at)] for path, each, at in zip(self._space, values, places, strict=True)}

    def _next_of_tpe(self) -> Point:
        """Asks a copy in memory, so that the file never holds a trial that has not ended."""
        past = self._study.get_trials(deepcopy=False)
        sampler = self._optuna.samplers.TPESampler(seed=1_000_003 * self._seed + len(past))
        asked = self._optuna.create_study(sampler=sampler)
        asked.add_trials(past)
        params = asked.ask(self._distributions).params
        return {path: self._text(path, value) for path, value in params.items()}

    @cached_property
    def _distributions(self) -> dict[str, Any]:
        kinds = self._optuna.distributions
        return {
            path: kinds.CategoricalDistribution(values.values)
            if isinstance(values, Choices)
            else (kinds.IntDistribution if values.is_whole else kinds.FloatDistribution)(*values, log=True)
            for path, values in self._space.items()
        }

    def _text(self, path: str, value: Any) -> str:
        return str(value) if isinstance(self._space[path], Choices) else json.dumps(value)

    def _stored(self, path: str, text: str) -> Any:
        return text if isinstance(self._space[path], Choices) else json.loads(text)


@contextmanager
def open_search(
    path: Path, *, space: Space, sampler: SamplerName, seed: int, about: Mapping[str, Any]
) -> Iterator[Search]:
    """Gives the search in a file, a new one if the file is not there.

    `about` says, as JSON values, what the figures depend on besides the space.

    Raises:
        ValueError: the file holds another search, or none; a grid over a range, or over too many points.
    """
    optuna = import_optuna()
    if sampler == "grid":
        _check_grid(space)
    about = json.loads(json.dumps({**about, "space": space, "sampler": sampler, "seed": seed}))
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}")
    except Exception as error:  # whatever the database library makes of a file that is not its own
        raise ValueError(f"--storage {path}: cannot be used: {str(error).splitlines()[0][:200]}") from error
    try:
        study = optuna.create_study(storage=storage, study_name=_STUDY_NAME, load_if_exists=True)
        known = study.user_attrs.get(_ABOUT)
        if known is None:
            study.set_user_attr(_ABOUT, about)
        elif known != about:
            changed = sorted(name for name in known.keys() | about.keys() if known.get(name) != about.get(name))
            raise ValueError(f"--storage {path}: holds a search with another {', '.join(changed)}; take another file")
        yield Search(study, space, sampler, seed)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _check_grid(space: Space) -> None:
    size = 1
    for name, values in space.items():
        if not isinstance(values, Choices):
            raise ValueError(f"--vary {name}: a range is not allowed with --sampler grid; name its values, or take tpe")
        size *= len(values.values)
    if size > MAX_GRID:
        raise ValueError(f"--sampler grid: {size:,} points are not allowed; at most {MAX_GRID:,}, or take tpe")


def _figures(done: Pass) -> dict[str, Any]:
    return {
        "mean_ne": done.mean_ne,
        "tasks": {task: figures._asdict() for task, figures in done.tasks.items()},
        "params": done.num_parameters,
        "skipped_steps": done.num_skipped,
    }
