"""What the centre makes of its labelled images: the teacher, and first weights that have seen them. Made once for all
methods, and kept beside the data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from ayni.artefacts.files import write_atomic
from ayni.artefacts.lock import folder_lock
from ayni.errors import UserError
from ayni.learning.batches import Normaliser
from ayni.learning.dual_kd import TeacherModel
from ayni.learning.networks import build_network, load_weights, weights_of
from ayni.learning.site_data import OwnImages, own_images
from ayni.learning.teacher import SITE, Teacher, first_weights, teacher_info
from ayni.task import Task
from ayni.tensors import safe
from ayni.tensors.safe import Floats
from ayni.tensors.teacher import TeacherWeights, decode_teacher, encode_teacher
from ayni_coordinator.simulation.collection import Collection, Indices
from ayni_coordinator.simulation.method import Centre

FOLDER = ".teachers"
PATIENCE_S = 3600.0  # another run may be training it


def centre_of(collection: Collection, repository: Indices, task: Task, normalise: Normaliser, data: Path) -> Centre:
    """The repository's images, normalised as all sites do, and the teacher. Raises UserError without a repository."""
    if not len(repository):
        raise UserError(f"{task.name}: a teacher needs a `repository` of labelled images in the experiment.")
    own = own_images(collection.pixels_NHWK[repository], collection.truth[repository], task, SITE)
    own = dataclasses.replace(own, normalise=normalise)
    decides = (task.teacher_network, task.dual_kd.teacher_steps if task.dual_kd else 0)
    artefact = _made_once(data, "teacher", own, task, decides, lambda: _trained(own, task))
    decoded = decode_teacher(artefact)
    network = build_network(task.teacher_network, task.image, len(task.classes))
    load_weights(network, decoded.weights)
    return Centre(own, TeacherModel(network, normalise), artefact, data)


def _trained(own: OwnImages, task: Task) -> bytes:
    learner = Teacher(own, task)
    for number in range(learner.num_steps):
        learner.step(number)
    # tasks that differ in their sites' labels alone share it: its bytes must not tell which of them was run first
    info = msgspec.structs.replace(teacher_info(own, task), task="repository", name="teacher")
    return encode_teacher(TeacherWeights(info, weights_of(learner.average.module)))


def start_of(centre: Centre, task: Task) -> dict[str, Floats]:
    """First weights of the small network after as many steps at the centre as a small site takes in all."""
    num_steps = 2 * task.training.rounds * task.training.steps_per_round

    def make() -> bytes:
        return safe.encode(first_weights(centre.repository, centre.teacher, task, num_steps))

    tensors = safe.decode(
        _made_once(centre.data, "start", centre.repository, task, (task.networks, task.dual_kd), make)
    )
    return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}


def _made_once(
    data: Path, what: str, own: OwnImages, task: Task, decides: Sequence[object], make: Callable[[], bytes]
) -> bytes:
    """Named by all that decides it; how many labels the sites have does not."""
    all_that: list[object] = [what, own.sha256, own.normalise.mean, own.normalise.std]
    all_that += [task.kind, task.image, task.training, task.seed, *decides]
    name = hashlib.sha256(msgspec.json.encode(all_that, order="deterministic")).hexdigest()
    kept = data / FOLDER / f"{what}-{name[:24]}.safetensors"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock = kept.with_suffix(".lock")
        lock.mkdir(exist_ok=True)
        with folder_lock(lock, f"another run trains the {what}", patience_s=PATIENCE_S):
            if not kept.exists():
                write_atomic(kept, make())
    return kept.read_bytes()
