"""One round at a site: from the global model and the site's own state to an update, and the state after it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ayni.artefacts.files import write_atomic
from ayni.errors import IntegrityError, UserError
from ayni.jobs import Done, SiteContext, TrainRound
from ayni.learning.batches import Normaliser
from ayni.learning.dual_kd import Student, TeacherModel
from ayni.learning.learners import Clinic, Hospital
from ayni.learning.networks import Network, load_weights, shapes_of, weights_of
from ayni.learning.objective import objective_of
from ayni.learning.parts import load_parts, tensors_of, under
from ayni.learning.personal import personal_after
from ayni.learning.received import load_teacher
from ayni.learning.scores import answers
from ayni.learning.site_data import OwnImages, PublicImages, load_own_images, load_public_images
from ayni.learning.state import State, StateInfo, TrainingFolder, add_history, history_line, read_state, write_state
from ayni.learning.steps import Tell, mean_losses, peak_rss_mb, resume, run_steps
from ayni.task import Task, TrafficSettings
from ayni.task_checks import check_kind
from ayni.tensors import safe
from ayni.tensors.safe import Array, Floats
from ayni.tensors.targets import Targets, TargetsInfo, encode_targets
from ayni.tensors.update import assemble, encode_change, encode_whole
from ayni.trained_model import Scores

LOWEST_LOG_PROBABILITY = -12.0  # soft labels: less than a millionth is not told apart
LARGEST_LOG_ODDS = 8.0  # of a pixel: surer than one in three thousand is not told apart
Participant = Clinic | Hospital | Student


def read_task_of(context: SiteContext) -> Task:
    """The task, if this site can do it; raises UserError."""
    task = Task.from_json(Path(context.task_path).read_bytes())
    check_kind(task)
    return task


def load_global(parts: list[str], digest: str, network: Network) -> dict[str, Floats]:
    """The global model from its artefacts; raises IntegrityError if it is not the promised one or does not fit."""
    weights = assemble([Path(part).read_bytes() for part in parts])
    if safe.digest(weights) != digest:
        raise IntegrityError(f"the global model's digest is {safe.digest(weights)}, promised was {digest}")
    safe.check_like(weights, shapes_of(network))
    return weights


def train_round(job: TrainRound, tell: Tell) -> Done:
    """Train one round, or take up where a cut one stopped; the same job gives the same bytes."""
    context, task = job.context, read_task_of(job.context)
    own = load_own_images(context, task)
    public = load_public_images(task, job.public_set, job.guidance, job.consensus, job.labels)
    teacher = load_teacher(job.teacher, task)
    learner, normalise = make_learner(context, task, own, public, teacher), normalise_of(own, public, teacher)
    folder, weights = TrainingFolder(Path(context.home)), None
    before = _state_before(folder, job.round_number)
    if before:
        load_parts(learner.parts, before.tensors)
    if job.global_model:
        weights = load_global(job.global_model, job.global_digest, learner.small)
        load_weights(learner.small, weights)
    start = _holdout_scores(learner.small, task, own, normalise) if weights else None
    if before is None and job.round_number == 1:
        _add_point(folder, learner, own, normalise, 0, start, {})

    info = _counted(_train(job, learner, own, normalise, folder, tell), before)
    if weights is None:
        residual: dict[str, Floats] = {}
    else:
        owed = under(before.tensors, "residual") if before else {}
        data, residual = encode_update(weights_of(learner.small), weights, owed, task.traffic)
        if job.update_out:
            write_atomic(Path(job.update_out), data)
    if job.soft_labels_out and isinstance(learner, Hospital) and public:
        soft_labels = answer_public_set(
            learner.average.module, learner.large_normalise, public, task, context.site, job.round_number
        )
        write_atomic(Path(job.soft_labels_out), encode_targets(soft_labels))
    tensors = {**tensors_of(learner.parts), **{f"residual.{k}": v for k, v in residual.items()}}
    if task.personal and task.personal.kind == "iop":
        kept = under(before.tensors, "personal") if before else {}
        personal = personal_after(kept, weights_of(learner.small), task.personal.decay)
        tensors |= {f"personal.{name}": array for name, array in personal.items()}
    write_state(folder.state_after(job.round_number), State(info, tensors))
    now = _add_point(folder, learner, own, normalise, job.round_number, start, mean_losses(info))
    folder.checkpoint("federated").unlink(missing_ok=True)
    return Done(
        num_examples=len(own.train_truth),
        train_s=round(info.train_s, 3),
        peak_rss_mb=peak_rss_mb(),
        scores={"validation": now} if now else {},
    )


def make_learner(
    context: SiteContext, task: Task, own: OwnImages, public: PublicImages | None, teacher: TeacherModel | None
) -> Participant:
    """With a teacher all sites do the same, clinics and hospitals."""
    if teacher:
        student = Student(own, teacher, task, context.site)
        student.num_steps = task.training.rounds * task.training.steps_of(context.role)
        return student
    if context.role == "hospital":
        return Hospital(own, normalise_of(own, public, None), task, context.site)
    return Clinic(own, public, task, context.site, distill=context.participation == "distill")


def normalise_of(own: OwnImages, public: PublicImages | None, teacher: TeacherModel | None) -> Normaliser:
    """The teacher's, or that of the public set, so that all sites agree; a site's own if there is neither."""
    return teacher.normalise if teacher else public.normalise if public else own.normalise


def _state_before(folder: TrainingFolder, round_number: int) -> State | None:
    """The state that this round starts from; older ones are forgotten."""
    rounds = folder.rounds()
    if any(later > round_number for later in rounds):
        raise UserError(
            f"round {round_number} was asked for, but {folder.path} is already at round {rounds[-1]}. "
            "It belongs to another federation: choose another home folder."
        )
    earlier = [number for number in rounds if number < round_number]
    if not earlier:
        return None
    folder.forget_before(earlier[-1])
    return read_state(folder.state_after(earlier[-1]))


def _train(
    job: TrainRound,
    learner: Participant,
    own: OwnImages,
    normalise: Normaliser,
    folder: TrainingFolder,
    tell: Tell,
) -> StateInfo:
    """All steps of the round, from a checkpoint (or the finished state) of this very job if there is one."""
    task, name = learner.task, _job_name(job, own)
    checkpoint = folder.checkpoint("federated")
    done = resume(learner, folder.state_after(job.round_number), name)
    info = done or resume(learner, checkpoint, name)
    if info is None:
        info = StateInfo(job=name, round_number=job.round_number, pixel_mean=normalise.mean, pixel_std=normalise.std)
        if isinstance(learner, Hospital):
            large = learner.large_normalise
            info = msgspec.structs.replace(info, large_mean=large.mean, large_std=large.std)
    steps = task.training.steps_of(job.context.role)
    return run_steps(
        learner,
        info,
        first_number=(job.round_number - 1) * steps,
        num_steps=steps,
        checkpoint=checkpoint,
        memory_mb=job.context.memory_mb,
        what=f"round {job.round_number}",
        tell=tell,
    )


def _counted(info: StateInfo, before: State | None) -> StateInfo:
    """With what this site has trained in all; a clinic with public targets takes two optimiser steps per step."""
    rounds, steps = (before.info.rounds_trained, before.info.steps_trained) if before else (0, 0)
    steps += info.step * (2 if "public" in info.loss_sums else 1)
    return msgspec.structs.replace(info, rounds_trained=rounds + 1, steps_trained=steps)


def _job_name(job: TrainRound, own: OwnImages) -> str:
    """Tells apart all that a round's result depends on, but for the state before it."""
    files = [job.context.task_path, job.public_set, job.guidance, job.consensus, job.teacher, job.labels]
    hashes = [hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else "" for file in files]
    parts = [job.context.site, job.context.role, job.context.participation, own.sha256, job.global_digest, *hashes]
    return hashlib.sha256("/".join([str(job.round_number), *parts]).encode()).hexdigest()


def encode_update(
    trained: dict[str, Floats], start: dict[str, Floats], owed: Mapping[str, Array], traffic: TrafficSettings
) -> tuple[bytes, dict[str, Floats]]:
    """The update as it travels, and what it leaves out: the next update's `owed`."""
    if traffic.form != "sparse":
        return encode_whole(trained, traffic.form), {}
    change = {name: trained[name] - start[name] for name in trained}
    for name, left_out in owed.items():
        change[name] += np.asarray(left_out, np.float32)
    data, seen = encode_change(change, density=traffic.density_up)
    return data, {name: change[name] - seen[name] for name in change}


def answer_public_set(
    network: nn.Module, normalise: Normaliser, public: PublicImages, task: Task, site: str, round_number: int
) -> Targets:
    """A site's soft labels: its network's log-probabilities on the public set (of a segmentation the log-odds, as
    maps of half the images' size), in 8 bits."""
    logits = answers(network, public.pixels_PCHW, normalise)
    if task.kind == "segmentation":
        pool = functional.avg_pool3d if task.image.depth else functional.avg_pool2d
        logits = pool(logits.clamp(-LARGEST_LOG_ODDS, LARGEST_LOG_ODDS), 2)
    else:
        logits = torch.log_softmax(logits, dim=1).clamp_min(LOWEST_LOG_PROBABILITY)
    depth, height, width = (0, 0, 0, *logits.shape[2:])[-3:]
    info = TargetsInfo(
        source="hospital",
        image_set=public.sha256,
        model_name=site,
        model_version=f"round {round_number}",
        licence="",
        classes=task.classes,
        bits=8,
        height=height,
        width=width,
        depth=depth,
    )
    return Targets(info, logits.numpy())


def _holdout_scores(network: nn.Module, task: Task, own: OwnImages, normalise: Normaliser) -> Scores | None:
    if not len(own.holdout_truth):
        return None
    return objective_of(task.kind).score(answers(network, own.holdout_MCHW, normalise), own.holdout_truth)


def _add_point(
    folder: TrainingFolder,
    learner: Participant,
    own: OwnImages,
    normalise: Normaliser,
    round_number: int,
    of_global: Scores | None,
    losses: dict[str, float],
) -> Scores | None:
    """One point of the learning curve: the network that diagnoses at this site, on its held-out images."""
    network: nn.Module = learner.small
    if isinstance(learner, Hospital):
        network, normalise = learner.average.module, learner.large_normalise
    now = _holdout_scores(network, learner.task, own, normalise)
    if now:
        line = history_line(round_number, now, of_global.main if of_global else None, losses)
        add_history(folder.history("federated"), [line])
    return now
