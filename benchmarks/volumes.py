"""What volumes cost: memory of training a student, time and memory of diagnosing one volume.

    python -m benchmarks.volumes            # a minute; --json

Volumes and networks are those of examples/hippocampus/task.toml (48 x 64 x 48 voxels); weights and voxels are random:
what they cost does not depend on what they know. Each figure is of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ayni.task import Task
from ayni.task_file import read_task

ROOT = Path(__file__).parent.parent
TASK = ROOT / "examples" / "hippocampus" / "task.toml"
NUM_STEPS = 5


def train(batch_size: int) -> None:
    """In this process: some steps of a student, then what it took."""
    import torch

    from ayni.learning.dual_kd import Student, TeacherModel
    from ayni.learning.networks import seeded_network
    from ayni.learning.site_data import own_images
    from ayni.learning.steps import peak_rss_mb

    torch.set_num_threads(1)
    task = read_task(TASK, [f"training.batch_size={batch_size}"])
    random, size = np.random.default_rng(0), task.image.size
    pixels = random.integers(0, 255, (24, *size, 1), dtype=np.uint8)
    masks = random.integers(0, 2, (8, len(task.classes), *size)).astype(np.uint8)
    own = own_images(pixels[:8], masks, task, "site", unlabelled=pixels[8:])
    teacher = TeacherModel(seeded_network(task.teacher_network, task, 1), own.normalise)
    student = Student(own, teacher, task, "site")
    began_s = time.process_time()
    for number in range(NUM_STEPS):
        student.step(number)
    print(json.dumps({"mb": peak_rss_mb(), "step_s": (time.process_time() - began_s) / NUM_STEPS}))


def make_bundle(folder: Path) -> Path:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ayni.learning.networks import seeded_network, weights_of
    from ayni.tensors import safe
    from ayni.trained_model import MODEL_FILE, WEIGHTS_FILE
    from ayni_export.export import export_model

    task = read_task(TASK)
    model = folder / "model"
    model.mkdir()
    (model / WEIGHTS_FILE).write_bytes(safe.encode(weights_of(seeded_network(task.small_network, task, 1))))
    (model / MODEL_FILE).write_bytes(msgspec.json.encode(_trained(task)))
    export_model(model, folder / "bundle", signing_key=Ed25519PrivateKey.generate())
    return folder / "bundle"


def _trained(task: Task) -> Any:
    from ayni.trained_model import Scores, TrainedModel

    return TrainedModel(
        kind="federated", site="site", role="clinic", task=task, network=task.small_network, pixel_mean=(0.25,),
        pixel_std=(0.3,), temperature=1.0, num_train_per_class={}, num_holdout_per_class={},
        validation=Scores(num_images=0, dice=0.0), rounds=1, steps=1, chosen="random weights",
        created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def make_volume(path: Path) -> Path:
    import nibabel

    values = np.random.default_rng(1).integers(0, 900, (36, 50, 36)).astype(np.int16)
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(path)
    return path


PROBE = """
import resource, subprocess, sys, time
began_s = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
"""


def measured(command: list[str]) -> tuple[float, int]:
    """Wall seconds and the most memory (MB) of one process; a process between counts no other child."""
    wall_s, mb = output_of([sys.executable, "-c", PROBE, *command]).split()
    return float(wall_s), int(mb)


def output_of(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--train", type=int, metavar="BATCH", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train)
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume = make_volume(folder / "brain.nii.gz")
        make_bundle(folder)
        command = [sys.executable, "-m", "ayni.cli", "diagnose", str(folder / "bundle"), str(volume)]
        wall_s, mb = measured([*command, "--out", str(folder / "report")])
        figures["diagnosis of one volume"] = {"wall_s": round(wall_s, 2), "mb": mb}
    for batch_size in (2, 8):
        told = json.loads(output_of([sys.executable, "-m", "benchmarks.volumes", "--train", str(batch_size)]))
        figures[f"training, batches of {batch_size} + {batch_size}"] = {
            "step_s": round(told["step_s"], 2),
            "mb": told["mb"],
        }
    if arguments.json:
        print(json.dumps(figures))
        return
    for what, values in figures.items():
        print(f"{what}: " + ", ".join(f"{name} {value}" for name, value in values.items()))


if __name__ == "__main__":
    main()
