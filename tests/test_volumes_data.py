"""Folders and .npz files of volumes: what training gets of them, and what `ayni data check` says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ayni.cli_data import data_app
from ayni.data.check import DataReport, MaskReport, check_data
from ayni.data.dataset import store_dataset
from ayni.data.masks import load_segmented
from ayni.data.read import load_images
from ayni.data.volumes import read_volume
from ayni.errors import DataError
from ayni.task import ImageSettings
from test_volumes_dicom import write_series

Array = np.ndarray[Any, np.dtype[Any]]
TWO = ("anterior", "posterior")
SIZE_16 = ImageSettings(depth=8, height=16, width=16, spacing_mm=(2, 1, 1))
AS_IT_IS = ImageSettings(depth=8, height=8, width=8)
SHAPE_XYZ = (12, 10, 7)
STEPS = (1.0, 1.5, 2.0)  # mm in x, y, z: at the task's spacing it has 7 x 15 x 12 voxels


def save(path: Path, values_XYZ: Array, steps: tuple[float, ...] = STEPS, shift: float = 0) -> None:
    path.parent.mkdir(exist_ok=True)
    affine = np.diag([*steps, 1.0])
    affine[2, 3] = shift
    nibabel.save(nibabel.Nifti1Image(values_XYZ, affine), path)


def voxels(seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 900, SHAPE_XYZ).astype(np.int16)


def labels(posterior: bool = True) -> Array:
    """Anterior: 4 x 4 x 3 voxels of 3 mm3; posterior: 2 x 4 x 3."""
    values = np.zeros(SHAPE_XYZ, np.uint8)
    values[2:6, 2:6, 2:5] = 1
    values[6:8, 2:6, 2:5] = 2 * posterior
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two volumes with masks, and one of another size without."""
    for number, name in enumerate(("a.nii.gz", "b.nii", "c.nii.gz")):
        save(tmp_path / "images" / name, voxels(number)[: 12 - number])
    save(tmp_path / "masks" / "a.nii.gz", labels())
    save(tmp_path / "masks" / "b.nii.gz", labels(posterior=False)[:11].astype(np.float32))
    return tmp_path


def test_training_gets_volumes_at_the_tasks_spacing_with_a_plane_per_structure(folder: Path) -> None:
    loaded = load_segmented(folder, SIZE_16, TWO, unlabelled=True)
    assert loaded.names == ("a.nii.gz", "b.nii")
    assert loaded.pixels_NHWC.shape == (2, 8, 16, 16, 1)
    assert loaded.masks_NSHW.shape == (2, 2, 8, 16, 16)
    assert loaded.unlabelled.shape == (1, 8, 16, 16, 1)
    first_NSD = loaded.masks_NSHW.max(axis=(3, 4)) > 0
    assert first_NSD[0, 0].tolist() == [False] * 2 + [True] * 3 + [False] * 3  # 7 slices, centred in 8
    assert loaded.masks_NSHW.sum(axis=(2, 3, 4)).tolist() == [[3 * 6 * 4, 3 * 6 * 2], [3 * 6 * 4, 0]]
    assert (loaded.pixels_NHWC[0, :7, :15, 2:14].max(), loaded.pixels_NHWC[0, 7].max()) == (255, 0)


def test_a_mask_that_does_not_lie_on_its_image_is_an_error_with_both_names(folder: Path) -> None:
    save(folder / "masks" / "b.nii.gz", labels()[:11], shift=1.0)
    with pytest.raises(DataError, match=r"mask .*masks/b\.nii\.gz lies up to 1 mm from where its image .*b\.nii does"):
        load_segmented(folder, SIZE_16, TWO, unlabelled=True)
    save(folder / "masks" / "b.nii.gz", labels())
    with pytest.raises(DataError, match=r"b\.nii has 7 x 10 x 11 voxels .* mask .*b\.nii\.gz 7 x 10 x 12"):
        load_segmented(folder, SIZE_16, TWO, unlabelled=True)


def test_a_volume_that_is_too_large_is_named_with_what_it_needs(folder: Path) -> None:
    small = ImageSettings(depth=8, height=12, width=16, spacing_mm=(2, 1, 1))
    with pytest.raises(DataError, match=r"a\.nii\.gz has 7 x 15 x 12 voxels .* of at least 8 x 15 x 16"):
        load_segmented(folder, small, TWO, unlabelled=True)


def test_a_picture_among_volumes_and_a_picture_as_mask_are_refused(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "images" / "d.png")
    with pytest.raises(DataError, match=r"d\.png: this is no volume of a known kind"):
        load_segmented(folder, SIZE_16, TWO, unlabelled=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "masks" / "d.png")
    with pytest.raises(DataError, match=r"d\.png: this is no volume of a known kind"):
        load_segmented(folder, SIZE_16, TWO, unlabelled=True)


def test_a_folder_that_calls_its_masks_labels_is_told_so(folder: Path) -> None:
    (folder / "masks").rename(folder / "labels")
    for look in (check_data, lambda path: load_segmented(path, SIZE_16, TWO)):
        with pytest.raises(DataError, match="if the folder labels holds the masks, call it masks"):
            look(folder)


def test_a_folder_of_slices_is_one_image(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    series = write_series(tmp_path / "images" / "patient.1")
    (tmp_path / "images" / "notes").mkdir()  # no slices: no image
    volume = read_volume(series)
    values = np.ones(volume.values_DHW.shape[::-1], np.uint8)
    (tmp_path / "masks").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, volume.turned_affine), tmp_path / "masks" / "patient.1.nii.gz")
    loaded = load_segmented(tmp_path, AS_IT_IS, ("all",))
    assert (loaded.names, loaded.masks_NSHW.sum()) == (("patient.1",), 5 * 6 * 4)
    report = check_data(tmp_path)
    assert isinstance(report, MaskReport)
    assert (report.is_of_volumes, report.num_images, report.usable) == (True, 1, True)
    assert report.spacings == {"2.5 x 1.5 x 0.5 mm": 1}
    (tmp_path / "labels.csv").write_text("file,label\nimages/patient.1,well\n")
    assert load_images(tmp_path, AS_IT_IS, ("well", "sick")).pixels_NHWC.shape == (1, 8, 8, 8, 1)
    listed = check_data(tmp_path)
    assert isinstance(listed, DataReport)
    assert (listed.is_of_volumes, listed.labels_without_image) == (True, [])
    assert listed.images_without_label == ["masks/patient.1.nii.gz"]


def test_volumes_may_have_labels(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,label\nimages/a.nii.gz,well\nimages/b.nii,sick\nimages/c.nii.gz,\n")
    loaded = load_images(folder, SIZE_16, ("well", "sick"), unlabelled=True)
    assert (loaded.pixels_NHWC.shape, loaded.labels_N.tolist()) == ((2, 8, 16, 16, 1), [0, 1])
    assert loaded.unlabelled.shape == (1, 8, 16, 16, 1)


@pytest.mark.parametrize("prefix", ["", "train_"])
@pytest.mark.parametrize("with_channel", [False, True])
def test_an_npz_of_volumes_passes_unchanged(tmp_path: Path, prefix: str, with_channel: bool) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3 if not with_channel else 8), dtype=np.uint8)
    settings = ImageSettings(depth=8, height=8, width=8)
    arrays = {f"{prefix}images": images[..., np.newaxis] if with_channel else images}
    np.savez(tmp_path / "l.npz", **arrays, **{f"{prefix}labels": np.array([[0], [1], [1]])})  # type: ignore[arg-type]
    loaded = load_images(tmp_path / "l.npz", settings, ("a", "b"))
    margin = 0 if with_channel else 2
    assert loaded.pixels_NHWC.shape == (3, 8, 8, 8, 1)
    assert np.array_equal(loaded.pixels_NHWC[..., margin : margin + images.shape[3], 0], images)
    assert check_data(tmp_path / "l.npz").is_of_volumes or not with_channel  # [2, 8, 8, 3] may be pictures in colour
    numbers = (images > 99).astype(np.uint8) + (images > 199)
    planes = np.stack([numbers == 1, numbers == 2], axis=1)
    for masks in (numbers, planes):
        np.savez(tmp_path / "m.npz", **arrays, **{f"{prefix}masks": masks})  # type: ignore[arg-type]
        segmented = load_segmented(tmp_path / "m.npz", settings, TWO)
        assert np.array_equal(segmented.masks_NSHW[..., margin : margin + images.shape[3]], planes)


@pytest.mark.parametrize("form", ["D H W", "C D H W of floats", "D H W C"])
def test_a_torch_dataset_of_volumes_comes_back_as_it_was(tmp_path: Path, form: str) -> None:
    import torch

    images = np.random.default_rng(0).integers(0, 255, (2, 8, 6, 8), dtype=np.uint8)
    numbers = (images > 99).astype(np.int64) + (images > 199)
    planes = np.stack([numbers == 1, numbers == 2], axis=1)
    forms: dict[str, Array] = {
        "D H W": images,
        "C D H W of floats": images[:, None] / np.float32(255),
        "D H W C": images[..., None],
    }
    given = forms[form]
    for masks in (numbers, numbers[:, None], planes):
        items = list(zip(torch.from_numpy(given), torch.from_numpy(masks), strict=True))
        assert store_dataset(items, tmp_path / "dataset.npz", AS_IT_IS, structures=TWO) == 2
        loaded = load_segmented(tmp_path, AS_IT_IS, TWO)
        assert np.array_equal(loaded.pixels_NHWC[:, :, 1:7, :, 0], images)
        assert np.array_equal(loaded.masks_NSHW[:, :, :, 1:7], planes)
    store_dataset([(volume, 1) for volume in given], tmp_path / "dataset.npz", AS_IT_IS)
    assert load_images(tmp_path, AS_IT_IS, ("a", "b")).pixels_NHWC.shape == (2, 8, 8, 8, 1)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((np.zeros((8, 8), np.uint8), np.zeros((8, 8), int)), r"shape \[8, 8\]; needed is \[D, H, W\]"),
        ((np.zeros((8, 8, 8), np.uint8), np.zeros((8, 8), int)), r"mask of item 0 has the shape \[8, 8\]"),
        ((np.zeros((8, 8, 8), np.uint8), np.zeros((8, 8, 7), int)), r"item 0 has 8 x 8 x 8 voxels .* 8 x 8 x 7"),
        ((np.zeros((9, 8, 8), np.uint8), np.zeros((9, 8, 8), int)), r"item 0 has 9 x 8 x 8 voxels .* takes 8 x 8 x 8"),
    ],
)
def test_a_dataset_that_is_none_of_such_volumes_is_named_by_its_item(tmp_path: Path, item: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        store_dataset([item], tmp_path / "dataset.npz", AS_IT_IS, structures=TWO)


def test_an_npz_of_pictures_is_none_of_volumes(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", images=np.zeros((2, 8, 8), np.uint8), labels=np.array([0, 1]))
    with pytest.raises(DataError, match=r"shape \[images, slices, height, width\] or .*; these are uint8 \[2, 8, 8\]"):
        load_images(tmp_path / "p.npz", AS_IT_IS, ("a", "b"))
    np.savez(tmp_path / "v.npz", images=np.zeros((2, 8, 8, 8), np.uint8), labels=np.array([0, 1]))
    with pytest.raises(DataError, match=r"shape \[images, height, width\]"):
        load_images(tmp_path / "v.npz", ImageSettings(height=8, width=8), ("a", "b"))
    assert check_data(tmp_path / "v.npz").is_of_volumes
    assert not check_data(tmp_path / "p.npz").is_of_volumes


def test_the_check_counts_volumes_spacings_and_cubic_millimetres(folder: Path) -> None:
    report = check_data(folder, unlabelled=True)
    assert isinstance(report, MaskReport)
    assert (report.num_images, report.num_unlabelled, report.is_of_volumes, report.usable) == (2, 1, True, True)
    assert report.sizes == {"7 x 10 x 12 voxels": 1, "7 x 10 x 11 voxels": 1, "7 x 10 x 10 voxels": 1}
    assert report.spacings == {"2 x 1.5 x 1 mm": 3}
    assert report.largest_mm == (14, 15, 12)
    one, two = report.mask_values["1"], report.mask_values["2"]
    assert (one.num_images, one.mean_mm3) == (2, 48 * 3)
    assert (two.num_images, two.mean_mm3) == (1, 24 * 3)
    assert two.mean_share == pytest.approx(24 / 840)
    assert report.foreground.mean_mm3 == pytest.approx((72 + 48) * 3 / 2)
    assert not any("sizes" in warning for warning in report.warnings)
    assert not check_data(folder).usable


def test_the_check_finds_what_is_wrong_with_volumes(folder: Path) -> None:
    save(folder / "masks" / "b.nii.gz", labels()[:11], shift=1.0)
    save(folder / "masks" / "c.nii.gz", labels()[:10] * 0.5)
    (folder / "images" / "d.nii.gz").write_bytes((folder / "images" / "a.nii.gz").read_bytes()[:-40])
    save(folder / "images" / "e.nii.gz", voxels(0), (1.0, 1.5, 3.0))
    report = check_data(folder)
    assert isinstance(report, MaskReport)
    assert report.num_images == 1
    assert [bad.file for bad in report.unreadable] == ["masks/c.nii.gz", "images/d.nii.gz"]
    assert report.wrong_sizes == [
        "the mask masks/b.nii.gz lies up to 1 mm from where its image b.nii does (their affines differ). Export both "
        "again, on one grid."
    ]
    assert report.duplicates == [["a.nii.gz", "e.nii.gz"]]
    assert report.images_without_mask == ["d.nii.gz", "e.nii.gz"]
    assert any("volumes of 2 spacings" in warning for warning in report.warnings)
    assert not report.usable


def test_the_command_tells_it_in_words_and_in_json(folder: Path) -> None:
    done = CliRunner().invoke(data_app, ["check", str(folder), "--unlabelled"])
    assert done.exit_code == 0
    for told in (
        "2 volumes with a mask that can be read\n  without a mask: 1\n",
        "sizes (slices x rows x columns): 7 x 10 x 12 voxels: 1",
        "spacings: 2 x 1.5 x 1 mm: 3",
        "longest sides: 14 x 15 x 12 mm",
        "1 in 2 volumes, where it takes 6.0% of the volume, 144 mm3 in the mean",
    ):
        assert told in done.output
    told_json = json.loads(CliRunner().invoke(data_app, ["check", str(folder), "--json"]).output)
    assert told_json["mask_values"]["2"] == {"num_images": 1, "mean_share": 24 / 840, "mean_mm3": 72.0}


def test_volumes_are_read_where_torch_scipy_and_monai_are_not_installed(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.modules.update(dict.fromkeys(('torch', 'scipy', 'monai'))); "
        "from ayni.data.check import check_data; from ayni.data.volumes import as_seen; "
        "print(check_data(Path(sys.argv[1])).num_images)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert run.stdout == "2\n"


def real_hippocampi() -> Path:
    """What `ayni data fetch hippocampus --from MIRROR` brings, in a folder whose path stands in AYNI_MIRROR."""
    folder = Path(os.environ.get("AYNI_MIRROR", "/nowhere")) / "hippocampus"
    if not (folder / "labels").is_dir():
        pytest.skip("AYNI_MIRROR names no folder with hippocampus")
    return folder


def test_real_hippocampi_keep_their_volume_at_another_spacing(tmp_path: Path) -> None:
    source = real_hippocampi()
    names = sorted(file.name for file in (source / "images").iterdir())[:6]
    for kind, place in (("images", "images"), ("labels", "masks")):
        (tmp_path / place).mkdir()
        for name in names:
            (tmp_path / place / name).symlink_to(source / kind / name)
    report = check_data(tmp_path)
    assert isinstance(report, MaskReport)
    assert report.usable
    settings = ImageSettings(depth=64, height=72, width=64, spacing_mm=(0.8, 0.9, 1.1))
    masks_NSDHW = load_segmented(tmp_path, settings, TWO).masks_NSHW
    for number, name in enumerate(names):
        values = np.asarray(nibabel.load(source / "labels" / name).dataobj)
        for structure in (0, 1):
            mm3 = int(masks_NSDHW[number, structure].sum()) * 0.8 * 0.9 * 1.1
            assert mm3 == pytest.approx((values == structure + 1).sum(), rel=0.05)
