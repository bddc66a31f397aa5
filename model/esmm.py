"""ESMM: towers along a funnel, each learned on all impressions (Ma, Zhao, Huang et al., SIGIR 2018, arXiv 1804.07931).

    p_order = sigma(a) sigma(b)      a the click tower, b the tower of order given click, both on the shared embeddings
    logit of p_order = -logsumexp(-a, -b, -a - b)      equal in value and gradient, and nothing is lost in float32

Nothing is ever learned on clicked rows only: the loss of `order` is that of p_order on all impressions, and reaches
both towers. Longer funnels go on in the same way, each step given the one before.

Departures: a task outside the funnel is a tower of its own. Every scenario has its own towers.

Letters: B rows, D input width, T tasks, C width of the representation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.network import Network, NetworkInputs, NetworkShape
from model.network_config import check_counts
from model.scenario_towers import ScenarioTowers
from model.seeding import initialise


@dataclass(frozen=True, slots=True, kw_only=True)
class ESMMConfig:
    """Funnel and widths. The default has 0.69 M parameters at D = 320, three scenarios and two tasks."""

    funnel: tuple[str, ...] = ("click", "order")
    """Tasks of which each can happen only after the one before, in that order; at least two different ones."""
    tower: tuple[int, ...] = (256, 128)
    """Hidden widths of a tower."""

    def __post_init__(self) -> None:
        if len(self.funnel) < 2 or len(set(self.funnel)) < len(self.funnel):
            raise ValueError(f"funnel: {self.funnel} is not allowed; at least two different tasks")
        check_counts(self)


def logit_of_both(first: Tensor, second: Tensor) -> Tensor:
    """Returns the logit of sigma(first) sigma(second), exact for any size of the two.

    >>> both = logit_of_both(torch.tensor([0.0, 60.0]), torch.tensor([0.0, 0.5]))
    >>> both.sigmoid()[0].item(), both[1].item()
    (0.25, 0.5)
    """
    return -torch.stack([-first, -second, -first - second]).logsumexp(dim=0)


class ESMM(Network):
    """The whole network; C is x itself.

    Raises:
        ValueError: the funnel names a task that is not there.
    """

    def __init__(self, config: ESMMConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        super().__init__(shape, representation_width=shape.width)
        for task in config.funnel:
            if task not in shape.tasks:
                raise ValueError(f"esmm.funnel: {task!r} is not allowed; tasks of this model: {', '.join(shape.tasks)}")
        self._funnel = [shape.tasks.index(task) for task in config.funnel]
        self._priors: dict[int, float] = {}
        self.towers = ScenarioTowers(shape.num_scenarios, shape.num_tasks, shape.width, config.tower)
        if seed is not None:
            initialise(self, seed)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns the towers."""
        return [self.towers]

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns x: the towers share the embeddings and nothing else."""
        return inputs.x.whole()

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T]: of P(task | impression), for the tasks of the funnel too."""
        task_TB = list(self.towers(c_BC.expand(self.shape.num_tasks, -1, -1), row_offsets).unbind(dim=1))
        for before, task in zip(self._funnel, self._funnel[1:], strict=False):
            task_TB[task] = logit_of_both(task_TB[before], task_TB[task])
        return torch.stack(task_TB, dim=1)

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario.

        A step of the funnel starts at its prior given the step before; one without a prior at one half of that, or at
        more where a later prior needs it.

        Raises:
            ValueError: a step of the funnel would be as likely as one before it.
        """
        self._priors[task] = prior
        if task not in self._funnel:
            self.towers.start_at(task, prior)
            return
        asked = [step for step in self._funnel if step in self._priors]
        for before, step in zip(asked, asked[1:], strict=False):
            if self._priors[step] >= self._priors[before]:
                raise ValueError(
                    f"priors.{self.shape.tasks[step]}: {self._priors[step]} is not allowed; below that of"
                    f" {self.shape.tasks[before]}, {self._priors[before]}, which comes before it in the funnel"
                )
        reached = 1.0
        for place, step in enumerate(self._funnel):
            later = next((self._priors[one] for one in self._funnel[place:] if one in self._priors), 0.0)
            target = self._priors.get(step, max(reached / 2, math.sqrt(reached * later)))
            self.towers.start_at(step, target / reached)
            reached = target
