"""One run from the files on the disk to its rows: every site by its own test images, the same rows again."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ayni.errors import UserError
from ayni.learning.batches import Normaliser
from ayni_coordinator.simulation.experiment import read_experiment
from ayni_coordinator.simulation.jobs import Job, jobs_of
from ayni_coordinator.simulation.method import Candidate
from ayni_coordinator.simulation.results import Row
from ayni_coordinator.simulation.run import Outcome, method_named, rows_of, run_job, set_up

TASK = """
name = "discs"
title = "Discs"
kind = "segmentation"
classes = ["disc"]
[image]
height = 16
width = 16
[training]
rounds = 2
steps_per_round = 2
batch_size = 4
[networks.small]
kind = "unet"
channels = [4, 8]
features = 4
[networks.large]
kind = "unet"
channels = [8, 16]
features = 4
"""
EXPERIMENT = """
methods = ["local", "fedavg", "fedhelp_out_of_domain"]
seeds = [1]
[[tasks]]
task = "discs.toml"
data = "discs"
settings = {{ fedprox = {{ mu = 0.1 }} }}
public = {{ group = "open"{more} }}
[tasks.sites]
centre = {{ role = "hospital", group = "large", train_share = 0.5 }}
village = {{ role = "clinic", group = "small", num_train = {num_train} }}
"""


def write_discs(folder: Path) -> None:
    """Three groups of pictures of 16 x 16 with a bright square, of another size in each group."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rows, random = [["id", "site"]], np.random.default_rng(0)
    for group, side in (("open", 6), ("large", 8), ("small", 4)):
        for number in range(12):
            mask_HW = np.zeros((16, 16), np.uint8)
            top, left = random.integers(0, 16 - side, 2)
            mask_HW[top : top + side, left : left + side] = 1
            Image.fromarray(mask_HW).save(folder / "masks" / f"{group}{number}.png")
            Image.fromarray(mask_HW * 150 + random.integers(0, 80, (16, 16), dtype=np.uint8)).save(
                folder / "images" / f"{group}{number}.png"
            )
            rows.append([f"{group}{number}", group])
    with (folder / "sites.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def jobs(folder: Path, *, num_train: int = 5, more: str = "") -> dict[str, Job]:
    if not (folder / "data").exists():
        write_discs(folder / "data" / "discs")
    (folder / "discs.toml").write_text(TASK)
    (folder / "experiment.toml").write_text(EXPERIMENT.format(num_train=num_train, more=more))
    experiment = read_experiment(folder / "experiment.toml")
    return {job.method: job for job in jobs_of(experiment, folder / "data")}


def run(job: Job) -> list[Row]:
    return run_job(job, lambda done, num_turns: None)


def test_a_run_gives_one_row_per_site_and_the_same_again(tmp_path: Path) -> None:
    job = jobs(tmp_path)["fedavg"]
    rows = run(job)
    assert [(row.site, row.role, row.num_train) for row in rows] == [
        ("centre", "hospital", 6),
        ("village", "clinic", 5),
    ]
    assert all(set(row.metrics) == {"dice", "hd95"} and row.rounds == 2 and row.seconds > 0 for row in rows)
    assert all(row.bytes_up > 0 and row.bytes_down > 0 for row in rows)
    again = run(job)
    assert [msgspec.structs.replace(row, seconds=0.0) for row in again] == [
        msgspec.structs.replace(row, seconds=0.0) for row in rows
    ]


def test_a_site_alone_moves_nothing(tmp_path: Path) -> None:
    assert [(row.bytes_up, row.bytes_down) for row in run(jobs(tmp_path)["local"])] == [(0, 0), (0, 0)]


class EverythingInside(nn.Module):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.ones(len(x_BCHW), 1, *x_BCHW.shape[2:])


def test_every_site_is_measured_on_its_own_test_images(tmp_path: Path) -> None:
    # public code evaluates every site on the last site's data
    job = jobs(tmp_path)["local"]
    setup, dealt = set_up(job, method_named("local"))
    everything = [Candidate(EverythingInside(), Normaliser((0.0,), (1.0,)))]
    rows = rows_of(job, setup, dealt, {site.name: Outcome(candidates=everything) for site in setup.sites})
    centre, village = (row.metrics["dice"] for row in rows)  # squares of 8 x 8, and of 4 x 4, in 16 x 16
    assert centre == pytest.approx(2 * 64 / (256 + 64), abs=1e-6)
    assert village == pytest.approx(2 * 16 / (256 + 16), abs=1e-6)


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ("local", {"num_train": 12}, "0 to be tested on"),
        ("fedhelp_out_of_domain", {}, "out_of_domain"),
        ("fedhelp_out_of_domain", {"more": ', out_of_domain = "nothing"'}, "nothing"),
    ],
)
def test_what_cannot_be_dealt_out_is_said(
    method: str, change: dict[str, str | int], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        run(jobs(tmp_path, **change)[method])  # type: ignore[arg-type]


def test_a_setting_that_a_method_does_not_have_is_refused(tmp_path: Path) -> None:
    job = jobs(tmp_path)["local"]
    entry = msgspec.structs.replace(job.entry, settings={"local": {"mu": 1.0}})
    with pytest.raises(UserError, match="no setting 'mu'"):
        run(msgspec.structs.replace(job, entry=entry))
