"""A federation without one group of sites, its experts, and that group as a site that never trained."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import msgspec
import torch
from torch import Tensor

from ayni.errors import UserError
from ayni.learning.batches import as_tensor
from ayni.learning.fine_tune import fine_tuned
from ayni.learning.home_gain import home_gain
from ayni.learning.networks import Network
from ayni.learning.site_data import own_images
from ayni.learning.statistics import training_statistics
from ayni_coordinator.simulation.experiment import LeaveOut, TaskEntry
from ayni_coordinator.simulation.jobs import Job, Tell
from ayni_coordinator.simulation.run import method_named, run_rounds, set_up
from ayni_coordinator.simulation.unseen.site import Participant, UnseenSite
from ayni_export.routed.at_home import Told


def train_without(job: Job, group: str, plan: LeaveOut, tell: Tell) -> UnseenSite:
    """Raises UserError if the entry's sites will not do."""
    method = method_named(plan.method)
    changed = msgspec.structs.replace(job, method=plan.method, entry=_without(job.entry, group, plan))
    setup, dealt = set_up(changed, method)
    left_out = next(one for one in dealt if one.name == group)
    few = own_images(left_out.pixels_NHWK, left_out.truth, setup.task, group)
    setup = dataclasses.replace(setup, sites=tuple(site for site in setup.sites if site.name != group))
    clinic = next((site.name for site in setup.sites if site.role == "clinic"), None)
    if clinic is None:
        raise UserError(f"without {group!r} no clinic is left in {job.entry.task}, whose network the global model is.")
    outcomes = run_rounds(method, setup, tell)
    # a clinic's first candidate is the global model
    network = cast(Network, outcomes[clinic].candidates[0].network).eval()
    states, participants = [_state(network)], []
    for site in setup.sites:
        tuned = fine_tuned(network, site.own, setup.normalise, setup.task, site.name, plan.steps)
        states.append(_state(tuned))
        looks_2F = training_statistics(network, site.own.train_NCHW, setup.normalise)
        told = Told(*home_gain(tuned, network, site.own, setup.normalise, setup.task.kind))
        participants.append(Participant(site.name, site.own, looks_2F, told))
    return UnseenSite(
        task=setup.task,
        network=network,
        normalise=setup.normalise,
        states=states,
        participants=participants,
        pixels_NKHW=as_tensor(left_out.test_pixels_NHWK),
        truth=torch.from_numpy(left_out.test_truth),
        few=few,
    )


def _without(entry: TaskEntry, group: str, plan: LeaveOut) -> TaskEntry:
    """The other groups' sites as they are, and one site of all of this group's images."""
    sites = {name: site for name, site in entry.sites.items() if site.get("group") != group}
    unseen: dict[str, Any] = {"role": "clinic", "group": group, "num_train": plan.num_labelled}
    return msgspec.structs.replace(entry, sites={**sites, group: unseen}, settings={}, leave_out=None)


def _state(network: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
