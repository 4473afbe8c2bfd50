"""The public set of a simulation, and what the foundation model answered about it: asked once, kept beside the data."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import msgspec
import numpy as np

from ayni.artefacts.files import write_atomic
from ayni.artefacts.lock import folder_lock
from ayni.errors import UserError
from ayni.learning.batches import Normaliser
from ayni.learning.site_data import public_images
from ayni.task import Task
from ayni.tensors.image_set import ImageSet, ImageSetInfo, encode_image_set
from ayni.tensors.targets import decode_targets
from ayni_coordinator.guidance.ask import guide
from ayni_coordinator.simulation.collection import Collection, Pixels, PublicPlan, public_indices
from ayni_coordinator.simulation.loading import load_collection
from ayni_coordinator.simulation.method import Method, Public

PATIENCE_S = 1800.0  # another run may be asking about the same images


def load_public(collection: Collection, plan: PublicPlan, task: Task, data: Path, method: Method) -> Public:
    """Normalised as the task's own public images are, whichever are wanted: an ablation changes one thing.

    Raises UserError if the task names no out-of-domain set and one is wanted.
    """
    if method.labelled and method.public != "in-domain":
        raise ValueError("truth is known of the task's own public images alone")
    mine = public_indices(collection, plan)
    own_PHWK, truth = collection.pixels_NHWK[mine], collection.truth[mine] if method.labelled else None
    if method.public == "in-domain":
        name, pixels_PHWK = task.name, own_PHWK
    else:
        if not plan.out_of_domain:
            raise UserError(f"{task.name}: name another data set as public.out_of_domain in the experiment.")
        name, pixels_PHWK = plan.out_of_domain, _foreign(data, plan, task, len(own_PHWK))
    info = ImageSetInfo(name=name, licence=plan.licence, shape=pixels_PHWK.shape)
    images = ImageSet(info, pixels_PHWK)
    artefact = encode_image_set(images)
    sha256 = hashlib.sha256(artefact).hexdigest()
    answered = _answers(images, sha256, task, data) if method.guided and task.guidance.source != "none" else b""
    guidance = decode_targets(answered) if answered else None
    public = public_images(pixels_PHWK, sha256, task, guidance, None, truth=truth)
    public = dataclasses.replace(public, normalise=Normaliser.of(own_PHWK))
    return Public(artefact, public, guidance, answered)


def _foreign(data: Path, plan: PublicPlan, task: Task, wanted: int) -> Pixels:
    """As many images of another data set as there are, the first ones; its truth is not looked at."""
    bare = msgspec.structs.replace(task, kind="segmentation", classes=("anything",), networks=type(task.networks)())
    folder = data / plan.out_of_domain
    if folder.is_dir() and not (folder / "masks").is_dir():
        raise UserError(f"{plan.out_of_domain} has no masks folder; as an out-of-domain set take one that has.")
    found = load_collection(data, plan.out_of_domain, task if not folder.is_dir() else bare)
    mine = [i for i, group in enumerate(found.group_N) if plan.out_of_domain_group in ("", group)]
    if not mine:
        raise UserError(f"{plan.out_of_domain} has no group {plan.out_of_domain_group!r} (out_of_domain_group).")
    chosen: Pixels = found.pixels_NHWK[np.array(mine[:wanted], np.int64)]
    return chosen


def _answers(images: ImageSet, sha256: str, task: Task, data: Path) -> bytes:
    """Encoded targets; every image is asked about once, whatever the number of runs."""
    settings = hashlib.sha256(msgspec.json.encode(task.guidance)).hexdigest()
    home = data / ".guidance"
    kept = home / f"{sha256[:16]}-{settings[:16]}.safetensors"
    if not kept.exists():
        home.mkdir(parents=True, exist_ok=True)
        with folder_lock(home, "another run asks the foundation model", patience_s=PATIENCE_S):
            if not kept.exists():
                write_atomic(kept, guide(task, images, sha256, home, lambda done, total: None))
    return kept.read_bytes()
