"""One image, with its mask or without, as the task's network sees it: a picture or a volume, from a file or an array.

N = images, S = structures, D = slices (volumes only), H = height, W = width, C = channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ayni.data.eight_bits import Pixels, Values
from ayni.data.images import prepare, read_image
from ayni.data.mask_file import read_mask
from ayni.data.planes import check_planes, planes_of, prepare_planes
from ayni.data.volumes import as_seen, check_same_grid, label_planes, padded, read_label_map, read_volume
from ayni.errors import DataError
from ayni.task import ImageSettings

OTHER_SIZE = "Scale the images, or let the coordinator set image.resize in the task."


def gathered(images: Iterable[Pixels], num_images: int, image: ImageSettings) -> Pixels:
    """[N, (D,) H, W, C] of N images that come one after the other: so all are in memory once, and not twice."""
    pixels = np.empty((num_images, *image.size, image.channels), np.uint8)
    for number, seen in enumerate(images):
        pixels[number] = seen
    return pixels


def seen_file(path: Path, image: ImageSettings) -> Pixels:
    """uint8 [(D,) H, W, C]. Raises DataError, which names the file."""
    if not image.depth:
        return prepare(read_image(path), image, resize=image.resize, name=str(path), remedy=OTHER_SIZE)
    voxels_DHW = as_seen(read_volume(path), image, str(path))
    return padded(voxels_DHW, image, str(path))[..., np.newaxis]


def seen_pair(
    image_file: Path, mask_file: Path, image: ImageSettings, structures: tuple[str, ...]
) -> tuple[Pixels, Pixels]:
    """Pixels [(D,) H, W, C] and planes of 0 and 1 [S, (D,) H, W]. Raises DataError, which names the file."""
    image_name, mask_name = str(image_file), str(mask_file)
    if image.depth:
        volume, labels = read_volume(image_file), read_label_map(mask_file)
        check_same_grid(volume, labels, image_name, mask_name)
        planes = padded(label_planes(labels, structures, image, mask_name), image, mask_name)
        return padded(as_seen(volume, image, image_name), image, image_name)[..., np.newaxis], planes
    pixels_HWC, values_HW = read_image(image_file), read_mask(mask_file)
    check_same_size(pixels_HWC.shape, values_HW.shape, image_name, mask_name)
    pixels_HWC = prepare(pixels_HWC, image, resize=image.resize, name=image_name, remedy=OTHER_SIZE)
    return pixels_HWC, prepare_planes(planes_of(values_HW, structures, mask_name), image)


def seen_array(pixels: Pixels, image: ImageSettings, name: str) -> Pixels:
    """[(D,) H, W, C] of an array, which has no spacing: a volume's is taken to be the task's. Raises DataError."""
    if not image.depth:
        return prepare(pixels, image, resize=image.resize, name=name, remedy=OTHER_SIZE)
    return padded(pixels[..., 0], image, name)[..., np.newaxis]


def seen_arrays(images: Pixels, image: ImageSettings, name: str) -> Pixels:
    """[N, (D,) H, W, C]; the very array where all have the task's shape already. Raises DataError."""
    if images.shape[1:] == (*image.size, image.channels):
        return np.ascontiguousarray(images)
    seen = (seen_array(pixels, image, f"{name}[{index}]") for index, pixels in enumerate(images))
    return gathered(seen, len(images), image)


def seen_planes(mask: Values, image: ImageSettings, structures: tuple[str, ...], name: str) -> Pixels:
    """[S, (D,) H, W] of an array of whole numbers, or of 0 and 1 with a plane per structure. Raises DataError."""
    is_planes = mask.ndim > len(image.size)
    planes = check_planes(mask, structures, name) if is_planes else planes_of(mask, structures, name)
    return padded(planes, image, name) if image.depth else prepare_planes(planes, image)


def check_same_size(image_shape: tuple[int, ...], mask_shape: tuple[int, ...], image_name: str, mask_name: str) -> None:
    """Both begin with height and width. Raises DataError."""
    if image_shape[:2] != mask_shape[:2]:
        raise DataError(
            f"{image_name} is {image_shape[1]} x {image_shape[0]} pixels and its mask {mask_name} "
            f"{mask_shape[1]} x {mask_shape[0]}. A mask must have its image's size: export both again."
        )
