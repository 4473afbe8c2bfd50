"""Two hospitals and two clinics with a few small images, for tests of methods: squares that are bright or not."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch

from ayni.learning.batches import Normaliser
from ayni.learning.dual_kd import TeacherModel
from ayni.learning.networks import seeded_network
from ayni.learning.site_data import own_images, public_images
from ayni.task import (
    DualKdSettings,
    FedHelpSettings,
    ImageSettings,
    Kind,
    NetworkSettings,
    PretrainedSettings,
    ResNetSettings,
    Role,
    Task,
    TrafficSettings,
    TrainingSettings,
    UNetSettings,
)
from ayni.tensors.image_set import ImageSet, ImageSetInfo, encode_image_set
from ayni.tensors.targets import Targets, TargetsInfo, encode_targets
from ayni_coordinator.simulation.collection import Pixels, Truth
from ayni_coordinator.simulation.method import Centre, Method, Public, Setup, SimulatedSite

SIDE, NUM_PUBLIC = 16, 6
SITES: dict[str, tuple[Role, int]] = {
    "a-clinic": ("clinic", 10),
    "b-clinic": ("clinic", 12),
    "c-hospital": ("hospital", 20),
    "d-hospital": ("hospital", 16),
}
RESNET = ResNetSettings(layers=(1, 1, 1, 1), planes=(4, 4, 8, 8), stem_stride=2)
UNET = UNetSettings(channels=(4, 8), features=4)


def small_task(kind: Kind, *, form: Literal["fp32", "sparse"] = "sparse", rounds: int = 2, seed: int = 3) -> Task:
    small, large = (RESNET, msgspec.structs.replace(RESNET, layers=(2, 1, 1, 1)))
    unets = (UNET, UNetSettings(channels=(6, 12), features=4))
    classification = kind == "classification"
    return Task(
        name="squares",
        title="Bright squares",
        kind=kind,
        classes=("dark", "bright") if classification else ("square",),
        image=ImageSettings(height=SIDE, width=SIDE),
        training=TrainingSettings(rounds=rounds, steps_per_round=2, batch_size=4, learning_rate=5e-3),
        networks=NetworkSettings(
            small=small if classification else unets[0], large=large if classification else unets[1]
        ),
        fedhelp=FedHelpSettings(),
        traffic=TrafficSettings(form=form, density_up=0.3, density_down=0.5),
        seed=seed,
    )


FROZEN = PretrainedSettings(blocks=3, planes=(8,))
FROZEN_LARGE = PretrainedSettings(blocks=3, planes=(12, 8))


def few_images_task() -> Task:
    """Squares again, by networks that begin with frozen layers."""
    networks = NetworkSettings(small=FROZEN, large=FROZEN_LARGE)
    return msgspec.structs.replace(small_task("classification"), networks=networks)


def squares(num_images: int, kind: Kind, seed: int) -> tuple[Pixels, Truth]:
    """Images [N, H, W, 1]; every second one holds a bright square, which is also its mask."""
    random = np.random.default_rng(seed)
    pixels_NHWC = random.integers(0, 90, (num_images, SIDE, SIDE, 1), dtype=np.uint8)
    masks_NSHW = np.zeros((num_images, 1, SIDE, SIDE), np.uint8)
    for number in range(1, num_images, 2):
        top, left = random.integers(0, SIDE - 8, 2)
        pixels_NHWC[number, top : top + 8, left : left + 8] = 220
        masks_NSHW[number, 0, top : top + 8, left : left + 8] = 1
    labels_N = np.arange(num_images, dtype=np.int64) % 2
    return pixels_NHWC, labels_N if kind == "classification" else masks_NSHW


def small_setup(task: Task, method: Method | None = None) -> Setup:
    """`method` may change the task, and has settings."""
    taught = method is not None and method.taught
    if taught:
        task = msgspec.structs.replace(task, dual_kd=DualKdSettings(teacher=task.small_network, passes=2))
    task = method.change_task(task) if method else task
    sites = tuple(
        _small_site(name, role, num, task, number) for number, (name, (role, num)) in enumerate(SITES.items())
    )
    public = small_public(task, labelled=method is not None and method.labelled)
    centre = small_centre(task, public.images.normalise) if taught else None
    return Setup(task, sites, public, dict(method.settings) if method else {}, centre)


def _small_site(name: str, role: Role, num_images: int, task: Task, seed: int) -> SimulatedSite:
    """Five images more than `num_images` have no truth, but for an upper bound."""
    hidden_pixels, hidden_truth = squares(5, task.kind, 50 + seed)
    own = own_images(*squares(num_images, task.kind, seed), task, name, unlabelled=hidden_pixels)
    return SimulatedSite(name, role, own, torch.from_numpy(hidden_truth))


def small_centre(task: Task, normalise: Normaliser) -> Centre:
    """Eight labelled images, and a teacher that has not learnt from them."""
    network = seeded_network(task.teacher_network, task, 77)
    repository = own_images(*squares(8, task.kind, 88), task, "centre")
    repository = dataclasses.replace(repository, normalise=normalise)
    return Centre(repository, TeacherModel(network, normalise), b"the teacher", Path(tempfile.mkdtemp()))


def small_public(task: Task, *, labelled: bool = False) -> Public:
    """Six images, and a teacher of three classes (or one kind of map) that says something about them."""
    pixels_PHWC, truth = squares(NUM_PUBLIC, task.kind, 99)
    info = ImageSetInfo(name="squares", licence="CC0", shape=(NUM_PUBLIC, SIDE, SIDE, 1))
    artefact = encode_image_set(ImageSet(info, pixels_PHWC))
    sha256 = hashlib.sha256(artefact).hexdigest()
    dense = task.kind == "segmentation"
    shape = (NUM_PUBLIC, 1, SIDE // 2, SIDE // 2) if dense else (NUM_PUBLIC, 3)
    told = TargetsInfo(
        source="foundation", image_set=sha256, model_name="teacher", model_version="1", licence="CC0", bits=8,
        classes=("thing",) if dense else ("x", "y", "z"), height=SIDE // 2 * dense, width=SIDE // 2 * dense,
    )  # fmt: skip
    logits = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    targets = Targets(told, logits)
    images = public_images(pixels_PHWC, sha256, task, targets, None, truth=truth if labelled else None)
    return Public(artefact, images, targets, encode_targets(targets))
