"""FedHelp as the federation runs it (ayni.learning.fedhelp): the learners, updates and averaging of the product.

arXiv 2412.19654.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ayni.learning.learners import Clinic, Hospital
from ayni.learning.site_data import PublicImages
from ayni.learning.training import answer_public_set
from ayni.task import Task
from ayni.tensors.targets import encode_targets
from ayni_coordinator.public_set import encoded_truth
from ayni_coordinator.simulation.averaging import GlobalModel, SiteModel, average_models, consensus_in, first_model
from ayni_coordinator.simulation.method import Broadcast, Candidate, Message, Method, Setup, SimulatedSite
from ayni_coordinator.simulation.training import first_weights

Which = Literal["in-domain", "out-of-domain"]


@dataclass(slots=True)
class State:
    site: SimulatedSite
    learner: Clinic | Hospital
    model: SiteModel


def open(setup: Setup) -> tuple[GlobalModel, Broadcast]:
    """The public set goes to all; the foundation model's answers, and labels that may travel, to the clinics, once."""
    model, first = first_model(setup.task, first_weights(setup))
    public = setup.public.images
    guided = setup.public.guidance_artefact and setup.task.fedhelp.guidance_weight > 0
    to_clinics = {"guidance": setup.public.guidance_artefact} if guided else {}
    if setup.task.fedhelp.label_weight > 0 and public.truth is not None:
        to_clinics["labels"] = encoded_truth(public.truth.numpy(), public.sha256, setup.task)
    to_all = {"model": first, "public-set": setup.public.artefact}
    return model, Broadcast(to_all, to_clinics)


def init(setup: Setup, site: SimulatedSite) -> State:
    """Where there is no foundation model, a clinic's public steps are private ones."""
    learner = make_learner(setup, site, setup.public.images, distill=False)
    helped = isinstance(learner, Clinic) and (learner.guidance is not None or learner.labels is not None)
    if isinstance(learner, Clinic) and not helped and setup.task.guidance.source == "none":
        learner.num_steps = setup.num_rounds * setup.steps_per_round("clinic")
    return State(site, learner, SiteModel())


def make_learner(setup: Setup, site: SimulatedSite, public: PublicImages, *, distill: bool) -> Clinic | Hospital:
    if site.role == "hospital":
        return Hospital(site.own, public.normalise, setup.task, site.name)
    return Clinic(site.own, public, setup.task, site.name, distill=distill)


def site_step(setup: Setup, state: State, received: Message, round_number: int) -> Message:
    learner = state.learner
    state.model.receive(received, learner.small)
    if isinstance(learner, Clinic):
        take_up_consensus(setup, learner, received)
    train(setup, learner, round_number)
    sent = {"model": state.model.update(learner.small, setup.task)}
    if isinstance(learner, Hospital) and setup.task.fedhelp.consensus_weight > 0:
        sent["soft-labels"] = soft_labels(setup, state, learner, round_number)
    return sent


def take_up_consensus(setup: Setup, learner: Clinic, received: Message) -> None:
    newest = consensus_in(received, setup)
    if newest is not None and learner.consensus_weight > 0:
        learner.consensus = newest


def train(setup: Setup, learner: Clinic | Hospital, round_number: int) -> None:
    num_steps = learner.num_steps // setup.num_rounds
    for number in range((round_number - 1) * num_steps, round_number * num_steps):
        learner.step(number)


def soft_labels(setup: Setup, state: State, learner: Hospital, round_number: int) -> bytes:
    large, normalise, public = learner.average.module, learner.large_normalise, setup.public.images
    return encode_targets(answer_public_set(large, normalise, public, setup.task, state.site.name, round_number))


def aggregate(
    setup: Setup, state: GlobalModel, messages: Mapping[str, Message], round_number: int
) -> tuple[GlobalModel, Broadcast]:
    return average_models(
        setup.task,
        state,
        {name: message["model"] for name, message in messages.items() if "model" in message},
        {name: message["soft-labels"] for name, message in messages.items() if "soft-labels" in message},
        {site.name: site.num_examples for site in setup.sites},
        setup.public.images.sha256,
        round_number,
    )


def candidates(setup: Setup, state: State, received: Message) -> Sequence[Candidate]:
    """As `ayni train` chooses at the end: a hospital between its large networks (and the global model, if the task says
    so), a clinic between the global model and what its last round made of it."""
    learner = state.learner
    if isinstance(learner, Clinic):
        last = copy.deepcopy(learner.small)
        state.model.receive(received, learner.small)
        return [Candidate(network, setup.normalise) for network in (learner.small, last)]
    found = [Candidate(network, learner.large_normalise) for network in (learner.average.module, learner.large)]
    if setup.task.fedhelp.hospital_takes == "best":
        state.model.receive(received, learner.small)
        found.append(Candidate(learner.small, setup.normalise))
    return found


def with_settings(**changes: Any) -> Callable[[Task], Task]:
    """The task with other `fedhelp` settings."""

    def change(task: Task) -> Task:
        return msgspec.structs.replace(task, fedhelp=msgspec.structs.replace(task.fedhelp, **changes))

    return change


def variant(*, public: Which = "in-domain", **changes: Any) -> Method:
    """FedHelp with other settings of the product."""
    return Method(
        open=open,
        init=init,
        site_step=site_step,
        aggregate=aggregate,
        candidates=candidates,
        public=public,
        guided=True,
        change_task=with_settings(**changes),
    )


METHOD = variant(consensus_weight=0.0)
