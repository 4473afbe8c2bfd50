"""Images with masks from folders and .npz files: the right planes at the right place, or a message that helps."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import TensorDataset

from ayni.data.dataset import store_dataset
from ayni.data.mask_file import read_mask
from ayni.data.masks import load_segmented
from ayni.data.planes import prepare_planes
from ayni.errors import DataError
from ayni.task import ImageSettings

GREY_8 = ImageSettings(height=8, width=8)
SCALED_8 = ImageSettings(height=8, width=8, resize=True)
ONE, TWO = ("lung",), ("anterior", "posterior")


def pixels(start: int, height: int = 8, width: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.arange(start, start + height * width).astype(np.uint8).reshape(height, width)


def square(value: int, height: int = 8, width: int = 8) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """`value` in rows 2 and 3, columns 4 to 6, of 0."""
    mask = np.zeros((height, width), np.uint16)
    mask[2:4, 4:7] = value
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of 8 x 8: a mask of 16 bits with value 300, one of 8 bits with 255, and one that is empty."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(pixels(0)).save(tmp_path / "images" / "b.png")
    Image.fromarray(square(300)).save(tmp_path / "masks" / "b.png")
    np.save(tmp_path / "images" / "a.npy", pixels(100))
    Image.fromarray(square(255).astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    Image.fromarray(pixels(7)).save(tmp_path / "images" / "c.v2.jpg", quality=95)
    np.save(tmp_path / "masks" / "c.v2.npy", square(0))
    (tmp_path / "masks" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "images" / "notes.txt").write_text("x")
    return tmp_path


def test_a_folder_gives_each_image_its_mask_whatever_stands_for_foreground(folder: Path) -> None:
    loaded = load_segmented(folder, GREY_8, ONE)
    assert loaded.names == ("a.npy", "b.png", "c.v2.jpg")
    assert loaded.pixels_NHWC[1, :, :, 0].tolist() == pixels(0).tolist()
    assert loaded.masks_NSHW.shape == (3, 1, 8, 8)
    assert loaded.masks_NSHW.dtype == np.uint8
    assert loaded.masks_NSHW[0, 0].tolist() == loaded.masks_NSHW[1, 0].tolist() == square(1).tolist()
    assert not loaded.masks_NSHW[2].any()


def test_with_several_structures_value_k_is_the_kth(folder: Path) -> None:
    np.save(folder / "masks" / "c.v2.npy", np.zeros((8, 8), np.int64))
    for name, value in (("a", 1), ("b", 2)):
        Image.fromarray(square(value).astype(np.uint8)).save(folder / "masks" / f"{name}.png")
    masks_NSHW = load_segmented(folder, GREY_8, TWO).masks_NSHW
    assert [[int(plane.sum()) for plane in planes] for planes in masks_NSHW] == [[6, 0], [0, 6], [0, 0]]


def test_a_value_beyond_the_structures_is_named_with_the_file(folder: Path) -> None:
    with pytest.raises(DataError, match=r"masks/a\.png holds the value 255; this task has the structures 1 to 2"):
        load_segmented(folder, GREY_8, TWO)


def test_the_mask_is_put_exactly_where_the_image_is(tmp_path: Path) -> None:
    """24 high and 16 wide: a third in size is 8 x 5, so the image stands in columns 1 to 5 of 8."""
    image, mask = np.zeros((24, 16), np.uint8), np.zeros((24, 16), np.uint8)
    image[6:15, :8], mask[6:15, :8] = 255, 9  # rows 2 to 4; 8 of 16 columns are 2.5 of 5: the half counts
    for name, array in (("images", image), ("masks", mask)):
        (tmp_path / name).mkdir()
        Image.fromarray(array).save(tmp_path / name / "x.png")
    loaded = load_segmented(tmp_path, SCALED_8, ONE)
    assert loaded.masks_NSHW[0, 0].tolist() == [
        [0] * 8, [0] * 8, *[[0, 1, 1, 1, 0, 0, 0, 0]] * 3, [0] * 8, [0] * 8, [0] * 8,
    ]  # fmt: skip
    seen = loaded.pixels_NHWC[0, 3, :, 0]
    assert seen[[0, 1, 2, 5, 6, 7]].tolist() == [0, 255, 255, 0, 0, 0]
    assert 100 < seen[3] < 155  # the image's own border is in the same column


def test_a_pixel_is_a_structures_if_that_covers_half_of_it() -> None:
    planes_SHW = np.zeros((2, 16, 16), np.uint8)
    planes_SHW[0, 0, 0:2] = 1  # two of the four pixels that become one: half
    planes_SHW[1, 0, 0] = 1  # one of four: too little
    planes_SHW[1, 8:, :] = 1
    seen = prepare_planes(planes_SHW, SCALED_8)
    assert (int(seen[0].sum()), int(seen[0, 0, 0])) == (1, 1)
    assert seen[1].tolist() == [[0] * 8] * 4 + [[1] * 8] * 4


def test_thirds_that_add_up_to_a_half_count_as_a_half() -> None:
    planes_SHW = np.zeros((1, 48, 48), np.uint8)
    planes_SHW[0, :, ::2] = 1  # every new pixel is 6 x 6 old ones, 3 of 6 columns lit
    assert prepare_planes(planes_SHW, SCALED_8).all()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"images/d.png": pixels(1)}, r"^d\.png in .*images: no mask of that name in .*masks\. Add it"),
        ({"masks/d.png": square(1)}, r"^d\.png in .*masks: no image of that name in .*images"),
        ({"masks/a.npy": square(1)}, r"masks/a\.npy and .*masks/a\.png have the same name"),
        (
            {"masks/a.png": square(1, 8, 9)},
            r"images/a\.npy is 8 x 8 pixels and its mask .*masks/a\.png 9 x 8\. A mask must have its image's size",
        ),
        ({"masks/a.png": square(0), "masks/b.png": square(0)}, "all masks of .* are empty"),
    ],
)
def test_what_does_not_fit_together_is_named(folder: Path, files: dict[str, Any], message: str) -> None:
    for name, array in files.items():
        if name.endswith(".npy"):
            np.save(folder / name, array)
        else:
            Image.fromarray(array).save(folder / name)
    with pytest.raises(DataError, match=message):
        load_segmented(folder, GREY_8, ONE)


def test_looking_for_pairs_loads_no_numpy() -> None:
    code = "import sys, ayni.data.pairs, ayni.data.folder; print({'numpy', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_folder_without_masks_is_told_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"there is no folder .*masks"):
        load_segmented(tmp_path, GREY_8, ONE)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_segmented(tmp_path, GREY_8, ONE)
    with pytest.raises(DataError, match="there are no data at"):
        load_segmented(tmp_path / "gone", GREY_8, ONE)


def test_other_sizes_are_scaled_only_if_the_task_says_so(folder: Path) -> None:
    Image.fromarray(pixels(0, 16, 16)).save(folder / "images" / "b.png")
    Image.fromarray(square(1, 16, 16)).save(folder / "masks" / "b.png")
    with pytest.raises(DataError, match=r"images/b\.png is 16 x 16 .*image\.resize"):
        load_segmented(folder, GREY_8, ONE)
    assert load_segmented(folder, SCALED_8, ONE).masks_NSHW[1, 0].sum() == 2  # rows 2-3 -> 1; columns 4-5 and half of 6


@pytest.mark.parametrize("prefix", ["", "train_"])
def test_an_npz_holds_whole_numbers_or_planes(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "set.npz"
    images = np.stack([pixels(0), pixels(9)])
    numbers = np.stack([square(2), square(1)])
    planes_NSHW = np.stack([np.stack([mask == 1, mask == 2]) for mask in numbers])
    for masks in (numbers, planes_NSHW):
        np.savez(path, **{f"{prefix}images": images, f"{prefix}masks": masks})  # type: ignore[arg-type]
        loaded = load_segmented(path, GREY_8, TWO)
        assert loaded.masks_NSHW.tolist() == planes_NSHW.astype(int).tolist()
        assert loaded.names == ("train[0]", "train[1]")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 8, 8), np.uint8)}, "needed are 'train_images' and 'train_masks'"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "masks": np.ones((1, 8, 8), np.uint8)}, "as many masks"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "masks": np.ones((1, 8, 9), np.uint8)}, r"\[1, 8, 9\]"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "masks": np.ones((1, 8, 8))}, "whole numbers"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "masks": np.full((1, 8, 8), -1)}, "negative"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "masks": np.ones((1, 3, 8, 8), int)}, "3 planes; this task has 2"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "masks": np.full((1, 2, 8, 8), 2)}, "0 and 1 only"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "masks": np.full((1, 8, 8), 3)}, r"train\[0\] holds the value 3"),
    ],
)
def test_a_wrong_npz_says_what_is_wrong(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_segmented(tmp_path / "set.npz", GREY_8, TWO)


def grey_png(path: Path, bit_depth: int, rows: list[bytes], width: int) -> None:
    """Written by hand: Pillow saves no grey of two or four bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bit_depth, 0, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b""))


def test_a_masks_numbers_come_back_as_they_were_saved_at_every_depth(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    grey_png(path, 1, [b"\x40"], 2)
    assert read_mask(path).tolist() == [[0, 1]]
    grey_png(path, 2, [bytes([0b00_01_10_11])], 4)
    assert read_mask(path).tolist() == [[0, 1, 2, 3]]
    grey_png(path, 4, [b"\x01", b"\x2f"], 2)
    assert read_mask(path).tolist() == [[0, 1], [2, 15]]
    grey_png(path, 8, [b"\x00\x01", b"\x02\xff"], 2)
    assert read_mask(path).tolist() == [[0, 1], [2, 255]]
    grey_png(path, 16, [b"\x00\x01\x01\x00"], 2)
    assert read_mask(path).tolist() == [[1, 256]]
    Image.fromarray(np.full((1, 2, 3), [[[0, 0, 0], [7, 7, 7]]], np.uint8)).save(path)
    assert read_mask(path).tolist() == [[0, 7]]
    for dtype in (bool, np.uint8, ">u2", np.int64):
        np.save(tmp_path / "m.npy", np.array([[0, 1]], dtype))
        assert read_mask(tmp_path / "m.npy").tolist() == [[0, 1]]


def test_a_mask_whose_numbers_cannot_be_trusted_is_refused_with_the_remedy(tmp_path: Path) -> None:
    grey = Image.fromarray(pixels(0))
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, 0] = 1, 2, 3
    Image.fromarray(colour).save(tmp_path / "colour.png")
    grey.convert("P").save(tmp_path / "palette.png")
    grey.save(tmp_path / "jpeg.png", format="JPEG")
    clear = np.full((2, 2, 4), 255, np.uint8)
    clear[0, 0, 3] = 9
    Image.fromarray(clear).save(tmp_path / "clear.png")
    np.save(tmp_path / "floats.npy", np.ones((2, 2)))
    np.save(tmp_path / "volume.npy", np.ones((2, 2, 2, 2), int))
    (tmp_path / "text.png").write_text("x")
    (tmp_path / "empty.png").write_bytes(b"")
    grey.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:50])
    for name, told in {
        "colour.png": "in colour", "palette.png": "palette", "jpeg.png": "JPEG changes", "clear.png": "transparent",
        "floats.npy": "whole numbers", "volume.npy": "shape", "text.png": "known kind",
        "empty.png": "is empty", "cut.png": "damaged or cut off",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=rf"{name}.*{told}"):
            read_mask(tmp_path / name)


def _seeds() -> list[bytes]:
    """One mask of each kind."""
    files = [io.BytesIO() for _ in range(4)]
    Image.fromarray(square(1)).save(files[0], format="PNG")
    Image.fromarray(square(1).astype(np.uint8)).save(files[1], format="PNG")
    Image.fromarray(square(1) > 0).save(files[2], format="PNG")
    np.save(files[3], square(1))
    return [file.getvalue() for file in files]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(_seeds()), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.data())
def test_a_damaged_mask_is_an_error_of_the_data_whatever_its_bytes(
    seed: bytes, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    damaged = bytearray(seed)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.png"
        path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
        with contextlib.suppress(DataError):
            assert read_mask(path).ndim == 2


@pytest.mark.parametrize("shape", ["[H, W]", "[1, H, W]", "[S, H, W]", "[S, H, W] of floats"])
def test_a_torch_dataset_with_masks_comes_back_as_it_was(tmp_path: Path, shape: str) -> None:
    import torch

    pixels_NCHW = torch.from_numpy(np.stack([pixels(0), pixels(50)])[:, None])
    numbers = np.stack([square(1), square(2)]).astype(np.int64)
    planes_NSHW = np.stack([numbers == 1, numbers == 2], axis=1)
    masks = {
        "[H, W]": numbers, "[1, H, W]": numbers[:, None], "[S, H, W]": planes_NSHW,
        "[S, H, W] of floats": planes_NSHW.astype(np.float32),
    }[shape]  # fmt: skip
    dataset = TensorDataset(pixels_NCHW, torch.from_numpy(masks))
    assert store_dataset(dataset, tmp_path / "dataset.npz", GREY_8, structures=TWO) == 2
    loaded = load_segmented(tmp_path, GREY_8, TWO)  # a folder that holds dataset.npz
    assert loaded.pixels_NHWC[:, :, :, 0].tolist() == [pixels(0).tolist(), pixels(50).tolist()]
    assert loaded.masks_NSHW.tolist() == planes_NSHW.astype(int).tolist()


def test_a_dataset_is_scaled_with_its_masks(tmp_path: Path) -> None:
    dataset = [(pixels(0, 16, 16), square(255, 16, 16))]
    store_dataset(dataset, tmp_path / "dataset.npz", SCALED_8, structures=ONE)
    assert load_segmented(tmp_path, GREY_8, ONE).masks_NSHW[0, 0].sum() == 2


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((8, 9), int), r"item 0 is 8 x 8 pixels and its mask .*9 x 8"),
        (np.ones((3, 8, 8), int), "item 0 has 3 planes; this task has 2 structures"),
        (np.full((8, 8), 1 / 255), "whole numbers"),
        (np.full((8, 8), 3), "holds the value 3"),
        (np.full((8, 8), -1), "negative"),
        (np.full((2, 8, 8), 2), "0 and 1 only"),
        (1, r"shape \[\]"),
        (np.ones((0, 8), int), r"shape \[0, 8\]"),
    ],
)
def test_a_mask_of_a_dataset_that_cannot_be_used_is_named_by_its_item(tmp_path: Path, mask: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        store_dataset([(pixels(0), mask)], tmp_path / "dataset.npz", GREY_8, structures=TWO)
    assert not (tmp_path / "dataset.npz").exists()
