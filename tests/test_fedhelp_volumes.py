"""FedHelp with volumes: a public set of them, a hospital's soft labels, a consensus, a clinic that learns it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import nibabel
import numpy as np
import pytest

from ayni.errors import DataError, IntegrityError, UserError
from ayni.jobs import TrainRound
from ayni.learning.state import TrainingFolder, read_state
from ayni.task import FedHelpSettings, GuidanceSettings, Role, Task
from ayni.tensors.image_set import decode_image_set, encode_image_set
from ayni.tensors.targets import decode_targets, encode_targets
from ayni_coordinator.aggregation import check_soft_labels, consensus_of
from ayni_coordinator.home import create_home
from ayni_coordinator.public_set import load_public_set
from ayni_coordinator.service import bytes_per_answer
from site_bench import done
from small_volumes import SIZE, boxes, volume_task
from volume_bench import SPACING_XYZ_MM, Place

NUM_PUBLIC = 3
VOXELS_NDHW = boxes(NUM_PUBLIC, 8)[0][..., 0]


def fedhelp_task() -> Task:
    plain = volume_task(dual_kd=None, fedhelp=FedHelpSettings(consensus_weight=1.0))
    return msgspec.structs.replace(plain, training=msgspec.structs.replace(plain.training, steps_per_round=3))


TASK = fedhelp_task()


@dataclass(frozen=True)
class Rounds:
    """One round of a hospital, and what it said of the public volumes."""

    place: Place
    public: str
    sha256: str
    soft_labels: bytes

    def job(self, home: str, role: Role, **changes: Any) -> TrainRound:
        return self.place.round(home, role=role, teacher=None, public_set=self.public, **changes)


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    folder = tmp_path_factory.mktemp("fedhelp")
    np.savez(folder / "public.npz", images=VOXELS_NDHW)
    public = encode_image_set(load_public_set(folder / "public.npz", TASK))
    place = Place(folder, TASK)
    rounds = Rounds(place, place.written("public", public), hashlib.sha256(public).hexdigest(), b"")
    out = folder / "soft-labels"
    done(rounds.job("hospital", "hospital", soft_labels_out=str(out)))
    return Rounds(place, rounds.public, rounds.sha256, out.read_bytes())


def test_a_public_set_of_volumes_comes_from_an_npz_or_from_nifti_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=VOXELS_NDHW)
    (tmp_path / "folder").mkdir()
    for n, voxels_DHW in enumerate(VOXELS_NDHW):
        file = nibabel.Nifti1Image(voxels_DHW.transpose(2, 1, 0), np.diag([*SPACING_XYZ_MM, 1.0]))
        nibabel.save(file, tmp_path / "folder" / f"{n}.nii.gz")
    from_npz, from_folder = (load_public_set(tmp_path / name, TASK) for name in ("set.npz", "folder"))
    assert from_npz.info.shape == from_folder.info.shape == (NUM_PUBLIC, *SIZE, 1)
    assert (from_npz.pixels_NHWC[..., 0] == VOXELS_NDHW).all()
    # files are scaled to their own percentiles; no voxel moves
    assert all(
        np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99
        for one, other in zip(from_npz.pixels_NHWC, from_folder.pixels_NHWC, strict=True)
    )
    back = decode_image_set(encode_image_set(from_npz))
    assert (back.pixels_NHWC == from_npz.pixels_NHWC).all()
    np.savez(tmp_path / "large.npz", images=np.zeros((1, 8, 16, 13), np.uint8))
    with pytest.raises(DataError, match="at least 8 x 16 x 13"):
        load_public_set(tmp_path / "large.npz", TASK)


def test_a_hospital_answers_with_maps_of_half_the_size(rounds: Rounds) -> None:
    answer = decode_targets(rounds.soft_labels)
    assert answer.logits_NC.shape == (NUM_PUBLIC, 2, *(side // 2 for side in SIZE))
    assert len(rounds.soft_labels) < NUM_PUBLIC * bytes_per_answer(TASK) + 2000  # an upload of them is allowed
    check_soft_labels(rounds.soft_labels, TASK, rounds.sha256, NUM_PUBLIC)


def test_soft_labels_of_another_depth_are_refused(rounds: Rounds) -> None:
    answer = decode_targets(rounds.soft_labels)
    fewer = msgspec.structs.replace(answer.info, depth=3)
    cut = encode_targets(type(answer)(fewer, answer.logits_NC[:, :, :3]))
    flat = encode_targets(type(answer)(msgspec.structs.replace(answer.info, depth=0), answer.logits_NC[:, :, 0]))
    for wrong in (cut, flat):
        with pytest.raises(IntegrityError, match="maps of"):
            check_soft_labels(wrong, TASK, rounds.sha256, NUM_PUBLIC)


def test_a_clinic_learns_the_hospitals_consensus(rounds: Rounds) -> None:
    answers = [decode_targets(rounds.soft_labels)] * 2
    consensus = consensus_of(answers, 2, rounds.sha256, 1, TASK)
    np.testing.assert_allclose(consensus.logits_NC, answers[0].logits_NC, atol=1e-4)  # two that agree
    file = rounds.place.written("consensus", encode_targets(consensus))
    done(rounds.job("clinic", "clinic", consensus=file))
    state = read_state(TrainingFolder(rounds.place.folder / "clinic").state_after(1))
    assert state
    assert set(state.info.loss_sums) == {"private", "public"}
    assert rounds.place.update("clinic")


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (msgspec.structs.replace(TASK, guidance=GuidanceSettings(source="lite-medsam")), "not at volumes"),
        (volume_task(guidance=GuidanceSettings(source="lite-medsam")), r"with \[dual_kd\] the centre's teacher"),
    ],
)
def test_a_foundation_model_is_not_asked_about_volumes_nor_beside_a_teacher(
    tmp_path: Path, task: Task, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        create_home(tmp_path / "centre", task, endpoint="tcp://127.0.0.1:7700", bind="")
    assert not (tmp_path / "centre").exists()
