"""What the baselines share: a network with its optimiser, trained on a site's own batches by whatever loss.

Optimiser, schedule, batches and their variation are those of the federation (ayni.learning.learners).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from ayni.learning.batches import Batch, Batches, seed_of
from ayni.learning.learners import descend, learning_rate_at, own_batches
from ayni.learning.networks import Network, initial_weights, load_weights, seeded_network
from ayni_coordinator.simulation.method import Setup, SimulatedSite

OwnLoss = Callable[[Batch, Tensor], Tensor]  # of a batch and its truth
PublicLoss = Callable[[Batch], Tensor]


def small_network(setup: Setup) -> Network:
    """As every site gets it before round 1."""
    network = seeded_network(setup.task.small_network, setup.task, setup.task.seed)
    load_weights(network, initial_weights(setup.task))
    return network


def own_network(setup: Setup, site: SimulatedSite) -> Network:
    """The one that diagnoses at a site: a large one of its own at a hospital, the common small one at a clinic."""
    if site.role == "clinic":
        return small_network(setup)
    return seeded_network(setup.task.large_network, setup.task, seed_of(setup.task.seed, site.name, "large"))


def seeded_head(setup: Setup, site: SimulatedSite, network: Network, num_outputs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(setup.task.seed, site.name, "one more head"))
        return network.new_head(num_outputs)


@dataclass(slots=True)
class Trainer:
    """`modules` learn together; `num_steps` are taken in all rounds, for the schedule."""

    setup: Setup
    site: SimulatedSite
    modules: Sequence[nn.Module]
    num_steps: int
    taken: int = 0
    _parts: tuple[torch.optim.Adam, Batches, Batches] | None = None

    def own(self, num_steps: int, loss: OwnLoss) -> None:
        """So many steps on the site's own images."""
        optimiser, batches, _ = self._made()
        truth = self.site.own.train_truth
        for batch in self._batches(batches, num_steps):
            self._descend(optimiser, loss(batch, batch.of(truth)))

    def public(self, num_steps: int, loss: PublicLoss) -> None:
        """So many steps on public images."""
        optimiser, _, batches = self._made()
        for batch in self._batches(batches, num_steps):
            self._descend(optimiser, loss(batch))

    def _batches(self, batches: Batches, num_steps: int) -> Iterator[Batch]:
        for _ in range(num_steps):
            yield batches.at(self.taken)

    def _descend(self, optimiser: torch.optim.Adam, loss: Tensor) -> None:
        descend(loss, learning_rate_at(self.taken, self.num_steps, self.setup.task.training), optimiser)
        self.taken += 1

    def _made(self) -> tuple[torch.optim.Adam, Batches, Batches]:
        if self._parts is None:
            task, normalise = self.setup.task, self.setup.normalise
            weights = list(chain.from_iterable(module.parameters() for module in self.modules))
            optimiser = torch.optim.Adam(weights, weight_decay=task.training.weight_decay, fused=True)
            own = own_batches(self.site.own, normalise, task, self.site.name)
            seed = seed_of(task.seed, self.site.name, "public")
            public = Batches(self.setup.public.images.pixels_PCHW, normalise, task.training, seed=seed)
            self._parts = (optimiser, own, public)
        return self._parts


def trainer(setup: Setup, site: SimulatedSite, modules: Sequence[nn.Module], num_steps_per_round: int) -> Trainer:
    return Trainer(setup, site, modules, setup.num_rounds * num_steps_per_round)
