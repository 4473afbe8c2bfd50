"""The teacher as a site received it: its artefact checked, and made a network again."""

from __future__ import annotations

from pathlib import Path

from ayni.errors import IntegrityError
from ayni.learning.batches import Normaliser
from ayni.learning.dual_kd import TeacherModel
from ayni.learning.networks import load_weights, seeded_network, shapes_of
from ayni.task import Task
from ayni.tensors import safe
from ayni.tensors.teacher import TeacherWeights, check_teaches, decode_teacher


def load_teacher(path: str | None, task: Task) -> TeacherModel | None:
    """None for a task without `dual_kd`. Raises IntegrityError if the teacher is missing or for another task."""
    if task.dual_kd is None:
        return None
    if path is None:
        raise IntegrityError("the coordinator's manifest lists no teacher, and the task has a section [dual_kd]")
    return teacher_model(decode_teacher(Path(path).read_bytes()), task)


def teacher_model(teacher: TeacherWeights, task: Task) -> TeacherModel:
    """A network that answers, and how it normalises. Raises IntegrityError if it is not for this task."""
    check_teaches(teacher.info, task)
    network = seeded_network(task.teacher_network, task, 0)
    safe.check_like(teacher.weights, shapes_of(network))
    load_weights(network, teacher.weights)
    return TeacherModel(network, Normaliser(teacher.info.pixel_mean, teacher.info.pixel_std))
