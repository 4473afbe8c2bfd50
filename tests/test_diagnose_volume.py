"""Diagnosis of volumes: windows, the way back to the file's voxels, what is counted, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.inferers import sliding_window_inference
from PIL import Image

from ayni_export.diagnose import FileError, diagnose
from ayni_export.report import entry
from ayni_export.volume_answer import OutlinedVolume
from ayni_export.windows import ask_in_windows, windows_of
from image_files import dicom, save_dicom
from trained_unet import outlining_bundle
from trained_volume import affine_of, drawn, places_of, save_drawn, volume_bundle
from volume_by_hand import SEEN, bright_and_dark


def outlined(path: Path, bundle: Any = None, **options: Any) -> OutlinedVolume:
    (answer,) = diagnose(bundle or volume_bundle(), [path], **options)
    assert isinstance(answer, OutlinedVolume), answer
    return answer


def refused(path: Path, bundle: Any = None) -> str:
    (answer,) = diagnose(bundle or bright_and_dark(), [path])
    assert isinstance(answer, FileError)
    return answer.reason


def mask_of(answer: OutlinedVolume) -> Any:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.mask_file))


def dice(a: Any, b: Any) -> float:
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


def save_bytes(path: Path, voxels_XYZ: Any, affine: Any = None, **fields: Any) -> Path:
    image = nibabel.Nifti1Image(voxels_XYZ, np.eye(4) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


@pytest.mark.parametrize(
    ("size", "seen"),
    [((20, 17, 33), (8, 8, 16)), ((8, 9, 16), (8, 8, 16)), ((21, 12, 9), (7, 5, 9)), ((6, 6, 6), (6, 6, 6))],
)
def test_windows_give_what_monais_sliding_window_gives(size: tuple[int, ...], seen: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    voxels = np.random.default_rng(0).integers(0, 256, (*size, 1), dtype=np.uint8)

    def asked(x_BKDHW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network(x_BKDHW / 255)  # type: ignore[no-any-return]

    def ask(part_dhwK: Any) -> Any:
        return asked(torch.from_numpy(part_dhwK.astype(np.float32)).permute(3, 0, 1, 2)[None])[0].numpy()

    whole = torch.from_numpy(voxels.astype(np.float32)).permute(3, 0, 1, 2)[None]
    expected: Any = sliding_window_inference(whole, seen, 1, asked, overlap=0.5, mode="gaussian")
    np.testing.assert_allclose(ask_in_windows(ask, voxels, seen), expected[0].numpy(), atol=2e-6)


def test_windows_that_are_all_black_are_asked_about_once() -> None:
    voxels, sizes = np.zeros((8, 4, 12, 1), np.uint8), []
    voxels[5, 1, 11] = 7

    def ask(part_dhwK: Any) -> Any:
        sizes.append(part_dhwK.shape)
        return part_dhwK[np.newaxis, ..., 0].astype(np.float32) + 3

    logits_SDHW = ask_in_windows(ask, voxels, (4, 4, 4))
    assert len(windows_of((8, 4, 12), (4, 4, 4))) == 3 * 1 * 5
    assert sizes == [(4, 4, 4, 1)] * 3  # the first black one, and the two in which the grey voxel lies
    np.testing.assert_allclose(logits_SDHW[0], voxels[..., 0] + 3.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("letters", "steps_mm"),
    [("RAS", (1, 1, 2)), ("LPS", (0.8, 1.2, 2)), ("SLA", (1.6, 1, 1)), ("PIR", (1, 2, 1)), ("LIA", (1, 2, 0.75))],
)
def test_however_a_file_is_turned_and_spaced_the_mask_lies_on_what_was_drawn(
    tmp_path: Path, letters: str, steps_mm: tuple[float, ...]
) -> None:
    path = save_drawn(tmp_path / "v.nii.gz", 7, letters, steps_mm)
    answer, source = outlined(path), nibabel.load(path)
    mask = mask_of(answer)
    assert (mask.shape, mask.get_data_dtype()) == (source.shape, np.uint8)
    np.testing.assert_array_equal(mask.affine, source.affine)
    assert mask.header.get_xyzt_units()[0] == "mm"
    _, truth = drawn(places_of(source.shape, source.affine), 7)
    labels = np.asarray(mask.dataobj)
    for number, structure in enumerate(answer.structures):
        assert dice(labels == number + 1, truth[number]) > 0.85
        true_mm3 = np.count_nonzero(truth[number]) * np.prod(steps_mm)
        assert structure.num_voxels * answer.file.voxel_mm3 == pytest.approx(true_mm3, rel=0.15)
    assert answer.file.voxel_mm == pytest.approx(steps_mm)
    assert (answer.num_windows, answer.is_larger) == (1, False)


def test_the_same_volume_gives_the_same_mask_however_it_is_stored(tmp_path: Path) -> None:
    straight = save_drawn(tmp_path / "v.nii.gz", 7)
    source = nibabel.load(straight)
    turned = source.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    turned.to_filename(tmp_path / "turned.nii")
    masks = [nibabel.as_closest_canonical(mask_of(outlined(path))) for path in (straight, tmp_path / "turned.nii")]
    np.testing.assert_array_equal(np.asarray(masks[0].dataobj), np.asarray(masks[1].dataobj))
    np.testing.assert_allclose(masks[0].affine, masks[1].affine)


def test_voxels_are_counted_labelled_and_called_sure_as_worked_out_by_hand(tmp_path: Path) -> None:
    voxels = np.full((8, 6, 4), 110, np.uint8)  # logits -18 / 16 and -10 / 16: neither
    voxels[1:3, 2, 1] = 140  # logit .75: probability .68, bright
    voxels[3, 2, 1] = 170  # logit 2.625: .932, bright and sure
    voxels[5, 5, 0] = 0  # logit 6.25 of dark/er
    path = save_bytes(tmp_path / "v.nii", voxels, np.diag([0.5, 2, 3, 1]))
    answer = outlined(path, bright_and_dark())
    bright, dark = answer.structures
    assert (bright.num_voxels, bright.num_sure, bright.label, dark.label) == (3, 1, 1, 2)
    assert bright.highest == pytest.approx(1 / (1 + np.exp(-2.625)), abs=1e-6)
    assert (dark.num_voxels, dark.num_sure) == (1, 1)
    assert answer.file.voxel_mm3 == pytest.approx(3.0)
    assert answer.num_shared == 0
    labels = np.asarray(mask_of(answer).dataobj)
    assert labels[1:4, 2, 1].tolist() == [1, 1, 1]
    assert labels[5, 5, 0] == 2
    assert np.count_nonzero(labels) == 4
    assert [plane.number for plane in answer.planes] == [2, 3, 4]  # through (3, 2, 1), closest to the four's middle
    warm = outlined(path, bright_and_dark(temperature=2.0))
    assert [each.num_sure for each in warm.structures] == [0, 1]  # 2.625 / 2: .788; 6.25 / 2: .958


def test_an_answer_does_not_depend_on_the_windows_where_the_network_looks_at_single_voxels(tmp_path: Path) -> None:
    """Larger than the volumes of training (8 x 12 x 8) in two directions, smaller in one."""
    voxels = np.random.default_rng(3).integers(1, 256, (17, 13, 5), dtype=np.uint8)
    answer = outlined(save_bytes(tmp_path / "v.nii", voxels), bright_and_dark())
    labels = np.asarray(mask_of(answer).dataobj)
    np.testing.assert_array_equal(labels, np.where(voxels >= 128, 1, np.where(voxels <= 100, 2, 0)))
    assert answer.is_larger
    assert answer.num_windows == len(windows_of((8, 13, 17), SEEN)) == 3 * 4 * 4


def test_the_mask_takes_the_place_from_the_file_and_none_of_its_notes(tmp_path: Path) -> None:
    affine = np.array([[0, 800, 0, 5000], [1100, 0, 0, -3000], [0, 0, -2500, 9000], [0, 0, 0, 1.0]])
    voxels = np.full((8, 6, 4), 200, np.uint8)
    path = save_bytes(tmp_path / "v.nii", voxels, affine, descrip=b"Maria Quispe", xyzt_units=3, qform_code=0)
    answer = outlined(path, bright_and_dark())
    mask = mask_of(answer)
    np.testing.assert_allclose(mask.affine, affine)
    assert mask.header["xyzt_units"] == 3  # micrometres, as in the file
    assert answer.file.voxel_mm == pytest.approx((1.1, 0.8, 2.5))
    assert answer.file.voxel_mm3 == pytest.approx(2.2)
    assert b"Quispe" not in gzip.decompress(answer.mask_file)
    assert bytes(mask.header["descrip"]).startswith(b"Ayni, not for primary diagnosis: 1 bright, 2 dark/er")
    assert outlined(path, bright_and_dark()).mask_file == answer.mask_file


def test_a_file_that_does_not_say_how_the_patient_lies_gets_a_caution_and_nifti_2_is_kept(tmp_path: Path) -> None:
    image = nibabel.Nifti2Image(np.full((8, 6, 4), 200, np.uint8), None)
    image.to_filename(tmp_path / "v.nii.gz")
    answer = outlined(tmp_path / "v.nii.gz", bright_and_dark())
    assert not answer.file.is_oriented
    assert "does not say how the patient lies" in entry(bright_and_dark(), answer, 1, ["masks/v-mask.nii.gz"]).section
    mask = nibabel.Nifti2Image.from_bytes(gzip.decompress(answer.mask_file))
    assert [int(mask.header[code]) for code in ("sform_code", "qform_code")] == [0, 0]
    np.testing.assert_array_equal(mask.affine, nibabel.load(tmp_path / "v.nii.gz").affine)


def save_series(folder: Path, letters: str, steps_mm: tuple[float, float, float], seed: int) -> Any:
    """The drawing as DICOM slices, axis 2 of `letters` across them; the affine that they say, in RAS."""
    shape, affine = affine_of(letters, steps_mm)
    grey, _ = drawn(places_of(shape, affine), seed)
    to_lps = np.diag([-1.0, -1.0, 1.0])
    folder.mkdir()
    for number in range(shape[2]):
        pixels_YX = np.clip(grey[:, :, number].T, 0, 4000).astype(np.uint16)
        position = to_lps @ (affine[:3, 3] + affine[:3, 2] * number)
        dataset = dicom(
            pixels_YX,
            SOPInstanceUID=f"1.2.3.{number}",
            SeriesInstanceUID="1.2.4",
            Modality="MR",
            PixelSpacing=[float(steps_mm[1]), float(steps_mm[0])],
            ImagePositionPatient=[float(value) for value in position],
            ImageOrientationPatient=[
                float(value) for axis in (0, 1) for value in to_lps @ affine[:3, axis] / steps_mm[axis]
            ],
        )
        dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"1.2.3.{number}")
        save_dicom(folder / f"{(number * 7) % shape[2]:03d}-{number}.dcm", dataset)  # not in their order
    return affine


def test_a_folder_of_dicom_slices_gets_a_mask_on_the_series_voxels(tmp_path: Path) -> None:
    affine = save_series(tmp_path / "series", "LPS", (1.0, 1.2, 2.0), seed=8)
    answer = outlined(tmp_path / "series")
    mask = mask_of(answer)
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)
    np.testing.assert_allclose(mask.get_qform(), affine, atol=1e-5)
    assert (answer.file.source, answer.file.shape) == ("DICOM", mask.shape)
    _, truth = drawn(places_of(mask.shape, affine), 8)
    for number in (0, 1):
        assert dice(np.asarray(mask.dataobj) == number + 1, truth[number]) > 0.9


def test_a_flat_file_for_a_model_of_volumes_and_the_other_way_round_are_said_clearly(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "flat.png")
    save_bytes(tmp_path / "flat.nii", np.zeros((32, 48, 1), np.uint8))
    save_bytes(tmp_path / "deep.nii", np.zeros((32, 48, 5), np.uint8))
    save_bytes(tmp_path / "time.nii", np.zeros((8, 8, 8, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    assert "no volume of a known kind" in refused(tmp_path / "flat.png")
    assert "single slice" in refused(tmp_path / "flat.nii")
    assert "dimensions" in refused(tmp_path / "time.nii")
    assert "empty" in refused(tmp_path / "empty")
    assert "it is a volume of shape [32, 48, 5]" in refused(tmp_path / "deep.nii", outlining_bundle())
    assert "is a folder" in refused(tmp_path / "empty", outlining_bundle())


def test_a_broken_volume_does_not_stop_the_others(tmp_path: Path) -> None:
    good = save_drawn(tmp_path / "good.nii.gz", 7)
    (tmp_path / "cut.nii.gz").write_bytes(good.read_bytes()[:900])
    (tmp_path / "missing").mkdir()
    answers = diagnose(volume_bundle(), [tmp_path / "cut.nii.gz", good, tmp_path / "gone.nii"])
    assert [type(answer).__name__ for answer in answers] == ["FileError", "OutlinedVolume", "FileError"]
