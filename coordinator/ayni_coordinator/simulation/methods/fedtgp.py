"""FedTGP: as FedProto, but the coordinator trains the global prototypes, so that the classes stay apart.

Zhang et al. 2024, arXiv 2401.03230. Adaptive-margin contrastive learning: each site's prototype should be nearer to
its class's global one than to the others', by the largest distance between two classes' centres (at most
`largest_margin`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ayni.learning.batches import seed_of
from ayni_coordinator.simulation.method import Broadcast, Message, Method, Setup
from ayni_coordinator.simulation.methods.fedproto import candidates, init, site_step
from ayni_coordinator.simulation.prototypes import Prototypes, mean_prototypes, num_prototypes
from ayni_coordinator.simulation.training import small_network


class TrainablePrototypes(nn.Module):
    """[K, F] from an embedding per class and a small network behind it."""

    def __init__(self, num_classes: int, num_features: int) -> None:
        super().__init__()
        self.seeds_KF = nn.Parameter(torch.randn(num_classes, num_features))
        self.middle = nn.Linear(num_features, num_features)
        self.last = nn.Linear(num_features, num_features)

    def forward(self) -> Tensor:
        means_KF: Tensor = self.last(functional.relu(self.middle(self.seeds_KF)))
        return means_KF


@dataclass(frozen=True, slots=True)
class Server:
    prototypes: TrainablePrototypes
    optimiser: torch.optim.Optimizer


def open(setup: Setup) -> tuple[Server, Broadcast]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(setup.task.seed, "global prototypes"))
        prototypes = TrainablePrototypes(num_prototypes(setup.task), small_network(setup).num_features)
    return Server(prototypes, torch.optim.SGD(prototypes.parameters(), lr=setup.number("learning_rate"))), Broadcast()


def contrast(global_KF: Tensor, own_MF: Tensor, class_M: Tensor, margin: float) -> Tensor:
    """Cross-entropy over classes of the negative distances; the true class's is made longer by the margin."""
    distance_MK = torch.cdist(own_MF, global_KF)
    distance_MK = distance_MK + margin * functional.one_hot(class_M, len(global_KF))
    return functional.cross_entropy(-distance_MK, class_M)


def margin_of(centres_KF: Tensor, largest: float) -> float:
    """The largest distance between two classes' centres."""
    return min(float(torch.cdist(centres_KF, centres_KF).max()), largest)


def aggregate(
    setup: Setup, state: Server, messages: Mapping[str, Message], round_number: int
) -> tuple[Server, Broadcast]:
    several = [Prototypes.decode(message["prototypes"]) for message in messages.values()]
    centres = mean_prototypes(several)
    own_MF = torch.cat([one.means_KF[one.count_K > 0] for one in several])
    class_M = torch.cat([torch.nonzero(one.count_K > 0)[:, 0] for one in several])
    margin = margin_of(centres.means_KF[centres.count_K > 0], setup.number("largest_margin"))
    for _ in range(int(setup.number("server_steps"))):
        state.optimiser.zero_grad(set_to_none=True)
        contrast(state.prototypes(), own_MF, class_M, margin).backward()  # type: ignore[no-untyped-call]
        state.optimiser.step()
    trained = Prototypes(state.prototypes().detach(), centres.count_K)
    return state, Broadcast({"prototypes": trained.encode()})


METHOD = Method(
    open=open,
    init=init,
    site_step=site_step,
    aggregate=aggregate,
    candidates=candidates,
    settings={"pull": 1.0, "largest_margin": 100.0, "learning_rate": 0.01, "server_steps": 500},
)
