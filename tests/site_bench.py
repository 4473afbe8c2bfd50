"""A site's folder and one round's artefacts as real files, for tests of what the training process makes of them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np

from ayni.jobs import Done, Event, Failed, Job, Progress, SiteContext, TrainRound
from ayni.learning.networks import initial_weights
from ayni.learning.state import TrainingFolder, read_state
from ayni.learning.worker import answer_line
from ayni.task import GuidanceSettings, ImageSettings, NetworkSettings, ResNetSettings, Role, Task, TrainingSettings
from ayni.tensors import safe
from ayni.tensors.image_set import ImageSet, ImageSetInfo, encode_image_set
from ayni.tensors.safe import Floats
from ayni.tensors.targets import Targets, TargetsInfo, encode_targets
from ayni.tensors.update import encode_whole

DEMO = Path(__file__).parents[1] / "coordinator/ayni_coordinator/demo/pneumoniamnist.npz"
TINY = ResNetSettings(layers=(1, 1, 1, 1), planes=(4, 4, 8, 8), stem_stride=2)
TASK = Task(
    name="tiny",
    title="Tiny",
    classes=("normal", "pneumonia"),
    image=ImageSettings(height=28, width=28),
    training=TrainingSettings(rounds=3, steps_per_round=4, batch_size=8),
    networks=NetworkSettings(small=TINY, large=msgspec.structs.replace(TINY, layers=(2, 1, 1, 1))),
    guidance=GuidanceSettings(source="onnx"),
)
NUM_PUBLIC = 20


def replace(task: Task, **changes: object) -> Task:
    return msgspec.structs.replace(task, **changes)


class Bench:
    """A site's folder and the artefacts that a coordinator would have sent, all as real files."""

    def __init__(self, folder: Path, task: Task = TASK) -> None:
        self.folder, self.task = folder, task
        folder.mkdir(parents=True, exist_ok=True)
        with np.load(DEMO) as demo:
            train, labels, public = demo["train_images"], demo["train_labels"], demo["val_images"]
        np.savez(folder / "data.npz", images=train[:60], labels=labels[:60])
        pixels_NHWC = public[:NUM_PUBLIC, :, :, None]
        info = ImageSetInfo(name="public", licence="CC-BY-4.0", shape=pixels_NHWC.shape)
        data = encode_image_set(ImageSet(info, pixels_NHWC))
        self.public, self.public_sha256 = self.write("public", data), hashlib.sha256(data).hexdigest()
        self.guidance = self.targets("guidance", ("cat", "dog", "fox"))
        self.write("task.json", task.to_json())
        self.start = initial_weights(task)
        self.whole = self.write("global", encode_whole(self.start, "fp16"))

    def write(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return str(self.folder / name)

    def targets(self, name: str, classes: tuple[str, ...]) -> str:
        logits_NC = np.random.default_rng(1).normal(size=(NUM_PUBLIC, len(classes))).astype(np.float32)
        info = TargetsInfo(
            source="foundation",
            image_set=self.public_sha256,
            model_name=name,
            model_version="1",
            licence="",
            classes=classes,
            bits=16,
        )
        return self.write(name, encode_targets(Targets(info, logits_NC)))

    def context(self, home: str, role: Role = "clinic") -> SiteContext:
        return SiteContext(
            home=str(self.folder / home),
            task_path=str(self.folder / "task.json"),
            site="clinic-x",
            role=role,
            participation="weights",
            data=str(self.folder / "data.npz"),
        )

    def round(self, home: str, number: int = 1, role: Role = "clinic", **changes: object) -> TrainRound:
        job = TrainRound(
            context=self.context(home, role),
            round_number=number,
            global_model=[self.whole],
            global_digest=safe.digest(self.start),
            public_set=self.public,
            guidance=self.guidance if role == "clinic" else None,
            consensus=None,
            update_out=str(self.folder / home / f"update-{number}"),
            soft_labels_out=None,
        )
        return msgspec.structs.replace(job, **changes)


def events_of(job: Job) -> list[Event]:
    events: list[Event] = []
    answer_line(msgspec.json.encode(job), events.append)
    return events


def done(job: Job) -> Done:
    last = events_of(job)[-1]
    assert isinstance(last, Done), last
    return last


def failed(job: Job) -> Failed:
    last = events_of(job)[-1]
    assert isinstance(last, Failed), last
    return last


def update(bench: Bench, home: str, number: int = 1) -> bytes:
    return (bench.folder / home / f"update-{number}").read_bytes()


def part_of(bench: Bench, home: str, number: int, part: str = "small.") -> dict[str, Floats]:
    state = read_state(TrainingFolder(bench.folder / home).state_after(number))
    assert state
    return {
        name.removeprefix(part): np.asarray(state.tensors[name], np.float32)
        for name in state.tensors
        if name.startswith(part)
    }


def kill_in_the_middle(job: TrainRound) -> None:
    """Train in a process of its own, with a checkpoint after every step, and kill -9 after a few."""
    code = "from ayni.learning import steps, worker; steps.CHECKPOINT_EVERY_S = 0.0; worker.main()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write(msgspec.json.encode(job) + b"\n")
        worker.stdin.flush()
        for line in worker.stdout:
            event = msgspec.json.decode(line, type=Event)
            assert isinstance(event, Progress), event
            if event.step > 5:
                os.kill(worker.pid, signal.SIGKILL)
                break
