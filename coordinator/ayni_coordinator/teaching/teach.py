"""`ayni coordinator teach`: from labelled images, or from a file, to the teacher that the manifest lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from ayni.artefacts.lock import folder_lock
from ayni.data.masks import load_segmented
from ayni.data.read import load_images
from ayni.errors import UserError
from ayni.learning.received import teacher_model
from ayni.learning.site_data import OwnImages, own_images
from ayni.learning.teacher import SITE, first_weights, teacher_info
from ayni.task import Task
from ayni.tensors.teacher import Form, TeacherInfo, TeacherWeights, decode_teacher, encode_teacher
from ayni_coordinator.home import CoordinatorHome
from ayni_coordinator.teaching.imported import read_teacher
from ayni_coordinator.teaching.packing import HeldOut, WantedForm, packed
from ayni_coordinator.teaching.processes import processes, rank_from_environment
from ayni_coordinator.teaching.publish import check_may_teach, publish_teacher
from ayni_coordinator.teaching.train import OnProgress, Weights, chosen, telling, trained_teacher, with_steps

CHECKPOINT, START_CHECKPOINT = "checkpoint.safetensors", "start-checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a person asks for: labelled images to learn from, or a file to import (then they only measure it). Without
    `steps`, as many as the task says."""

    data: Path | None
    teacher: Path | None = None
    steps: int | None = None
    name: str = ""
    licence: str = ""
    form: WantedForm = "auto"
    device: str = "cpu"


class Taught(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `form` is how the weights travel."""

    info: TeacherInfo
    form: Form
    num_bytes: int
    told: str


def teach(folder: Path, lesson: Lesson, on_progress: OnProgress) -> Taught | None:
    """Publish the teacher; None in all processes but the first. Raises UserError or IntegrityError.

    What was killed goes on from the checkpoints in HOME/teaching, which lie there until the teacher is published.
    """
    home = CoordinatorHome.open(folder)
    check_may_teach(home)
    torch.use_deterministic_algorithms(lesson.device == "cpu")  # bits are promised of processors only
    task = with_steps(home.task, lesson.steps)
    own = _labelled(lesson.data, task) if lesson.data else None
    place = home.folder / "teaching"
    place.mkdir(exist_ok=True)
    if rank_from_environment():
        if own and not lesson.teacher:
            _learned(own, task, lesson.device, place, on_progress)
        return None
    with folder_lock(place, "another `ayni coordinator teach` runs on this folder"):
        if lesson.teacher:
            teacher = read_teacher(lesson.teacher, task, own.normalise if own else None)
            seen = HeldOut.all_of(own) if own else None
        elif own:
            weights = chosen(_learned(own, task, lesson.device, place, on_progress), own, task)
            teacher, seen = TeacherWeights(teacher_info(own, task), weights), HeldOut.of(own)
        else:
            raise UserError("which images shall the teacher learn from? Give --data LABELLED, or --import FILE.")
        done = _published(home, teacher, seen, own, lesson, place, on_progress)
        for name in (CHECKPOINT, START_CHECKPOINT):
            (place / name).unlink(missing_ok=True)
        return done


def _labelled(data: Path, task: Task) -> OwnImages:
    """The centre's images, a part of them held out as at a site; those without labels are left. Raises DataError."""
    if task.kind == "segmentation":
        segmented = load_segmented(data, task.image, task.classes, unlabelled=True)
        return own_images(segmented.pixels_NHWC, segmented.masks_NSHW, task, SITE)
    images = load_images(data, task.image, task.classes, unlabelled=True)
    return own_images(images.pixels_NHWC, images.labels_N, task, SITE)


def _learned(own: OwnImages, task: Task, device: str, place: Path, on_progress: OnProgress) -> list[Weights]:
    """Train, alone or with the other processes."""
    with processes(device) as together:
        return trained_teacher(own, task, together, place / CHECKPOINT, on_progress)


def _published(
    home: CoordinatorHome,
    teacher: TeacherWeights,
    seen: HeldOut | None,
    own: OwnImages | None,
    lesson: Lesson,
    place: Path,
    on_progress: OnProgress,
) -> Taught:
    info = msgspec.structs.replace(
        teacher.info, name=lesson.name or teacher.info.name, licence=lesson.licence or teacher.info.licence
    )
    form, teacher = packed(TeacherWeights(info, teacher.weights), lesson.form, seen, home.task)
    data = encode_teacher(teacher, form)
    first = _first_weights(data, own, home.task, place, on_progress)
    told = publish_teacher(home, data, teacher.info.name, _words(teacher, form), first)
    return Taught(info=teacher.info, form=form, num_bytes=len(data), told=told)


def _first_weights(
    data: bytes, own: OwnImages | None, task: Task, place: Path, on_progress: OnProgress
) -> Weights | None:
    """Of the small network after `dual_kd.start_steps` here, taught by the teacher as it travels; None for none.

    Raises UserError without images.
    """
    steps = task.dual_kd.start_steps if task.dual_kd else 0
    if not steps:
        return None
    if own is None:
        raise UserError("dual_kd.start_steps lets the small network learn here first, from --data LABELLED. Give both.")
    model = teacher_model(decode_teacher(data), task)
    return first_weights(own, model, task, steps, checkpoint=place / START_CHECKPOINT, tell=telling(on_progress))


def _words(teacher: TeacherWeights, form: Form) -> str:
    info = teacher.info
    size = sum(tensor.size for tensor in teacher.weights.values())
    learned = f", trained on {info.num_images} images" if info.num_images else ""
    figure = f", {info.figure_name} {info.figure:.3f} on {info.num_held_out} others" if info.figure is not None else ""
    return f"{size / 1e6:.2f} million weights in {form[2:]} bits{learned}{figure}"
