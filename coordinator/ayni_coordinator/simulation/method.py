"""A method is a value: how a site begins, what a round is at a site and at the coordinator, which networks diagnose.

Everything that travels is bytes, as on the wire, and is counted. One method is one short module in `methods/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ayni.learning.batches import Normaliser
from ayni.learning.dual_kd import TeacherModel
from ayni.learning.objective import Objective, objective_of
from ayni.learning.site_data import OwnImages, PublicImages
from ayni.task import Architecture, Role, Task
from ayni.tensors.targets import Targets
from ayni_coordinator.simulation.experiment import Setting

Message = Mapping[str, bytes]  # by what it is for: "model", "targets", ...


@dataclass(frozen=True, slots=True)
class Public:
    """The public set as an artefact, what its images are, and the foundation model's answers on them if asked for."""

    artefact: bytes
    images: PublicImages
    guidance: Targets | None
    guidance_artefact: bytes


@dataclass(frozen=True, slots=True)
class SimulatedSite:
    """A site's name, its part, and its own images; its test images are not here. `hidden_truth` is that of its
    unlabelled images, for an upper bound alone."""

    name: str
    role: Role
    own: OwnImages
    hidden_truth: Tensor | None = None

    @property
    def num_examples(self) -> int:
        return len(self.own.train_NCHW)


@dataclass(frozen=True, slots=True)
class Centre:
    """The labelled images at the centre, and the teacher that learnt from them, as an artefact too; `data` is where
    what is made of them once is kept."""

    repository: OwnImages
    teacher: TeacherModel
    artefact: bytes
    data: Path


@dataclass(frozen=True, slots=True)
class Setup:
    """What all parties of a run agree on. `settings` are the method's own, with what the experiment changes."""

    task: Task
    sites: tuple[SimulatedSite, ...]
    public: Public
    settings: Mapping[str, Setting]
    centre: Centre | None = None
    memory: dict[str, Any] = field(default_factory=dict)  # what a method wants to make once for all sites

    @property
    def objective(self) -> Objective:
        return objective_of(self.task.kind)

    @property
    def normalise(self) -> Normaliser:
        """The public set's, so that all sites agree."""
        return self.public.images.normalise

    @property
    def num_rounds(self) -> int:
        return self.task.training.rounds

    def network(self, role: Role) -> Architecture:
        """Of the network that diagnoses: the large one at a hospital."""
        return self.task.large_network if role == "hospital" else self.task.small_network

    def steps_per_round(self, role: Role) -> int:
        """Optimiser steps of each network in a round, the same for every method. A clinic's networks get twice as many
        as a hospital's: where FedHelp alternates private and public batches, the others take private ones."""
        return self.task.training.steps_per_round * (2 if role == "clinic" else 1)

    def number(self, name: str) -> float:
        return float(self.settings[name])


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What the coordinator sends: to every site, and to the clinics or the hospitals besides."""

    to_all: Message = field(default_factory=dict)
    to_clinics: Message = field(default_factory=dict)
    to_hospitals: Message = field(default_factory=dict)

    def to(self, role: Role) -> Message:
        return {**self.to_all, **(self.to_clinics if role == "clinic" else self.to_hospitals)}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that may diagnose at a site, with the normalisation that it was trained with."""

    network: nn.Module
    normalise: Normaliser


@dataclass(frozen=True, slots=True)
class Method:
    """`open` gives the coordinator's state and what sites get before round 1; `init` a site's state.

    `site_step` is one round at a site: it changes the state's networks and returns what goes up. `aggregate` gives the
    coordinator's next state and what goes down, from the sites' messages in the order of their names; after the last
    round the sites get that too. Of `candidates` the first diagnoses, unless another is better on the site's
    held-out images by more than chance. `public` is the set that the method wants, `guided` whether it wants the
    foundation model's answers on it, `labelled` whether its truth, which only the centre has, `taught` whether it wants
    the centre's teacher. What a method is called on the
    page, and its paper, stand in methods.toml.
    """

    open: Callable[[Setup], tuple[Any, Broadcast]]
    init: Callable[[Setup, SimulatedSite], Any]
    site_step: Callable[[Setup, Any, Message, int], Message]
    aggregate: Callable[[Setup, Any, Mapping[str, Message], int], tuple[Any, Broadcast]]
    candidates: Callable[[Setup, Any, Message], Sequence[Candidate]]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    public: Literal["in-domain", "out-of-domain"] = "in-domain"
    guided: bool = False
    labelled: bool = False
    taught: bool = False
    change_task: Callable[[Task], Task] = lambda task: task


def no_message(setup: Setup) -> tuple[None, Broadcast]:
    return None, Broadcast()


def nothing_to_average(
    setup: Setup, state: Any, messages: Mapping[str, Message], round_number: int
) -> tuple[None, Broadcast]:
    return None, Broadcast()
