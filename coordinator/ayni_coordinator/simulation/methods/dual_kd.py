"""Dual distillation as the federation runs it (ayni.learning.dual_kd): students travel, the teacher is sent once.

arXiv 2303.14357. Every site trains one small network, on its labelled images and on the teacher's answers to others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ayni.errors import UserError
from ayni.learning.dual_kd import Student
from ayni.learning.networks import initial_weights
from ayni.task import Task
from ayni.tensors.safe import Floats
from ayni_coordinator.simulation.averaging import GlobalModel, SiteModel, first_model
from ayni_coordinator.simulation.method import Broadcast, Candidate, Centre, Message, Method, Setup, SimulatedSite
from ayni_coordinator.simulation.methods.fedavg import aggregate, by_samples

Start = Callable[[Setup], Mapping[str, Floats]]  # first weights


@dataclass(slots=True)
class State:
    site: SimulatedSite
    learner: Student
    model: SiteModel


def centre_in(setup: Setup) -> Centre:
    if setup.centre is None:
        raise UserError(f"the task {setup.task.name} has no `repository` in the experiment, and so no teacher.")
    return setup.centre


def open_with(start: Start) -> Callable[[Setup], tuple[GlobalModel, Broadcast]]:
    def open(setup: Setup) -> tuple[GlobalModel, Broadcast]:
        """The teacher goes to every site, once."""
        model, first = first_model(setup.task, start(setup))
        return model, Broadcast({"model": first, "teacher": centre_in(setup).artefact})

    return open


def init(setup: Setup, site: SimulatedSite) -> State:
    learner = Student(site.own, centre_in(setup).teacher, setup.task, site.name)
    learner.num_steps = setup.num_rounds * setup.steps_per_round(site.role)
    return State(site, learner, SiteModel())


def site_step(setup: Setup, state: State, received: Message, round_number: int) -> Message:
    learner = state.learner
    state.model.receive(received, learner.small)
    num_steps = setup.steps_per_round(state.site.role)
    for number in range((round_number - 1) * num_steps, round_number * num_steps):
        learner.step(number)
    return {"model": state.model.update(learner.small, setup.task)}


def candidates(setup: Setup, state: State, received: Message) -> Sequence[Candidate]:
    """The averaged student, or what the site's last round made of it."""
    last = copy.deepcopy(state.learner.small)
    state.model.receive(received, state.learner.small)
    return [Candidate(network, setup.normalise) for network in (state.learner.small, last)]


def with_settings(task: Task, **changes: Any) -> Task:
    """The task with other `dual_kd` settings. Raises UserError if it has none."""
    if task.dual_kd is None:
        raise UserError(f"the task {task.name} has no section [dual_kd].")
    return msgspec.structs.replace(task, dual_kd=msgspec.structs.replace(task.dual_kd, **changes))


def variant(start: Start = lambda setup: initial_weights(setup.task), **changes: Any) -> Method:
    """Dual distillation with other settings of the product, or from other first weights."""

    def change(task: Task) -> Task:
        return by_samples(with_settings(task, **changes))

    return Method(
        open=open_with(start),
        init=init,
        site_step=site_step,
        aggregate=aggregate,
        candidates=candidates,
        taught=True,
        change_task=change,
    )


METHOD = variant()
