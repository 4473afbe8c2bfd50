"""The ten lines of the README: a clinic joins, trains and exports, with a real coordinator on the other side."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ayni.task import ImageSettings, NetworkSettings, ResNetSettings, Task, TrainingSettings
from ayni_coordinator.by_hand import new_invitation
from ayni_coordinator.home import create_home
from ayni_export.diagnose import Diagnosis, diagnose

EXAMPLE = Path(__file__).parent.parent / "examples/pneumonia/clinic.py"
SMALL = ResNetSettings(layers=(1, 1, 1, 1), planes=(8, 8, 8, 8))
TASK = Task(
    name="example",
    title="Bright against dark squares",
    classes=("dark", "bright"),
    image=ImageSettings(height=28, width=28),
    networks=NetworkSettings(small=SMALL, large=SMALL),
    training=TrainingSettings(rounds=2, steps_per_round=3, batch_size=8),
)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_the_example_joins_trains_and_exports_a_bundle_that_diagnoses(tmp_path: Path, free_port: int) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port}"
    create_home(tmp_path / "centre", TASK, endpoint=endpoint, bind=endpoint)
    invitation = new_invitation(tmp_path / "centre", "clinic-north", "clinic", 3600).to_string()
    labels_N = np.arange(40) % 2
    images_NHW = (np.random.default_rng(0).integers(0, 80, (40, 28, 28)) + 150 * labels_N[:, None, None]).astype(
        np.uint8
    )
    np.savez(tmp_path / "images.npz", train_images=images_NHW, train_labels=labels_N)
    np.save(tmp_path / "patient.npy", images_NHW[0])
    serve = subprocess.Popen([sys.executable, "-m", "ayni.cli", "coordinator", "serve", tmp_path / "centre"])
    timer = threading.Timer(300, serve.kill)
    timer.start()
    try:
        given = [invitation, tmp_path / "clinic", tmp_path / "images.npz", tmp_path / "bundle"]
        done = subprocess.run(
            [sys.executable, EXAMPLE, *map(str, given)], capture_output=True, text=True, timeout=300, check=False
        )
    finally:
        serve.terminate()
        serve.wait()
        timer.cancel()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("clinic-north: held-out AUC ")
    (answer,) = diagnose(tmp_path / "bundle", [tmp_path / "patient.npy"])
    assert isinstance(answer, Diagnosis)
    assert answer.classes == ("dark", "bright")
    settings = msgspec.json.decode((tmp_path / "clinic" / "site.json").read_bytes())
    assert settings["data"] == str(tmp_path / "images.npz")
