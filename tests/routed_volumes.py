"""A federation of volumes with really trained experts, once per test run: as `routed_federation`, in 3D.

The `light` site sees a bright ball and a grey bar on a dark ground, the `dark` one the negative; the global model has
learned from both, for less long. `ignorant` has learned nothing. The network sees a part of a volume at once, and its
bundle has no gradient graph.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import nibabel
import numpy as np
import torch

from ayni.learning.batches import Normaliser
from ayni.learning.losses import mask_loss
from ayni.learning.networks import Network, build_network, weights_of
from ayni.learning.statistics import training_statistics
from ayni.task import NetworkSettings, UNetSettings
from ayni.tensors import safe
from ayni.tensors.expert import Expert, ExpertInfo
from ayni_export.routed.pack import export_routed
from ayni_export.routed.source import Federation
from trained_home import COORDINATOR
from trained_volume import (
    IMAGE,
    MEAN,
    STD,
    STRUCTURES,
    Voxels,
    affine_of,
    drawn,
    normalised,
    places_of,
    seen,
    volume_model,
)

NETWORK = UNetSettings(channels=(8, 16), features=8)
PATCHES = msgspec.structs.replace(IMAGE, patch=(12, 16, 16))
NUM_STEPS = {"global": 100, "light": 40, "dark": 40}
NUM_VOLUMES = 16


def seen_by(site: str, num_volumes: int = NUM_VOLUMES, seed: int = 1) -> tuple[Voxels, Voxels]:
    """Volumes [N, 1, D, H, W] and masks [N, 2, D, H, W] as this site has them."""
    volumes, masks = seen(num_volumes, seed)
    negative = np.arange(num_volumes) % 2 == 1 if site == "global" else np.full(num_volumes, site == "dark")
    return np.where(negative[:, None, None, None, None], 255 - volumes, volumes).astype(np.uint8), masks


def save_volumes(folder: Path, site: str, num_volumes: int, seed: int = 50) -> list[Path]:
    """NIfTI files of volumes as that site has them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{site}-{number}.nii.gz" for number in range(num_volumes)]
    shape, affine = affine_of("LPS", (1.0, 1.0, 2.0))
    for number, path in enumerate(paths):
        grey, _ = drawn(places_of(shape, affine), seed + number)
        values = np.clip(600 - grey if site == "dark" else grey, 0, 32000).astype(np.int16)
        nibabel.Nifti1Image(values, affine).to_filename(path)
    return paths


@functools.cache
def networks() -> dict[str, Network]:
    """The global model, what two sites made of it, and one that nobody trained."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = {"global": _trained(build_network(NETWORK, PATCHES, len(STRUCTURES)), "global")}
    for site in ("light", "dark"):
        network = build_network(NETWORK, PATCHES, len(STRUCTURES))
        network.load_state_dict(made["global"].state_dict())
        made[site] = _trained(network, site)
    made["ignorant"] = build_network(NETWORK, PATCHES, len(STRUCTURES)).eval()
    torch.set_num_threads(num_threads)
    return made


def _trained(network: Network, site: str) -> Network:
    volumes, masks = seen_by(site)
    random, optimiser = np.random.default_rng(2), torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(NUM_STEPS[site]):
        chosen = np.arange(step * 4, step * 4 + 4) % NUM_VOLUMES
        corner = [random.integers(0, whole - part + 1) for whole, part in zip(IMAGE.size, PATCHES.seen, strict=True)]
        part = tuple(slice(start, start + side) for start, side in zip(corner, PATCHES.seen, strict=True))
        logits = network(normalised(volumes[chosen][:, :, *part]))
        loss = mask_loss(logits, torch.from_numpy(np.ascontiguousarray(masks[chosen][:, :, *part])))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.eval()


def federation(*sites: str) -> Federation:
    """The global model and these sites' experts, each with the statistics of its site's volumes."""
    reference = networks()["global"]
    digest = safe.digest(weights_of(reference))
    experts = [Expert(_info("global"), weights_of(reference))]
    for site in sites:
        # the one that knows nothing has seen what the light site sees
        volumes = torch.from_numpy(seen_by("light" if site == "ignorant" else site)[0])
        statistics_2F = training_statistics(reference, volumes, Normaliser((MEAN,), (STD,)))
        assert statistics_2F is not None
        told = {"reference_digest": digest, "num_cases": NUM_VOLUMES}
        experts.append(Expert(_info(site, **told), weights_of(networks()[site]), statistics_2F.numpy()))
    task = msgspec.structs.replace(volume_model().task, image=PATCHES, networks=NetworkSettings(small=NETWORK))
    return Federation(task, 3, tuple(experts), COORDINATOR)


def _info(site: str, **told: Any) -> ExpertInfo:
    return ExpertInfo(
        site=site,
        task="solids",
        rounds=3,
        decay=0.1,
        num_train=NUM_VOLUMES,
        pixel_mean=(MEAN,),
        pixel_std=(STD,),
        **told,
    )


@functools.cache
def routed_volumes() -> Path:
    """A real routed bundle of volumes; tests copy it before they change it."""
    folder = Path(tempfile.mkdtemp(prefix="ayni-routed-volumes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    export_routed(federation("light", "dark", "ignorant"), folder / "bundle", most_places=1000)
    return folder / "bundle"
