"""FedMD: no weights travel. Each site answers the public images, the answers are averaged, each site learns the mean.

Li and Wang 2019, arXiv 1910.03581. The answers travel as the federation's soft labels do; "digest" is the KL from the
mean, by which the paper's mean absolute difference of logits is replaced (ours are log-probabilities). There is no
training to convergence before the first round: all methods have one budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ayni.learning.batches import Batch
from ayni.learning.networks import Network
from ayni.learning.training import answer_public_set
from ayni.tensors.targets import decode_targets, encode_targets
from ayni_coordinator.aggregation import consensus_of
from ayni_coordinator.simulation.averaging import consensus_in
from ayni_coordinator.simulation.method import Broadcast, Candidate, Message, Method, Setup, SimulatedSite
from ayni_coordinator.simulation.training import Trainer, own_network


@dataclass(slots=True)
class State:
    site: SimulatedSite
    network: Network
    trainer: Trainer


def open(setup: Setup) -> tuple[None, Broadcast]:
    return None, Broadcast({"public-set": setup.public.artefact})


def init(setup: Setup, site: SimulatedSite) -> State:
    network = own_network(setup, site)
    return State(site, network, Trainer(setup, site, [network]))


def site_step(setup: Setup, state: State, received: Message, round_number: int) -> Message:
    """Digest what the others know, then revisit the own images; half of the steps each."""
    taught, num_steps = consensus_in(received, setup), setup.steps_per_round(state.site.role)
    num_public = 0 if taught is None else num_steps // 2

    def own_loss(batch: Batch, truth: Tensor) -> Tensor:
        return setup.objective.supervised(state.network(batch.x_BCHW), truth)

    def digest_loss(batch: Batch) -> Tensor:
        assert taught is not None
        answer = state.network(batch.x_BCHW)
        return setup.objective.distil(answer, batch.of(taught), temperature=setup.task.fedhelp.temperature)

    state.trainer.public(num_public, digest_loss)
    state.trainer.own(num_steps - num_public, own_loss)
    public = setup.public.images
    answered = answer_public_set(state.network, public.normalise, public, setup.task, state.site.name, round_number)
    return {"soft-labels": encode_targets(answered)}


def aggregate(setup: Setup, state: None, messages: Mapping[str, Message], round_number: int) -> tuple[None, Broadcast]:
    answers = [decode_targets(message["soft-labels"]) for message in messages.values()]
    mean = consensus_of(answers, len(answers), setup.public.images.sha256, round_number, setup.task)
    return None, Broadcast({"consensus": encode_targets(mean)})


def candidates(setup: Setup, state: State, received: Message) -> Sequence[Candidate]:
    return [Candidate(network, setup.normalise) for network in (state.trainer.average.module, state.network)]


METHOD = Method(
    open=open,
    init=init,
    site_step=site_step,
    aggregate=aggregate,
    candidates=candidates,
)
