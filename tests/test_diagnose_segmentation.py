"""Diagnosis by outlines: masks in the file's own pixels, areas, sureness and pictures, with numbers by hand."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ayni.data.mask_file import read_mask
from ayni_export.contours import COLOURS, draw_outlines, outline
from ayni_export.diagnose import Answer, diagnose
from ayni_export.mask_files import mask_files
from ayni_export.report import entry, make_report, report_html
from ayni_export.segmentation import BAND_VALUES, Segmentation, bands, shown_mask
from outlining_by_hand import bright_and_dark
from trained_unet import drawn, outlining_bundle, save_drawn

ORANGE, BLUE = (np.array(colour, np.uint8) for colour in COLOURS[:2])


def one(answer: Answer) -> Segmentation:
    assert isinstance(answer, Segmentation), answer
    return answer


def outlined(folder: Path, pixels: Any, name: str = "image.npy") -> Segmentation:
    np.save(folder / name, pixels.astype(np.uint8))
    return one(diagnose(bright_and_dark(), [folder / name], resize=True)[0])


def rectangle(height: int, width: int, rows: slice, columns: slice, value: int = 255) -> Any:
    pixels = np.zeros((height, width), np.uint8)
    pixels[rows, columns] = value
    return pixels


def test_an_image_of_the_models_size_gets_the_mask_and_area_that_one_can_count(tmp_path: Path) -> None:
    pixels = rectangle(32, 32, slice(3, 13), slice(5, 25))  # 10 x 20
    answer = outlined(tmp_path, pixels)
    bright, dark = answer.structures
    assert (bright.name, dark.name) == ("bright", "dark/er")
    assert (bright.mask_HW == (pixels == 255)).all()
    assert (dark.mask_HW == (pixels == 0)).all()
    assert (bright.num_pixels, bright.share) == (200, 200 / 1024)
    assert answer.area_mm2(bright) is None  # a .npy file says nothing of millimetres


def test_how_sure_is_the_share_of_the_outline_with_a_probability_of_point_9_or_more(tmp_path: Path) -> None:
    pixels = rectangle(32, 32, slice(0, 1), slice(0, 30))  # 30 pixels of 255: 1 / (1 + e**-7.9) = 0.9996
    pixels[1, :10] = 150  # 10 pixels: 1 / (1 + e**-1.375) = 0.798
    bright, _ = outlined(tmp_path, pixels).structures
    assert (bright.num_pixels, bright.num_sure, bright.sure_share) == (40, 30, 0.75)
    assert bright.highest == pytest.approx(1 / (1 + math.exp(-127 / 16)), abs=1e-6)


def test_where_nothing_is_outlined_the_highest_probability_is_told(tmp_path: Path) -> None:
    bright, dark = outlined(tmp_path, rectangle(32, 32, slice(4, 5), slice(4, 5), 112)).structures
    assert (bright.num_pixels, bright.share, bright.sure_share) == (0, 0.0, None)
    assert bright.highest == pytest.approx(1 / (1 + math.e), abs=1e-6)  # (112 - 128) / 16 = -1
    assert dark.num_pixels == 1024


def test_a_pixel_of_just_one_half_is_inside(tmp_path: Path) -> None:
    bright, dark = outlined(tmp_path, np.full((32, 32), 128)).structures
    assert bright.num_pixels == dark.num_pixels == 1024


def test_a_larger_image_gets_a_mask_of_its_own_size_just_where_things_are(tmp_path: Path) -> None:
    """64 x 40 fits as 32 x 20, with six black columns on either side. Edges lie between pixels of the model's image."""
    pixels = rectangle(64, 40, slice(16, 48), slice(8, 40))
    answer = outlined(tmp_path, pixels)
    bright, dark = answer.structures
    assert bright.mask_HW.shape == (64, 40)
    assert (bright.mask_HW == (pixels == 255)).all()
    assert bright.num_pixels == 32 * 32
    assert dark.num_pixels == 64 * 40 - 32 * 32  # nothing of the black beside the image


@pytest.mark.parametrize(("height", "width"), [(101, 67), (67, 101), (333, 35), (32, 500), (20, 33)])
def test_odd_sizes_go_through_fit_and_back_to_within_a_pixel_of_the_model(
    tmp_path: Path, height: int, width: int
) -> None:
    rows, columns = slice(height // 5, height // 5 * 4), slice(width // 4, width // 4 * 3)
    pixels = rectangle(height, width, rows, columns)
    bright, dark = outlined(tmp_path, pixels).structures
    step = max(height, width) / 32  # of the file's pixels to one of the model's
    wrong = bright.mask_HW != (pixels == 255)
    edge = outline(pixels == 255, math.ceil(step)) | outline(pixels == 0, math.ceil(step))
    assert not (wrong & ~edge).any()
    assert np.count_nonzero(wrong) < 0.5 * np.count_nonzero(edge)
    assert (bright.mask_HW ^ dark.mask_HW).mean() > 0.99  # the two answers are each other's opposite


def test_the_trained_network_finds_the_shapes_in_images_twice_as_large(tmp_path: Path) -> None:
    images, masks = drawn(6, seed=3)
    overlaps = []
    for number, image in enumerate(images):
        Image.fromarray(image.repeat(2, axis=0).repeat(2, axis=1)).save(tmp_path / f"{number}.png")
        answer = one(diagnose(outlining_bundle(), [tmp_path / f"{number}.png"], resize=True)[0])
        for structure, mask in zip(answer.structures, masks[number], strict=True):
            truth = mask.repeat(2, axis=0).repeat(2, axis=1) > 0
            both = np.count_nonzero(structure.mask_HW & truth)
            overlaps.append(2 * both / (structure.num_pixels + np.count_nonzero(truth)))
    assert np.mean(overlaps) > 0.8


@pytest.mark.parametrize(("height", "width"), [(700, 1000), (9, 13), (7, 5), (8, 6)])
def test_values_are_stretched_as_torch_does_it_also_in_bands(height: int, width: int) -> None:
    values = np.random.default_rng(0).random((7, 5), np.float32)
    parts = list(bands(values, height, width))
    assert len(parts) == -(-height // (BAND_VALUES // width))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], size=(height, width), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(np.concatenate([band for _, band in parts]), expected[0, 0].numpy(), atol=1e-6)
    assert parts[-1][0].stop == height


def test_an_outline_lies_inside_the_mask_and_is_as_thick_as_it_says() -> None:
    mask = rectangle(9, 9, slice(2, 7), slice(2, 7), 1) > 0
    assert np.count_nonzero(outline(mask, 1)) == 16  # of 5 x 5, all but 3 x 3
    assert np.count_nonzero(outline(mask, 2)) == 24  # all but the one in the middle
    assert not (outline(mask, 2) & ~mask).any()
    whole = np.ones((4, 4), np.bool_)
    assert np.count_nonzero(outline(whole, 1)) == 12  # closed along the image's border


def test_all_but_the_outline_is_the_image_as_it_was() -> None:
    image = np.arange(81, dtype=np.uint8).reshape(9, 9, 1)
    mask = rectangle(9, 9, slice(2, 7), slice(2, 7), 1) > 0
    picture = draw_outlines(image, [mask])
    on_line = (picture == ORANGE).all(axis=2)
    assert (on_line == outline(mask, 2)).all()
    assert (picture[~on_line] == image[~on_line]).all()


def test_outlines_on_one_another_take_turns_so_that_both_are_seen() -> None:
    mask = rectangle(40, 40, slice(5, 35), slice(5, 35), 1) > 0
    picture = draw_outlines(np.zeros((40, 40, 1), np.uint8), [mask, mask])
    num_orange, num_blue = ((picture == colour).all(axis=2).sum() for colour in (ORANGE, BLUE))
    assert num_orange + num_blue == np.count_nonzero(outline(mask, 2))
    assert 0.4 < num_orange / num_blue < 2.5


# What red- and green-blind eyes make of linear red, green and blue (Machado, Oliveira and Fernandes 2009).
PROTANOPIA = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
DEUTERANOPIA = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))


@pytest.mark.parametrize("eyes", [PROTANOPIA, DEUTERANOPIA], ids=["red-blind", "green-blind"])
def test_the_first_colours_stay_apart_for_the_colour_blind_and_from_any_grey(
    eyes: tuple[tuple[float, ...], ...],
) -> None:
    linear = (np.array(COLOURS[:3]) / 255) ** 2.2
    seen = 255 * np.clip(linear @ np.array(eyes).T, 0, 1) ** (1 / 2.2)
    for i, colour in enumerate(seen):
        assert colour.max() - colour.min() > 60  # a grey has no such difference
        assert all(np.linalg.norm(colour - other) > 60 for other in seen[:i])


def test_a_mask_is_scaled_down_or_repeated_for_the_picture() -> None:
    mask = rectangle(4, 4, slice(0, 2), slice(0, 3), 1) > 0  # the second pair of columns is half covered
    assert shown_mask(mask, 2, 2).tolist() == [[True, True], [False, False]]
    assert shown_mask(mask, 8, 8).sum() == 4 * mask.sum()
    assert shown_mask(mask, 4, 4).tolist() == mask.tolist()


def pictures_of(section: str) -> list[Any]:
    found = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', section)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in found]


def test_the_report_shows_the_outline_where_the_mask_ends(tmp_path: Path) -> None:
    pixels = rectangle(32, 32, slice(3, 13), slice(5, 25))
    pixels[20, 20] = 128  # one pixel that is both
    made = entry(bright_and_dark(), outlined(tmp_path, pixels), 1, ("masks/a.png", "masks/b.png"))
    image, picture = pictures_of(made.section)
    assert image.shape == picture.shape == (352, 352, 3)  # eleven times
    on_line = (picture == ORANGE).all(axis=2)
    assert on_line[33, 60]  # row 3 and column 5 begin at 33 and 55
    assert not on_line[36:141, 60:270].any()  # the inside of the outline, which is two pixels thick
    assert (picture[40:140, 60:270] == image[40:140, 60:270]).all()
    rows, columns = np.nonzero(on_line)
    assert (rows.min(), columns.min()) == (33, 55)
    in_rectangle = on_line[:200]
    assert np.count_nonzero(in_rectangle) == 110 * 220 - 106 * 216  # of 10 x 20 pixels, eleven times as large


def test_the_report_of_a_large_image_has_the_outline_too(tmp_path: Path) -> None:
    answer = outlined(tmp_path, rectangle(900, 600, slice(300, 600), slice(150, 450)))
    made = entry(bright_and_dark(), answer, 1, ("masks/a.png", "masks/b.png"))
    _, picture = pictures_of(made.section)
    assert picture.shape == (448, 299, 3)  # 900 x 600 scaled down
    near_orange = np.abs(picture.astype(int) - ORANGE).sum(axis=2) < 120  # a JPEG
    rows, columns = np.nonzero(near_orange)
    for found, expected in ((rows.min(), 149), (rows.max(), 299), (columns.min(), 75), (columns.max(), 224)):
        assert abs(found - expected) <= 9  # 900 pixels are 32 to the model, and so 28 a pixel, or 14 here
    assert "900 pixels, shown at 299 x 448" in made.section


def test_the_words_of_the_report_fit_outlines_and_names_are_text(tmp_path: Path) -> None:
    bundle = bright_and_dark()
    pixels = rectangle(32, 32, slice(0, 32), slice(0, 32), 112)
    pixels[:4, :16] = 255
    made = entry(bundle, outlined(tmp_path, pixels), 1, ("masks/a b.png", "masks/<i>.png"))
    report = make_report(bundle, [made.reported], created="2025-11-22T10:11:12+00:00", device="cpu")
    page = "".join(report_html(bundle, report, [made.section]))
    for fact in (
        "bright <small>64 pixels · 6.2 % of the image</small>",
        "In > 99 % of this area the model's probability is 0.9 or more.",
        "dark/er <small>960 pixels · 93.8 % of the image</small>",
        "In < 1 % of this area",  # 1 / (1 + e**-1) = 0.73
        'href="masks/a%20b.png"',
        "masks/&lt;i&gt;.png",
        "calibrated on the pixels of 24 held-out images of the site, which is rough",
        "nothing of what it may have missed",
        "Dice 0.912, HD95 1.5 pixels",
        "disc in 64, bar in 60 of them",
        "their colours take turns",
    ):
        assert fact in page, fact
    for word in ("confidence", "Finding", "heat map", "Heat map", "ROC", "odds"):
        assert word not in page
    assert report.model.task_kind == "segmentation"


def test_masks_are_written_as_they_are_and_never_over_another_file(tmp_path: Path) -> None:
    pixels = rectangle(64, 40, slice(16, 48), slice(8, 40))
    answer = outlined(tmp_path, pixels, "same name.npy")
    out = tmp_path / "report"
    with mask_files(out) as files:
        assert files.write(answer) == ("masks/same_name-bright.png", "masks/same_name-dark_er.png")
        assert files.write(answer) == ("masks/same_name-bright-2.png", "masks/same_name-dark_er-2.png")
    mask = read_mask(out / "masks/same_name-bright.png")  # as training reads masks
    assert mask.dtype == np.uint8
    assert (mask == pixels).all()


def test_if_the_report_fails_its_masks_go_and_what_was_there_stays(tmp_path: Path) -> None:
    answer = outlined(tmp_path, rectangle(32, 32, slice(3, 13), slice(5, 25)))
    out = tmp_path / "report"

    def write_and_fail() -> None:
        with mask_files(out) as files:
            assert len(files.write(answer)) == 2
            assert len(list((out / "masks").glob("image-*.png"))) >= 2
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_and_fail()
    assert not (out / "masks").exists()
    (out / "masks").mkdir()
    (out / "masks/image-bright.png").write_text("precious")
    with pytest.raises(OSError, match="disk full"):
        write_and_fail()
    assert [path.name for path in (out / "masks").iterdir()] == ["image-bright.png"]
    assert (out / "masks/image-bright.png").read_text() == "precious"


def test_a_file_that_cannot_be_used_has_its_error_and_the_others_are_outlined(tmp_path: Path) -> None:
    good = save_drawn(tmp_path / "good.png", seed=1)
    Image.new("L", (100, 80)).save(tmp_path / "large.png")
    Image.new("RGB", (48, 32), (200, 30, 30)).save(tmp_path / "colour.png")
    answers = diagnose(outlining_bundle(), [tmp_path / "large.png", good, tmp_path / "colour.png", good])
    assert [isinstance(answer, Segmentation) for answer in answers] == [False, True, False, True]
    assert "100 x 80 pixels and the model takes 48 x 32" in str(answers[0])
    assert "in colour and the model takes grey" in str(answers[2])
