"""A site's folder with a really trained 3D U-Net in it: a few steps on drawn balls and bars, once per test run.

What is drawn is said in mm of the patient (right, front, head), so that any file's own voxels can be drawn, and what
the model outlines in them can be compared with the truth, however the file is turned.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import torch

from ayni.keys import SiteKeys
from ayni.learning.losses import mask_loss
from ayni.learning.networks import Network, build_network, weights_of
from ayni.task import ImageSettings, Task, TrainingSettings, UNetSettings
from ayni.trained_model import Scores, TrainedModel
from ayni_export.export import export_site
from trained_home import join, trained_model, write_model

NETWORK = UNetSettings(channels=(8, 16), features=8)
IMAGE = ImageSettings(depth=16, height=24, width=20, spacing_mm=(2.0, 1.0, 1.0))  # no two sides are alike
BOX_MM = (20.0, 24.0, 32.0)  # right, front, head: what is drawn lies in it
STRUCTURES = ("ball", "bar")
MEAN, STD, TEMPERATURE = 0.3, 0.25, 1.5
NUM_STEPS = 80
Voxels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def drawn(places_mm: Floats, seed: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """At these places [..., 3]: grey values, with noise, and whether each is in the ball and in the bar [2, ...].

    The ball is bright and in the front half, the bar is grey, behind it and upright.
    """
    random = np.random.default_rng(seed)
    middle, radius = random.uniform((7, 14, 10), (13, 17, 22)), random.uniform(4, 6)
    corner = random.uniform((3, 1, 4), (12, 3, 14))
    x, y, z = np.moveaxis(places_mm, -1, 0)
    ball = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - middle[2]) ** 2 <= radius**2
    far = corner + np.array((5, 6, 14))
    bar = (x > corner[0]) & (x < far[0]) & (y > corner[1]) & (y < far[1]) & (z > corner[2]) & (z < far[2])
    grey = 100 + 400 * ball + 200 * bar + random.normal(0, 20, ball.shape)
    return grey, np.stack([ball, bar])


def places_of(shape: Sequence[int], affine: Floats) -> Floats:
    """[X, Y, Z, 3]: where the middles of a file's voxels lie, in mm."""
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


def affine_of(letters: str, steps_mm: Sequence[float]) -> tuple[tuple[int, ...], Floats]:
    """Shape and affine of a file that holds the box, its axes running to the `letters` (R or L, A or P, S or I)."""
    shape, affine = [], np.eye(4)
    for number, (letter, step) in enumerate(zip(letters, steps_mm, strict=True)):
        axis, way = "RLAPSI".index(letter) // 2, (1 if letter in "RAS" else -1)
        shape.append(round(BOX_MM[axis] / step))
        affine[:3, number] = 0
        affine[axis, number] = way * step
        affine[axis, 3] = step / 2 if way > 0 else BOX_MM[axis] - step / 2
    return tuple(shape), affine


def save_drawn(path: Path, seed: int, letters: str = "RAS", steps_mm: Sequence[float] = (1.0, 1.0, 2.0)) -> Path:
    """As a NIfTI file of 16 bits."""
    shape, affine = affine_of(letters, steps_mm)
    grey, _ = drawn(places_of(shape, affine), seed)
    image = nibabel.Nifti1Image(np.clip(grey, 0, 32000).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


def seen(num_volumes: int, seed: int) -> tuple[Voxels, Voxels]:
    """What a network is taught: volumes [N, 1, D, H, W] and masks [N, 2, D, H, W]."""
    shape, affine = affine_of("RAS", (1.0, 1.0, 2.0))
    pairs = [drawn(places_of(shape, affine), seed * 1000 + number) for number in range(num_volumes)]
    greys, masks = zip(*pairs, strict=True)
    low, high = zip(*(np.percentile(grey, (0.5, 99.5)) for grey in greys), strict=True)
    scaled = [np.clip((grey - a) / (b - a), 0, 1) * 255 for grey, a, b in zip(greys, low, high, strict=True)]
    return np.stack(scaled).astype(np.uint8).transpose(0, 3, 2, 1)[:, None], np.stack(masks).astype(np.uint8).transpose(
        0, 1, 4, 3, 2
    )


def normalised(pixels_NKDHW: Voxels) -> torch.Tensor:
    return (torch.from_numpy(np.ascontiguousarray(pixels_NKDHW)).float() / 255 - MEAN) / STD


def volume_model(**changes: Any) -> TrainedModel:
    task = Task(
        name="solids",
        title="Balls and bars",
        kind="segmentation",
        classes=STRUCTURES,
        image=IMAGE,
        training=TrainingSettings(rounds=3),
    )
    each = {"ball": {"dice": 0.93, "hd95": 1.0}, "bar": {"dice": 0.89, "hd95": 2.0}}
    settings: dict[str, Any] = {
        "task": task,
        "network": NETWORK,
        "pixel_mean": (MEAN,),
        "pixel_std": (STD,),
        "temperature": TEMPERATURE,
        "num_train_per_class": {"ball": 16, "bar": 15},
        "num_holdout_per_class": {"ball": 24, "bar": 23},
        "validation": Scores(num_images=24, dice=0.91, hd95=1.5, assd=0.42, unit="mm", structures=each),
    }
    return trained_model(**{**settings, **changes})


@functools.cache
def volume_home() -> Path:
    """A folder as a site has it that has joined and trained."""
    home = Path(tempfile.mkdtemp(prefix="ayni-volume-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    join(home, task="solids")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network = _train()
    torch.set_num_threads(num_threads)
    write_model(home / "models" / "federated", volume_model(), weights_of(network))
    return home


def _train() -> Network:
    images, masks = seen(16, seed=1)
    torch.manual_seed(0)
    network = build_network(NETWORK, IMAGE, len(STRUCTURES))
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(NUM_STEPS):
        chosen = np.arange(step * 4, step * 4 + 4) % len(images)
        loss = mask_loss(network(normalised(images[chosen])), torch.from_numpy(masks[chosen]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network


@functools.cache
def volume_bundle() -> Path:
    """A real bundle of that model; tests copy it before they change it."""
    export_site(volume_home(), volume_home() / "bundle")
    return volume_home() / "bundle"


def signing_key() -> Any:
    return SiteKeys.load(volume_home()).signing
