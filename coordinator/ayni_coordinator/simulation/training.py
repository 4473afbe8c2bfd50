"""What the baselines share: a network with its optimiser, trained on a site's own batches by whatever loss.

Optimiser, schedule, batches and their variation are those of the federation (ayni.learning.learners).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ayni.learning.batches import Batch, Batches, seed_of
from ayni.learning.head_start import taught_weights
from ayni.learning.learners import adam, averaged, descend, learning_rate_at, own_batches
from ayni.learning.networks import Network, initial_weights, load_weights, seeded_network
from ayni.tensors.safe import Floats
from ayni_coordinator.simulation.method import Setup, SimulatedSite

OwnLoss = Callable[[Batch, Tensor], Tensor]  # of a batch and its truth
PublicLoss = Callable[[Batch], Tensor]


def first_weights(setup: Setup) -> Mapping[str, Floats]:
    """Of the small network before round 1: random ones, or those that public images have taught at the centre."""
    num_steps = setup.task.fedhelp.start_steps
    if not num_steps:
        return initial_weights(setup.task)
    if "first weights" not in setup.memory:
        setup.memory["first weights"] = taught_weights(setup.public.images, setup.task, num_steps)
    taught: Mapping[str, Floats] = setup.memory["first weights"]
    return taught


def small_network(setup: Setup) -> Network:
    """As every site gets it before round 1."""
    network = seeded_network(setup.task.small_network, setup.task, setup.task.seed)
    load_weights(network, first_weights(setup))
    return network


def own_network(setup: Setup, site: SimulatedSite, *, beside_small: bool = False) -> Network:
    """The one that diagnoses at a site: a large one of its own at a hospital, a small one at a clinic. That is the
    common one, or, beside a common one that learns with it, one with first weights of its own."""
    if site.role == "clinic":
        seed = seed_of(setup.task.seed, site.name, "own")
        return seeded_network(setup.task.small_network, setup.task, seed) if beside_small else small_network(setup)
    return seeded_network(setup.task.large_network, setup.task, seed_of(setup.task.seed, site.name, "large"))


def seeded_head(setup: Setup, site: SimulatedSite, network: Network, num_outputs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(setup.task.seed, site.name, "one more head"))
        return network.new_head(num_outputs)


class Trainer:
    """`modules` learn together, for as many steps in a round as the site's networks get. Of the first of them, which
    diagnoses, a running mean of the weights is kept, as of the networks of `local` and of FedHelp's hospitals."""

    def __init__(self, setup: Setup, site: SimulatedSite, modules: Sequence[nn.Module]) -> None:
        self.setup, self.site, self.modules = setup, site, modules
        self.num_steps, self.taken = setup.num_rounds * setup.steps_per_round(site.role), 0
        self.average = averaged(modules[0], self.num_steps)
        task, normalise = setup.task, setup.normalise
        self._optimiser = adam(nn.ModuleList(modules), task.training)
        self._own = own_batches(site.own, normalise, task, site.name)
        seed = seed_of(task.seed, site.name, "public")
        patch = task.image.patch
        self._public = Batches(setup.public.images.pixels_PCHW, normalise, task.training, seed=seed, patch=patch)

    def own(self, num_steps: int, loss: OwnLoss) -> None:
        """So many steps on the site's own images."""
        for _ in range(num_steps):
            batch = self._own.at(self.taken)
            self._descend(loss(batch, batch.of(self.site.own.train_truth)))

    def public(self, num_steps: int, loss: PublicLoss) -> None:
        """So many steps on public images."""
        for _ in range(num_steps):
            self._descend(loss(self.public_batch()))

    def public_batch(self) -> Batch:
        """That of the next step."""
        return self._public.at(self.taken)

    def _descend(self, loss: Tensor) -> None:
        descend(loss, learning_rate_at(self.taken, self.num_steps, self.setup.task.training), self._optimiser)
        self.taken += 1
        self.average.update_parameters(self.modules[0])
