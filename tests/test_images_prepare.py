"""An image as the network sees it: its size, its channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ayni.data.images import prepare, read_image
from ayni.errors import DataError
from ayni.task import ImageSettings

GREY_8 = ImageSettings(height=8, width=8)


def test_an_image_of_the_right_size_passes_unchanged() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    for resize in (False, True):
        assert prepare(pixels, GREY_8, resize=resize).tolist() == pixels.tolist()


def test_another_size_is_an_error_unless_resizing_is_asked_for() -> None:
    with pytest.raises(DataError, match=r"x\.png is 32 x 16 pixels and the model takes 8 x 8\. Cut it\."):
        prepare(np.zeros((16, 32, 1), np.uint8), GREY_8, resize=False, name="x.png", remedy="Cut it.")


def test_a_larger_image_keeps_its_proportions_and_is_centred_on_black() -> None:
    wide = prepare(np.full((16, 32, 1), 90, np.uint8), GREY_8, resize=True)
    assert wide[:, 0, 0].tolist() == [0, 0, 90, 90, 90, 90, 0, 0]  # 32 x 16 becomes 8 x 4
    narrow = prepare(np.full((8, 4, 1), 90, np.uint8), GREY_8, resize=True)
    assert narrow[0, :, 0].tolist() == [0, 0, 90, 90, 90, 90, 0, 0]  # as high as it must be: only centred


def test_scaling_down_averages_and_does_not_skip_pixels() -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 200
    small = prepare(stripes, GREY_8, resize=True)
    assert 95 <= small.min() <= small.max() <= 105  # every second column is lit: half of 200


def test_nothing_is_scaled_up() -> None:
    with pytest.raises(DataError, match="invent detail"):
        prepare(np.zeros((7, 7, 1), np.uint8), GREY_8, resize=True)


def test_a_colour_image_is_for_a_grey_model_only_if_it_holds_no_colour() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    assert prepare(np.repeat(grey, 3, axis=2), GREY_8, resize=False).tolist() == grey.tolist()
    colour = np.repeat(grey, 3, axis=2)
    colour[0, 0, 1] = 200
    with pytest.raises(DataError, match="Convert it to grey first"):
        prepare(colour, GREY_8, resize=False)


def test_a_grey_image_is_repeated_for_a_colour_model() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    seen = prepare(grey, ImageSettings(height=8, width=8, channels=3), resize=False)
    assert seen.tolist() == np.repeat(grey, 3, axis=2).tolist()


def test_a_tall_colour_picture_comes_back_exactly_and_scales_as_pillow_scales_it(tmp_path: Path) -> None:
    tall = np.random.default_rng(0).integers(0, 256, (301, 40, 3), np.uint8)  # it is read some 128 rows at a time
    Image.fromarray(tall).save(tmp_path / "tall.png")
    pixels = read_image(tmp_path / "tall.png")
    assert pixels.tolist() == tall.tolist()
    whole = np.asarray(Image.fromarray(tall).resize((8, 60), Image.Resampling.BILINEAR))
    fitted = prepare(pixels, ImageSettings(height=60, width=8, channels=3), resize=True)
    assert fitted.tolist() == whole.tolist()
