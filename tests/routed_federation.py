"""Federations with really trained experts: two sites that see the same shapes differently, once per test run.

The `light` site sees bright shapes on a dark ground, the `dark` one the same negative; the global model has learned
from both, for less long. Without statistics there is a third one, `silent`.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image

from ayni.learning.losses import mask_loss
from ayni.learning.networks import Network, build_network, weights_of
from ayni.learning.statistics import gathered, statistics_of
from ayni.task import NetworkSettings
from ayni.tensors import safe
from ayni.tensors.expert import Expert, ExpertInfo
from ayni_export.routed.pack import export_routed
from ayni_export.routed.source import Federation
from trained_home import COORDINATOR
from trained_unet import IMAGE, MEAN, NETWORK, STD, STRUCTURES, Pixels, drawn, normalised, outlining_model

NUM_STEPS = {"global": 120, "light": 60, "dark": 60, "silent": 5}
SITES = ("light", "dark", "silent")


def seen_by(site: str, num_images: int, seed: int) -> tuple[Pixels, Pixels]:
    """Images [N, 32, 48] and masks [N, 2, 32, 48] as this site has them."""
    images, masks = drawn(num_images, seed)
    if site == "dark":
        return (255 - images).astype(np.uint8), masks
    if site == "global":
        images = np.where(np.arange(num_images)[:, None, None] % 2, 255 - images, images).astype(np.uint8)
    return images, masks


@functools.cache
def networks() -> dict[str, Network]:
    """The global model, and what each site made of it."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = {"global": _trained(build_network(NETWORK, IMAGE, len(STRUCTURES)), "global")}
    for site in SITES:
        network = build_network(NETWORK, IMAGE, len(STRUCTURES))
        network.load_state_dict(made["global"].state_dict())
        made[site] = _trained(network, site)
    torch.set_num_threads(num_threads)
    return made


def _trained(network: Network, site: str) -> Network:
    images, masks = seen_by(site, 64, seed=1)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(NUM_STEPS[site]):
        chosen = np.arange(step * 8, step * 8 + 8) % len(images)
        loss = mask_loss(network(normalised(images[chosen])), torch.from_numpy(masks[chosen]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.eval()


@functools.cache
def federation() -> Federation:
    reference = networks()["global"]
    digest = safe.digest(weights_of(reference))
    experts = [Expert(_info("global"), weights_of(reference))]
    for site in SITES:
        with torch.no_grad():
            statistics_2F = gathered(statistics_of(reference, normalised(seen_by(site, 64, seed=1)[0]))).numpy()
        told: dict[str, Any] = {} if site == "silent" else {"reference_digest": digest, "num_cases": 64}
        experts.append(Expert(_info(site, **told), weights_of(networks()[site]), statistics_2F if told else None))
    task = msgspec.structs.replace(outlining_model().task, networks=NetworkSettings(small=NETWORK))
    return Federation(task, 3, tuple(experts), COORDINATOR)


def _info(site: str, **told: Any) -> ExpertInfo:
    return ExpertInfo(
        site=site, task="shapes", rounds=3, decay=0.1, num_train=64, pixel_mean=(MEAN,), pixel_std=(STD,), **told
    )


@functools.cache
def routed_bundle() -> Path:
    """A real routed bundle; tests copy it before they change it."""
    folder = Path(tempfile.mkdtemp(prefix="ayni-routed-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    export_routed(federation(), folder / "bundle")
    return folder / "bundle"


def save_worklist(folder: Path, site: str, num_images: int, seed: int = 9) -> list[Path]:
    """PNG files of images as that site has them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{site}-{number}.png" for number in range(num_images)]
    for path, image in zip(paths, seen_by(site, num_images, seed)[0], strict=True):
        Image.fromarray(image).save(path)
    return paths
