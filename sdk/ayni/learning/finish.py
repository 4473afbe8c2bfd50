"""After the last round, and the control beside it: a model for diagnosis, federated or trained alone."""

from __future__ import annotations

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
    candidates = []
    if state and is_large:
        candidates = [
            Candidate("the large network, averaged", _floats(under(state.tensors, "average.module"))),
            Candidate("the large network", _floats(under(state.tensors, "large"))),
        ]
    elif not is_large:
        if network:
            candidates.append(Candidate(f"the global model of round {job.rounds}", weights_of(network)))
        if state:
            candidates.append(Candidate("this site's last small network", _floats(under(state.tensors, "small"))))
    personal = _personal(task, context.site, own, normalise, network, state)
    if personal and not is_large:
        candidates.append(Candidate(PERSONAL, personal))
    if not candidates:
        raise UserError("this site has trained in no round, so there is no network to choose. Run `ayni train` first.")
    architecture, seen_by = task.large_network if is_large else task.small_network, normalise
    if state and is_large and state.info.large_mean:
        seen_by = Normaliser(state.info.large_mean, state.info.large_std)
    stored = [("federated", candidates, architecture, seen_by)]
    if personal:  # also where it is small and does not diagnose: an expert to share
        stored.append(("personal", [Candidate(PERSONAL, personal)], task.small_network, normalise))
    rounds, steps = (state.info.rounds_trained, state.info.steps_trained) if state else (0, 0)
    scores = {
        kind: choose_and_store(some, own, each, context, task, kind=kind, network=network, rounds=rounds, steps=steps)
        for kind, some, network, each in stored
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
    candidates = [
        Candidate("the network, averaged", weights_of(learner.average.module)),
        Candidate("the network", weights_of(learner.network)),
    ]
    network = task.large_network if is_large else task.small_network
    validation = choose_and_store(
        candidates, own, own.normalise, context, task, kind="alone", network=network, rounds=0, steps=num_steps
    )
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
