"""What is simulated is what is deployed: in memory and over CURVE ZeroMQ, the same bits."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from ayni.data.masks import load_segmented
from ayni.data.read import load_images
from ayni.learning.networks import weights_of
from ayni.learning.site_data import own_images, public_images
from ayni.site.site import Site
from ayni.task import NetworkSettings, Task, UNetSettings
from ayni.tensors import safe
from ayni.tensors.image_set import decode_image_set
from ayni.tensors.targets import Targets, TargetsInfo, decode_targets, encode_targets
from ayni.trained_model import TrainedModel
from ayni_coordinator.database import transaction
from ayni_coordinator.guiding import add_guidance, publish_guidance
from ayni_coordinator.home import CoordinatorHome, create_home, find_artefact
from ayni_coordinator.simulation.averaging import GlobalModel, digest
from ayni_coordinator.simulation.method import Broadcast, Message, Method, Public, Setup, SimulatedSite
from ayni_coordinator.simulation.methods import ayni_labelled_start_best, fedhelp
from ayni_coordinator.simulation.run import Outcome, chosen_by_holdout, run_rounds
from small_federation import NUM_IMAGES, SITES, XRAYS, Federation, write_xrays

pytestmark = pytest.mark.slow
ROUNDS = 2
# soft labels travel too, first weights are taught, and the large network sees images by its own statistics
FEDHELP = {"consensus_weight": 0.5, "start_steps": 3, "large_normalise": "own"}
LABELS_ALONE = {  # as the method has them, and labels travel besides
    "start_steps": 3,
    "guidance_weight": 0.0,
    "label_weight": 1.0,
    "large_normalise": "own",
    "average": "samples",
    "hospital_takes": "best",
}
UNETS = NetworkSettings(small=UNetSettings(channels=(4, 8)), large=UNetSettings(channels=(6, 12), residual_units=1))


def write_masks(path: Path, start: int) -> None:
    """Dark images with a brighter rectangle each, and where it is."""
    random = np.random.default_rng(start)
    images_NHW = random.integers(0, 90, (NUM_IMAGES // 3, 28, 28), dtype=np.uint8)
    masks_NHW = np.zeros_like(images_NHW)
    for image_HW, mask_HW in zip(images_NHW, masks_NHW, strict=True):
        top, left = random.integers(0, 16, 2)
        mask_HW[top : top + 10, left : left + 12] = 1
        image_HW[mask_HW > 0] += 120
    np.savez(path, train_images=images_NHW, train_masks=masks_NHW)


SEGMENTATION: dict[str, Any] = {"kind": "segmentation", "classes": ("rectangle",), "networks": UNETS}


NUM_TRUE = 16  # of the 24 public images, where they are labelled


def label_public_set(federation: Federation, *, guided: bool) -> None:
    """Set the coordinator up anew, with truth for the first public images: labels, or where they are bright. Where no
    foundation model guides them, clinics take private steps in the place of public ones."""
    home = CoordinatorHome.open(federation.centre)
    task = home.task
    home.engine.dispose()
    shutil.rmtree(federation.centre)
    with np.load(XRAYS) as archive:
        images_NHW, labels_N = archive["val_images"][:24], archive["val_labels"][:NUM_TRUE]
    truth = {"labels": labels_N} if task.kind == "classification" else {"masks": images_NHW[:NUM_TRUE] > 150}
    np.savez(
        federation.folder / "public.npz",
        images=images_NHW[:NUM_TRUE],
        unlabelled_images=images_NHW[NUM_TRUE:],
        **truth,
    )
    training = msgspec.structs.replace(task.training, clinic_steps=0 if guided else 2 * task.training.steps_per_round)
    task = msgspec.structs.replace(task, public_set_labelled=True, training=training)
    create_home(federation.centre, task, endpoint=federation.endpoint, bind=federation.endpoint).engine.dispose()


def public_truth(federation: Federation, task: Task) -> npt.NDArray[Any] | None:
    """Of the first public images, from the file that the coordinator was given."""
    with np.load(federation.folder / "public.npz") as archive:
        if "masks" in archive:
            return np.asarray(archive["masks"][:, None].astype(np.uint8))
        return archive["labels"].reshape(-1).astype(np.int64) if task.public_set_labelled else None


@pytest.mark.parametrize(
    ("changes", "write_data", "labelled", "method"),
    [
        ({"fedhelp": FEDHELP}, write_xrays, False, fedhelp.METHOD),
        ({"fedhelp": LABELS_ALONE}, write_xrays, True, ayni_labelled_start_best.METHOD),
        ({"fedhelp": {**FEDHELP, "label_weight": 0.5}, **SEGMENTATION}, write_masks, True, fedhelp.METHOD),
    ],
    ids=["classification", "public labels and no foundation model", "segmentation with public masks"],
)
def test_a_federation_in_memory_ends_with_the_same_models_as_one_of_processes(
    changes: dict[str, Any], write_data: Callable[[Path, int], None], labelled: bool, method: Method, tmp_path: Path
) -> None:
    guided = method is fedhelp.METHOD
    with Federation(tmp_path, rounds=ROUNDS, write_data=write_data, **changes) as federation:
        if labelled:
            label_public_set(federation, guided=guided)
        guide(federation, guided=guided)
        federation.serve()
        for site in SITES:
            federation.join(site)
        for site, process in [(site, federation.train(site)) for site in SITES]:
            assert process.wait() == 0, federation.log(site)
        over_the_wire = [federation.digest(number) for number in range(1, ROUNDS + 1)]
        setup = same_in_memory(federation)
        in_memory: list[str] = []
        outcomes = run_rounds(noting(in_memory, method), setup, lambda done, num_turns: None)
        assert in_memory == over_the_wire
        for one in setup.sites:
            chosen = chosen_by_holdout(outcomes[one.name].candidates, one, setup)
            assert safe.encode(weights_of(chosen.network)) == federation.model(one.name)
            assert (
                TrainedModel.read(federation.folder / one.name / "models/federated").pixel_mean == chosen.normalise.mean
            )
            check_bytes(federation, setup.task, one.name, outcomes[one.name])


def guide(federation: Federation, *, guided: bool) -> None:
    """What a foundation model of three classes (or of one kind of map) might have said of the public images."""
    home = CoordinatorHome.open(federation.centre)
    if not guided:
        add_guidance(home, lambda what, done, total: None)
        home.engine.dispose()
        return
    dense = home.task.kind == "segmentation"
    with transaction(home.engine) as session:
        row = find_artefact(session, "public-set")
        assert row is not None
        image_set = row.sha256
    images = decode_image_set(home.store.read(image_set))
    info = TargetsInfo(
        source="foundation", image_set=image_set, model_name="teacher", model_version="1", licence="CC0", bits=8,
        classes=("thing",) if dense else ("x", "y", "z"), height=14 * dense, width=14 * dense,
    )  # fmt: skip
    logits = np.random.default_rng(7).normal(size=(len(images.pixels_NHWC), *info.shape)).astype(np.float32)
    publish_guidance(home, images, image_set, encode_targets(Targets(info, logits)), lambda what, done, total: None)
    home.engine.dispose()


def check_bytes(federation: Federation, task: Task, name: str, outcome: Outcome) -> None:
    """What a site's own meter counted, but for questions and the manifest: the artefacts and a little around them.
    A hospital of the product sends soft labels though no clinic learns from them yet: one may join that does."""
    traffic = Site(federation.folder / name).status().traffic
    sent = ("update", "soft-labels") if task.fedhelp.consensus_weight > 0 else ("update",)
    up = sum(traffic.get(kind, (0, 0))[0] for kind in sent)
    down = sum(traffic.get(kind, (0, 0))[1] for kind in ("model", "public-set", "targets"))
    assert outcome.bytes_up <= up <= 1.02 * outcome.bytes_up + 2000, traffic
    assert outcome.bytes_down <= down <= 1.02 * outcome.bytes_down + 4000, traffic


def same_in_memory(federation: Federation) -> Setup:
    home = CoordinatorHome.open(federation.centre)
    with transaction(home.engine) as session:
        row, targets = find_artefact(session, "public-set"), find_artefact(session, "targets", "guidance")
    assert row is not None
    artefact, told, task = bytes(home.store.read(row.sha256)), b"", home.task
    if targets is not None:
        told = bytes(home.store.read(targets.sha256))
    home.engine.dispose()
    pixels_PHWC, guidance = decode_image_set(artefact).pixels_NHWC, decode_targets(told) if told else None
    truth = public_truth(federation, task)
    images = public_images(pixels_PHWC, row.sha256, task, guidance, None, truth=truth)
    public = Public(artefact, images, guidance, told)
    sites = []
    for name, role in SITES.items():
        path = federation.folder / f"{name}.npz"
        if task.kind == "segmentation":
            masks = load_segmented(path, task.image, task.classes)
            own = own_images(masks.pixels_NHWC, masks.masks_NSHW, task, name)
        else:
            labels = load_images(path, task.image, task.classes)
            own = own_images(labels.pixels_NHWC, labels.labels_N, task, name)
        sites.append(SimulatedSite(name, role, own))
    return Setup(task, tuple(sites), public, {})


def noting(digests: list[str], method: Method) -> Method:
    """The method, and the digest of every round's model."""

    def aggregate(
        setup: Setup, state: GlobalModel, messages: Mapping[str, Message], round_number: int
    ) -> tuple[GlobalModel, Broadcast]:
        after, broadcast = fedhelp.aggregate(setup, state, messages, round_number)
        digests.append(digest(after))
        return after, broadcast

    return dataclasses.replace(method, aggregate=aggregate)
