"""A site's folder with a really trained model in it: a few steps on real chest X-rays, once per test run."""

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
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image

from ayni.keys import CERTIFICATE_FILE, KEY_FOLDER, Certificate, SiteKeys
from ayni.learning.networks import Network, build_network, weights_of
from ayni.site.state import SiteSettings, write_settings
from ayni.task import ImageSettings, ResNetSettings, Task, TrainingSettings
from ayni.tensors import safe
from ayni.trained_model import MODEL_FILE, WEIGHTS_FILE, Scores, TrainedModel

ROOT = Path(__file__).parents[1]
NETWORK = ResNetSettings(layers=(1, 1, 1, 1), planes=(8, 16, 24, 32))
IMAGE = ImageSettings(height=28, width=28)
MEAN, STD = 0.57, 0.17
NUM_STEPS = 40
COORDINATOR = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@functools.cache
def xrays() -> dict[str, Any]:
    """PneumoniaMNIST: uint8 images [N, 28, 28] and labels [N, 1]."""
    with np.load(ROOT / "coordinator/ayni_coordinator/demo/pneumoniamnist.npz") as archive:
        return {name: archive[name] for name in archive.files}


@functools.cache
def trained_home() -> Path:
    """A folder as a site has it that has joined and trained."""
    home = Path(tempfile.mkdtemp(prefix="ayni-home-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    join(home)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads on a busy machine are many times slower than one
    network = _train()
    torch.set_num_threads(num_threads)
    write_model(home / "models" / "federated", trained_model(), weights_of(network))
    return home


def join(
    home: Path,
    site: str = "north-clinic",
    coordinator: Ed25519PrivateKey = COORDINATOR,
    task: str = "pneumonia",
) -> None:
    """What joining leaves behind: keys, the coordinator's certificate for them, settings."""
    key = SiteKeys.load_or_create(home).signing_public
    certificate = Certificate(site=site, role="clinic", task=task, signing_key=key, issued_s=1)
    (home / KEY_FOLDER / CERTIFICATE_FILE).write_bytes(certificate.signed_by(coordinator))
    settings = SiteSettings(
        endpoint="tcp://127.0.0.1:7700",
        coordinator_key=bytes(32),
        coordinator_signing_key=coordinator.public_key().public_bytes_raw(),
        site=site,
        role="clinic",
        task=task,
        participation="weights",
    )
    write_settings(home, settings)


def _train() -> Network:
    data = xrays()
    torch.manual_seed(0)
    network = build_network(NETWORK, IMAGE, 2)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(NUM_STEPS):
        chosen = torch.randint(0, 900, (32,)).numpy()
        loss = torch.nn.functional.cross_entropy(
            network(normalised(data["train_images"][chosen])), torch.from_numpy(data["train_labels"][chosen, 0]).long()
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network


def normalised(pixels_NHW: Any) -> torch.Tensor:
    return (torch.from_numpy(pixels_NHW[:, None].astype(np.float32)) / 255 - MEAN) / STD


def trained_model(**changes: Any) -> TrainedModel:
    model = TrainedModel(
        kind="federated",
        site="north-clinic",
        role="clinic",
        task=Task(
            name="pneumonia",
            title="Pneumonia on chest X-rays of children",
            classes=("normal", "pneumonia"),
            image=IMAGE,
            training=TrainingSettings(rounds=3),
        ),
        network=NETWORK,
        pixel_mean=(MEAN,),
        pixel_std=(STD,),
        temperature=1.25,
        num_train_per_class={"normal": 231, "pneumonia": 669},
        num_holdout_per_class={"normal": 20, "pneumonia": 60},
        validation=Scores(num_images=80, auc=0.97, balanced_accuracy=0.9),
        rounds=3,
        steps=NUM_STEPS,
        chosen="the network after the last round",
        created="2025-11-22T10:00:00Z",
    )
    return msgspec.structs.replace(model, **changes)


def write_model(folder: Path, model: TrainedModel, weights: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(msgspec.json.encode(model))
    (folder / WEIGHTS_FILE).write_bytes(safe.encode(weights))
    return folder


@functools.cache
def exported_bundle() -> Path:
    """A real bundle of that model; tests copy it before they change it."""
    from ayni_export import export_site

    export_site(trained_home(), trained_home() / "bundle")
    return trained_home() / "bundle"


def save_xray(path: Path, index: int, split: str = "test") -> Path:
    Image.fromarray(xrays()[f"{split}_images"][index]).save(path)
    return path
