"""A site's folder with a really trained U-Net in it: a few steps on drawn discs and bars, once per test run."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ayni.keys import SiteKeys
from ayni.learning.losses import mask_loss
from ayni.learning.networks import Network, build_network, weights_of
from ayni.task import ImageSettings, Task, TrainingSettings, UNetSettings
from ayni.trained_model import Scores, TrainedModel
from ayni_export.export import export_site
from trained_home import join, trained_model, write_model

NETWORK = UNetSettings(channels=(8, 16, 16), features=8)
IMAGE = ImageSettings(height=32, width=48)  # height and width cannot be mixed up
STRUCTURES = ("disc", "bar")
MEAN, STD, TEMPERATURE = 0.3, 0.25, 1.5
NUM_STEPS = 100
Pixels = npt.NDArray[np.uint8]


def drawn(num_images: int, seed: int) -> tuple[Pixels, Pixels]:
    """Noisy images [N, 32, 48] of a bright disc and a grey upright bar, and their masks [N, 2, 32, 48]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :48]
    images, masks = [], []
    for _ in range(num_images):
        cy, cx, radius, left = random.uniform((8, 8, 4, 28), (24, 20, 8, 40))
        disc, bar = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2, (x >= left) & (x < left + 5) & (y > 4) & (y < 28)
        image = 40 + 160 * disc + 80 * bar + random.normal(0, 15, (32, 48))
        images.append(np.clip(image, 0, 255).astype(np.uint8))
        masks.append(np.stack([disc, bar]).astype(np.uint8))
    return np.stack(images), np.stack(masks)


def normalised(pixels_NHW: Pixels) -> torch.Tensor:
    return (torch.from_numpy(pixels_NHW[:, None].astype(np.float32)) / 255 - MEAN) / STD


def outlining_model(**changes: Any) -> TrainedModel:
    task = Task(
        name="shapes",
        title="Discs and bars",
        kind="segmentation",
        classes=STRUCTURES,
        image=IMAGE,
        training=TrainingSettings(rounds=3),
    )
    settings: dict[str, Any] = {
        "task": task,
        "network": NETWORK,
        "pixel_mean": (MEAN,),
        "pixel_std": (STD,),
        "temperature": TEMPERATURE,
        "num_train_per_class": {"disc": 64, "bar": 60},
        "num_holdout_per_class": {"disc": 24, "bar": 23},
        "validation": Scores(num_images=24, dice=0.912, hd95=1.5),
    }
    return trained_model(**{**settings, **changes})


@functools.cache
def unet_home() -> Path:
    """A folder as a site has it that has joined and trained."""
    home = Path(tempfile.mkdtemp(prefix="ayni-unet-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    join(home, task="shapes")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network = _train()
    torch.set_num_threads(num_threads)
    write_model(home / "models" / "federated", outlining_model(), weights_of(network))
    return home


def _train() -> Network:
    images, masks = drawn(64, seed=1)
    torch.manual_seed(0)
    network = build_network(NETWORK, IMAGE, len(STRUCTURES))
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(NUM_STEPS):
        chosen = np.arange(step * 8, step * 8 + 8) % len(images)
        loss = mask_loss(network(normalised(images[chosen])), torch.from_numpy(masks[chosen]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network


@functools.cache
def outlining_bundle() -> Path:
    """A real bundle of that model; tests copy it before they change it."""
    export_site(unet_home(), unet_home() / "bundle")
    return unet_home() / "bundle"


def signing_key() -> Any:
    return SiteKeys.load(unet_home()).signing


def save_drawn(path: Path, seed: int) -> Path:
    Image.fromarray(drawn(1, seed)[0][0]).save(path)
    return path
