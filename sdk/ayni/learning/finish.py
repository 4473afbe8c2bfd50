"""After the last round, and the control beside it: a model for diagnosis, federated or trained alone."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import msgspec
import numpy as np
from torch import nn

from ayni.errors import UserError
from ayni.jobs import Done, FinishTraining, SiteContext, TrainAlone
from ayni.learning.batches import Normaliser
from ayni.learning.fine_tune import fine_tuned
from ayni.learning.learners import Alone
from ayni.learning.models import Candidate, choose_and_store
from ayni.learning.networks import Network, load_weights, seeded_network, weights_of
from ayni.learning.objective import objective_of
from ayni.learning.parts import tensors_of, under
from ayni.learning.received import load_teacher
from ayni.learning.scores import answers
from ayni.learning.site_data import OwnImages, load_own_images
from ayni.learning.state import State, StateInfo, TrainingFolder, add_history, history_line, read_state, write_state
from ayni.learning.steps import Tell, mean_losses, peak_rss_mb, resume, run_steps
from ayni.learning.training import load_global, normalise_of, read_task_of
from ayni.task import Task
from ayni.tensors.safe import Array, Floats

PERSONAL = "this site's personal model"


def finish_training(job: FinishTraining) -> Done:
    """Choose between what the federation, this site's last round and its personal model gave: HOME/models/federated.
    The personal model by itself is HOME/models/personal, if the task wants one."""
    context, task = job.context, read_task_of(job.context)
    own, folder = load_own_images(context, task), TrainingFolder(Path(context.home))
    trained = folder.rounds()
    state = read_state(folder.state_after(trained[-1])) if trained else None
    teacher = load_teacher(job.teacher, task)
    normalise = Normaliser(state.info.pixel_mean, state.info.pixel_std) if state else normalise_of(own, None, teacher)
    network, is_large = _global_network(job, task), _diagnoses_large(context, task)
    small = functools.partial(Candidate, architecture=task.small_network, normalise=normalise)
    candidates = []
    if state and is_large:
        info = state.info
        seen_by = Normaliser(info.large_mean, info.large_std) if info.large_mean else normalise
        large = functools.partial(Candidate, architecture=task.large_network, normalise=seen_by)
        candidates = [
            large("the large network, averaged", weights=_floats(under(state.tensors, "average.module"))),
            large("the large network", weights=_floats(under(state.tensors, "large"))),
        ]
    if network and (not is_large or (state and task.fedhelp.hospital_takes == "best")):
        candidates.append(small(f"the global model of round {job.rounds}", weights=weights_of(network)))
    if state and not is_large:
        candidates.append(small("this site's last small network", weights=_floats(under(state.tensors, "small"))))
    personal = _personal(task, context.site, own, normalise, network, state)
    if personal and not is_large:
        candidates.append(small(PERSONAL, weights=personal))
    if not candidates:
        raise UserError("this site has trained in no round, so there is no network to choose. Run `ayni train` first.")
    stored = {"federated": candidates}
    if personal:  # also where it is small and does not diagnose: an expert to share
        stored["personal"] = [small(PERSONAL, weights=personal)]
    rounds, steps = (state.info.rounds_trained, state.info.steps_trained) if state else (0, 0)
    scores = {
        kind: choose_and_store(some, own, context, task, kind=kind, rounds=rounds, steps=steps)
        for kind, some in stored.items()
    }
    return Done(num_examples=len(own.train_truth), peak_rss_mb=peak_rss_mb(), scores=scores)


def _diagnoses_large(context: SiteContext, task: Task) -> bool:
    """Whether the large network diagnoses at this site; with a teacher (`dual_kd`) nobody trains one."""
    return context.role == "hospital" and task.dual_kd is None


def _global_network(job: FinishTraining, task: Task) -> Network | None:
    if not job.global_model:
        return None
    network = seeded_network(task.small_network, task, task.seed)
    load_weights(network, load_global(job.global_model, job.global_digest, network))
    return network


def _personal(
    task: Task, site: str, own: OwnImages, normalise: Normaliser, network: Network | None, state: State | None
) -> dict[str, Floats]:
    """{} if the task wants none, or there is nothing to make it of."""
    if state is None or task.personal is None:
        return {}
    if task.personal.kind == "iop":
        return _floats(under(state.tensors, "personal"))
    if network is None:
        return {}
    return weights_of(fine_tuned(network, own, normalise, task, site, task.personal.steps))


def _floats(tensors: dict[str, Array]) -> dict[str, Floats]:
    return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}


def num_steps_of(task: Task, context: SiteContext) -> int:
    """Optimiser steps that a whole federation would give the network that diagnoses; a clinic's public ones count."""
    steps = task.training.rounds * task.training.steps_of(context.role)
    if task.dual_kd:
        return steps
    helped = task.guidance.source != "none" and task.fedhelp.guidance_weight > 0
    helped = helped or (task.public_set_labelled and task.fedhelp.label_weight > 0)
    consensus = task.fedhelp.consensus_weight > 0 or context.participation == "distill"
    return steps * (2 if context.role == "clinic" and (helped or consensus) else 1)


def train_alone(job: TrainAlone, tell: Tell) -> Done:
    """The network that diagnoses at this site, the same number of steps, no help; writes HOME/models/alone."""
    context, task = job.context, read_task_of(job.context)
    own, folder = load_own_images(context, task), TrainingFolder(Path(context.home))
    num_steps, rounds = num_steps_of(task, context), task.training.rounds
    is_large = _diagnoses_large(context, task)
    learner = Alone(own, task, context.site, large=is_large, num_steps=num_steps)
    name = hashlib.sha256(f"alone/{context.site}/{context.role}/{own.sha256}/".encode() + task.to_json()).hexdigest()
    checkpoint, block = folder.checkpoint("alone"), num_steps // rounds
    info = resume(learner, checkpoint, name)
    if info is None:
        start = StateInfo(job=name, round_number=0, pixel_mean=own.normalise.mean, pixel_std=own.normalise.std)
        _add_point(folder, learner.network, task, own, start)
        info = msgspec.structs.replace(start, round_number=1)
    for round_number in range(info.round_number, rounds + 1):
        info = run_steps(
            learner,
            info,
            first_number=(round_number - 1) * block,
            num_steps=block,
            checkpoint=checkpoint,
            memory_mb=context.memory_mb,
            what=f"alone, part {round_number} of {rounds}",
            tell=tell,
        )
        _add_point(folder, learner.average.module, task, own, info)
        info = msgspec.structs.replace(info, round_number=round_number + 1, step=0, loss_sums={})
    write_state(checkpoint, State(info, tensors_of(learner.parts)))
    network = task.large_network if is_large else task.small_network
    candidates = [
        Candidate("the network, averaged", network, own.normalise, weights_of(learner.average.module)),
        Candidate("the network", network, own.normalise, weights_of(learner.network)),
    ]
    validation = choose_and_store(candidates, own, context, task, kind="alone", rounds=0, steps=num_steps)
    checkpoint.unlink()
    return Done(
        num_examples=len(own.train_truth),
        train_s=round(info.train_s, 3),
        peak_rss_mb=peak_rss_mb(),
        scores={"alone": validation},
    )


def _add_point(folder: TrainingFolder, network: nn.Module, task: Task, own: OwnImages, info: StateInfo) -> None:
    if len(own.holdout_truth):
        now = objective_of(task.kind).score(answers(network, own.holdout_MCHW, own.normalise), own.holdout_truth)
        line = history_line(info.round_number, now, None, mean_losses(info))
        add_history(folder.history("alone"), [line])
