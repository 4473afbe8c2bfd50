"""The demo's data: PneumoniaMNIST dealt out to six unequal sites, as published and split in the FedHelp paper."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ayni.errors import IntegrityError, UserError
from ayni.task import Role
from ayni.task_file import read_task

DATA_FILE = Path(__file__).with_name("pneumoniamnist.npz")
TASK_FILE = Path(__file__).with_name("task.toml")
LICENCE_FILE = Path(__file__).with_name("DATA_LICENSE.md")
DATA_SHA256 = "e1792d3f03751cb101e99f19a63b3c1941436c988665f47853417b05be250cd8"
DATA_CREDIT = (
    "PneumoniaMNIST (MedMNIST v2, Yang et al. 2023, CC BY 4.0), from Kermany et al. 2018: chest X-rays of children, "
    "one hospital, 28 x 28 pixels"
)
# The sites are shares of one collection, not real hospitals: sizes differ as in life, scanners and patients do not.
SHARES: dict[str, tuple[Role, float]] = {
    "hospital-a": ("hospital", 0.60),
    "hospital-b": ("hospital", 0.20),
    "clinic-a": ("clinic", 0.08),
    "clinic-b": ("clinic", 0.06),
    "clinic-c": ("clinic", 0.04),
    "clinic-d": ("clinic", 0.02),
}
NUM_SAMPLES_PER_CLASS = 2

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SampleImage:
    path: Path
    truth: str


@dataclass(frozen=True, slots=True)
class DemoData:
    """Files that the demo's parties are given; `num_train` counts each site's images, the held-out part included."""

    sites: dict[str, Path]
    num_train: dict[str, int]
    public: Path
    test: Path
    num_public: int
    num_test_per_class: dict[str, int]
    samples: list[SampleImage]


def write_example(folder: Path, *, seed: int) -> None:
    """The demo's task and data in a new folder, to start from. Raises UserError if the folder is there."""
    if folder.exists():
        raise UserError(f"{folder} is there already. Choose another name.")
    deal_out(folder, seed=seed, classes=read_task(TASK_FILE).classes)
    shutil.copyfile(TASK_FILE, folder / TASK_FILE.name)
    shutil.copyfile(LICENCE_FILE, folder / LICENCE_FILE.name)


def deal_out(folder: Path, *, seed: int, classes: tuple[str, ...]) -> DemoData:
    """Write one .npz per site, the public set without labels, the official test part and some test images as PNG."""
    if hashlib.sha256(DATA_FILE.read_bytes()).hexdigest() != DATA_SHA256:
        raise IntegrityError(f"{DATA_FILE.name} is damaged. Install Ayni again.")
    with np.load(DATA_FILE, allow_pickle=False) as archive:
        data = {name: archive[name] for name in archive.files}
    folder.mkdir(parents=True)
    order = np.random.default_rng(seed).permutation(len(data["train_images"]))
    bounds = np.rint(np.cumsum([share for _, share in SHARES.values()]) * len(order)).astype(int)
    sites, num_train = {}, {}
    for name, part in zip(SHARES, np.split(order, bounds[:-1]), strict=True):
        sites[name], num_train[name] = folder / f"{name}.npz", len(part)
        np.savez_compressed(
            sites[name], train_images=data["train_images"][part], train_labels=data["train_labels"][part]
        )
    public, test = folder / "public.npz", folder / "test.npz"
    np.savez_compressed(public, images=data["val_images"])
    np.savez_compressed(test, test_images=data["test_images"], test_labels=data["test_labels"])
    labels = data["test_labels"].ravel()
    return DemoData(
        sites=sites,
        num_train=num_train,
        public=public,
        test=test,
        num_public=len(data["val_images"]),
        num_test_per_class={name: int((labels == number).sum()) for number, name in enumerate(classes)},
        samples=_samples(folder / "samples", data["test_images"], labels, classes),
    )


def _samples(
    folder: Path, images: Images, labels: npt.NDArray[np.uint8], classes: tuple[str, ...]
) -> list[SampleImage]:
    """The first test images of each class: not chosen by how well they come out."""
    folder.mkdir()
    samples = []
    for number, truth in enumerate(classes):
        for index in np.flatnonzero(labels == number)[:NUM_SAMPLES_PER_CLASS]:
            path = folder / f"test-{index:04d}.png"
            Image.fromarray(images[index]).save(path)
            samples.append(SampleImage(path, truth))
    return samples
