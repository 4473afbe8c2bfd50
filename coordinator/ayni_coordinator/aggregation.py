"""From the answers of one round to the next model: a pure function of an ordered list of artefact hashes.

One update is in memory at a time, and the next one on its way in, so memory does not grow with the number of sites;
the same list gives the same bits, so a coordinator that died in the middle simply computes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import numpy as np

from ayni.errors import IntegrityError
from ayni.task import Task
from ayni.tensors import safe
from ayni.tensors.safe import Bytes, Floats
from ayni.tensors.targets import Targets, TargetsInfo, decode_targets, encode_targets
from ayni.tensors.update import Shapes, decode_change, decode_update, encode_change, encode_whole

Sums = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Read = Callable[[str], Bytes]  # SHA-256 -> verified bytes
POWERS = {"plain": 0, "root": 0.5, "samples": 1}  # of a site's number of images: what it counts in the mean


class SiteInput(msgspec.Struct, frozen=True, kw_only=True):
    """One site's answer: hashes in hex, or empty."""

    site: str
    update: str
    soft_labels: str
    num_examples: int


class RoundInputs(msgspec.Struct, frozen=True, kw_only=True):
    """All that the result depends on. `sites` are in the order of their names."""

    round_number: int
    global_sha256: str
    residual_sha256: str
    image_set: str
    sites: tuple[SiteInput, ...]


@dataclass(frozen=True, slots=True)
class RoundResult:
    """`published` is what the sites get (`name` "whole" or "change"); `digest` is that of the model they then have."""

    whole: Bytes
    residual: bytes
    published: bytes
    name: str
    digest: str
    consensus: bytes | None


def aggregate(inputs: RoundInputs, task: Task, read: Read) -> RoundResult:
    """Mean of the clinics' models and the hospitals' proxies (FedHelp, section "Coordinator"), and the consensus.

    Raises IntegrityError if an artefact is missing or does not fit the task's network.
    """
    answers = [answer for answer in inputs.sites if answer.update]
    consensus = _consensus(inputs, task, read)
    if answers and task.traffic.form != "sparse":
        return _whole(_mean(answers, task, read, None), task, consensus)
    model = _floats(read(inputs.global_sha256))
    residual = _floats(read(inputs.residual_sha256)) if inputs.residual_sha256 else None
    if not answers:
        nothing = {name: np.zeros_like(tensor) for name, tensor in model.items()} if residual is None else residual
        data = read(inputs.global_sha256)
        return RoundResult(data, safe.encode(nothing), b"", "", safe.digest(model), consensus)
    mean = _mean(answers, task, read, model)
    change = {name: mean[name] - model[name] + (residual[name] if residual else 0) for name in model}
    published, seen = encode_change(change, density=task.traffic.density_down)
    after = {name: model[name] + seen[name] for name in model}
    left_out = {name: change[name] - seen[name] for name in model}
    return RoundResult(
        encode_whole(after, "fp32"), safe.encode(left_out), published, "change", safe.digest(after), consensus
    )


def _whole(mean: dict[str, Floats], task: Task, consensus: bytes | None) -> RoundResult:
    """In fp32 what is published is the model itself; in fp16 the sites hold the rounded one, so we do too."""
    published = encode_whole(mean, task.traffic.form)
    after = mean if task.traffic.form == "fp32" else _floats(published)
    whole = published if task.traffic.form == "fp32" else encode_whole(after, "fp32")
    return RoundResult(whole, b"", published, "whole", safe.digest(after), consensus)


def _floats(data: Bytes) -> dict[str, Floats]:
    return {name: np.asarray(tensor, np.float32) for name, tensor in safe.decode(data).items()}


def _mean(answers: Sequence[SiteInput], task: Task, read: Read, model: dict[str, Floats] | None) -> dict[str, Floats]:
    """`model` is what the updates change, or None if they are whole; then the first says how the network looks."""
    shapes: Shapes = {}
    sums: dict[str, Sums] = {}
    total = 0.0
    for answer, data in zip(answers, _one_ahead([answer.update for answer in answers], read), strict=True):
        if not shapes:
            shapes = {name: tuple(tensor.shape) for name, tensor in (model or safe.decode(data)).items()}
            sums = {name: np.zeros(shape, np.float64) for name, shape in shapes.items()}
        weight = answer.num_examples ** POWERS[task.fedhelp.average]
        update = decode_update(data, shapes, model)
        for name, tensor in update.items():
            sums[name] += tensor if weight == 1 else np.multiply(tensor, weight, dtype=np.float64)
        total += weight
        del update, data
    return {name: (sums.pop(name) / total).astype(np.float32) for name in shapes}


def _one_ahead(hashes: Sequence[str], read: Read) -> Iterator[Bytes]:
    """What `read` gives for each hash; the next is read and hashed while the last is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="ayni-read") as reader:
        coming = None
        for sha256 in [*hashes, None]:
            following = reader.submit(read, sha256) if sha256 else None
            if coming:
                yield coming.result()
            coming = following


def _consensus(inputs: RoundInputs, task: Task, read: Read) -> bytes | None:
    """Mean of the hospitals' probabilities on the public set, as logits. None for fewer than the minimum cohort."""
    hashes = [answer.soft_labels for answer in inputs.sites if answer.soft_labels]
    if len(hashes) < task.round.min_cohort:
        return None
    answers = (decode_targets(read(sha256)) for sha256 in hashes)
    return encode_targets(consensus_of(answers, len(hashes), inputs.image_set, inputs.round_number, task))


def consensus_of(
    answers: Iterable[Targets], num_answers: int, image_set: str, round_number: int, task: Task
) -> Targets:
    """The mean of the probabilities, as logits; of a segmentation each pixel's. One answer is in memory at a time."""
    total: Sums | None = None
    info = None
    for answer in answers:
        one = _sigmoid(answer.logits_NC) if answer.info.height else _softmax(answer.logits_NC)
        total, info = one if total is None else total + one, answer.info
    assert total is not None
    assert info is not None
    mean = total / num_answers
    if info.height:
        sure = np.clip(mean, 3e-4, 1 - 3e-4)  # as sure as soft labels are (training.LARGEST_LOG_ODDS)
        logits = np.log(sure) - np.log1p(-sure)
    else:
        logits = np.log(np.clip(mean, 6e-6, 1))
    told = TargetsInfo(
        source="consensus",
        image_set=image_set,
        model_name=f"consensus of {num_answers} hospitals",
        model_version=f"round {round_number}",
        licence="",
        classes=task.classes,
        bits=8,
        height=info.height,
        width=info.width,
        depth=info.depth,
    )
    return Targets(told, logits.astype(np.float32))


def _sigmoid(logits: Floats) -> Sums:
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))


def _softmax(logits_NC: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    shifted_NC = np.exp(logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True))
    result: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = shifted_NC / shifted_NC.sum(axis=1, keepdims=True)
    return result


def check_update(data: Bytes, shapes: Shapes, form: str) -> None:
    """What is averaged later is checked at the door: form, names, shapes, types, size. Raises IntegrityError."""
    found = safe.read_metadata(data).get("form")
    if found != form:
        raise IntegrityError(f"an update of the form {found!r}; this task's is {form!r}")
    if form == "sparse":
        decode_change(data, shapes)
    else:
        decode_update(data, shapes, None)


def check_soft_labels(data: Bytes, task: Task, image_set: str, num_images: int) -> None:
    """Raises IntegrityError if these are not one hospital's answers on our public set."""
    answer = decode_targets(data)
    if answer.info.source != "hospital" or answer.info.image_set != image_set:
        raise IntegrityError("the soft labels are not a hospital's answers on this federation's public set")
    image, info = task.image, answer.info
    sides = (image.depth // 2, image.height // 2, image.width // 2) if task.kind == "segmentation" else (0, 0, 0)
    if (info.depth, info.height, info.width) != sides:
        raise IntegrityError(f"the soft labels are maps of {info.width} x {info.height} x {info.depth}, not {sides}")
    if answer.info.classes != task.classes or len(answer.logits_NC) != num_images:
        raise IntegrityError(f"the soft labels must be {num_images} rows of the classes {', '.join(task.classes)}")
