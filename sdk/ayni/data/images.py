"""Images as they come: PNG, JPEG, .npy, NIfTI or DICOM in, eight bits per channel out.

What a file is, its first bytes say, not its name. Eight-bit pixels stay exactly as they are. Everything else
(16 bits, floats) is scaled linearly so that the image's own minimum becomes 0 and its maximum 255; a DICOM image
with a window or a VOI LUT is scaled from the ends of that window instead. H = height, W = width, C = channels.
"""

from __future__ import annotations

import gzip
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ayni.data.dicom import read_dicom
from ayni.data.eight_bits import Pixels, UnreadableError, Values, check_num_pixels, to_eight_bits
from ayni.data.folder import IMAGE_SUFFIXES
from ayni.errors import DataError, MissingExtraError
from ayni.task import ImageSettings

__all__ = ["IMAGE_SUFFIXES", "Pixels", "placement", "prepare", "read_bytes", "read_image", "read_npy"]

MAX_FILE_BYTES = 256 * 2**20  # also of a file that is packed inside: a bomb stops here
BAND_ROWS = 128
FORMATS = "PNG, JPEG, .npy, NIfTI or DICOM"


def read_image(path: Path, *, allow_burned_in: bool = False) -> Pixels:
    """One image as uint8 [H, W, C], C = 1 (grey) or 3 (red, green, blue).

    Orientation: a JPEG is turned as its EXIF says; NIfTI as its header says (the patient's right at the left, head
    or front at the top), or with its first axis as columns where the header says nothing. MONOCHROME1 is inverted.
    A DICOM image with text burned in (which may name the patient) is refused unless `allow_burned_in`.
    Raises DataError, which names the file, or MissingExtraError; nothing else, whatever the bytes.
    """
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():  # the libraries warn of oddities: what matters is checked below
            warnings.simplefilter("ignore")
            if data[128:132] == b"DICM":
                del data  # pydicom reads the file itself
                return _checked(read_dicom(path, allow_burned_in=allow_burned_in))
            return _checked(_reader_of(data)(data))
    except UnreadableError as error:
        raise DataError(f"{path}: {error}") from None
    except MissingExtraError:
        raise
    except Exception as error:  # four parsers on foreign bytes: their ways to fail cannot be listed
        raise DataError(
            f"{path} is damaged or cut off ({type(error).__name__}). Export it again from where it came."
        ) from None


def prepare(
    pixels_HWC: Pixels,
    settings: ImageSettings,
    *,
    resize: bool,
    name: str = "the image",
    remedy: str = "Scale it first.",
) -> Pixels:
    """The image as the network sees it: uint8 [settings.height, settings.width, settings.channels].

    An image of just that size passes unchanged. Another size is an error unless `resize`: then it is scaled down
    (bilinear with antialiasing), its proportions kept, and centred on black. Nothing is ever scaled up: that would
    invent detail. A grey image is repeated over the channels of a colour network; a colour image passes for grey
    only if its channels are equal. Raises DataError, in which `name` stands for the image and
    `remedy` tells what to do about another size.
    """
    if settings.channels == 1 and pixels_HWC.shape[2] == 3:
        if any((pixels_HWC[:, :, 0] != pixels_HWC[:, :, channel]).any() for channel in (1, 2)):
            raise DataError(f"{name} is in colour and the model takes grey images. Convert it to grey first.")
        pixels_HWC = pixels_HWC[:, :, :1]
    height, width = pixels_HWC.shape[:2]
    if (height, width) != (settings.height, settings.width):
        _check_size(height, width, settings, name, "" if resize else remedy)
        pixels_HWC = _fit(pixels_HWC, settings)
    if settings.channels == 3 and pixels_HWC.shape[2] == 1:
        pixels_HWC = np.repeat(pixels_HWC, 3, axis=2)
    return np.ascontiguousarray(pixels_HWC)


def _check_size(height: int, width: int, settings: ImageSettings, name: str, remedy: str) -> None:
    """`remedy` is empty if scaling down is allowed."""
    sizes = f"{name} is {width} x {height} pixels and the model takes {settings.width} x {settings.height}"
    if remedy:
        raise DataError(f"{sizes}. {remedy}")
    if height < settings.height and width < settings.width:
        raise DataError(f"{sizes}: scaling up would invent detail. Use the original, larger image.")


def placement(height: int, width: int, settings: ImageSettings) -> tuple[int, int, int, int]:
    """Where `prepare` puts an image of this size: (top, left, height, width) within the network's image.

    >>> placement(16, 32, ImageSettings(height=8, width=8))
    (2, 0, 4, 8)
    """
    scale = min(settings.height / height, settings.width / width, 1.0)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    return (settings.height - new_height) // 2, (settings.width - new_width) // 2, new_height, new_width


def _fit(pixels_HWC: Pixels, settings: ImageSettings) -> Pixels:
    height, width, channels = pixels_HWC.shape
    top, left, new_height, new_width = placement(height, width, settings)
    canvas = np.zeros((settings.height, settings.width, channels), np.uint8)
    for channel in range(channels):  # one at a time: a large picture must not fill a small machine's memory
        image = Image.fromarray(pixels_HWC[:, :, channel])
        small = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
        canvas[top : top + new_height, left : left + new_width, channel] = np.asarray(small)
    return canvas


def read_bytes(path: Path) -> bytes:
    """All of a file that can be an image. Raises DataError."""
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder. Name the images in it.")
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a plain file. Give {FORMATS}.")
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size  # a read takes memory for all that it asks
            data = file.read(min(num_bytes, MAX_FILE_BYTES) + 1)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}. Check its name.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise DataError(f"{path} cannot be read ({reason}). Check its name and its permissions.") from None
    if not data:
        raise DataError(f"{path} is empty. Copy or export it again.")
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{path} is larger than {MAX_FILE_BYTES // 2**20} MiB. Give one image per file.")
    return data


def _reader_of(data: bytes) -> Callable[[bytes], Values]:
    if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return _read_picture
    if data.startswith(b"\x93NUMPY"):
        return read_npy
    if data.startswith(b"\x1f\x8b"):
        return _read_packed_nifti
    if data[344:348] == b"n+1\0" or data[4:8] == b"n+2\0":
        return _read_nifti
    raise UnreadableError(f"this is no image of a known kind. Give {FORMATS}.")


def _checked(values: Values) -> Pixels:
    """[H, W] or [H, W, C] of any number type to uint8 [H, W, C]."""
    if values.ndim == 2:
        values = values[:, :, np.newaxis]
    if values.ndim != 3 or values.shape[2] not in (1, 3):
        raise UnreadableError(
            f"its shape is {list(values.shape)}; one image is [height, width], or [height, width, 3] in colour. "
            "Save one slice per file."
        )
    check_num_pixels(values.shape[0] * values.shape[1])
    if values.dtype.kind not in "buif":
        raise UnreadableError(f"its values are of type {values.dtype}, not numbers of grey. Save it as 8 or 16 bits.")
    return np.ascontiguousarray(to_eight_bits(values))


def _read_picture(data: bytes) -> Values:
    """PNG and JPEG."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as file:
        check_num_pixels(file.width * file.height)
        if getattr(file, "n_frames", 1) != 1:
            raise UnreadableError("it is an animation. Save one picture per file.")
        ImageOps.exif_transpose(file, in_place=True)
        image: Image.Image = file
        if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            if image.getchannel("A").getextrema() != (255, 255):
                raise UnreadableError("parts of it are transparent. Save it without transparency.")
            image = image.convert("RGB")
        if image.mode == "L" or image.mode.startswith("I"):
            return np.asarray(image)
        return np.asarray(image.convert("L")) if image.mode == "1" else _rgb(image)


def _rgb(image: Image.Image) -> Values:
    """[H, W, 3], some rows at a time: all at once, the picture would be in memory three times."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, BAND_ROWS):
        bottom = min(image.height, top + BAND_ROWS)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)).convert("RGB"))
    return pixels


def read_npy(data: bytes) -> Values:
    """The array of a .npy file. Raises UnreadableError, or what numpy raises.

    The header is checked against the length before an array is made; objects (pickle) are never read.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UnreadableError("it is a .npy file of a kind that is not read. Save it with numpy.save.")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject or dtype.kind not in "buif":
        raise UnreadableError(f"its values are of type {dtype}, not numbers of grey. Save it as 8 or 16 bits.")
    num_values = 1
    for length in shape:
        num_values *= length
    if num_values * dtype.itemsize != len(data) - file.tell():
        raise UnreadableError("it is cut off: its header promises another length. Copy or export it again.")
    values = np.frombuffer(data, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if fortran_order else "C")


def _read_packed_nifti(data: bytes) -> Values:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        plain = file.read(MAX_FILE_BYTES + 1)
    if len(plain) > MAX_FILE_BYTES:
        raise UnreadableError(f"it unpacks to more than {MAX_FILE_BYTES // 2**20} MiB. Give one image per file.")
    if plain[344:348] != b"n+1\0" and plain[4:8] != b"n+2\0":
        raise UnreadableError(f"it is packed, and not a NIfTI image inside. Give {FORMATS}.")
    return _read_nifti(plain)


def _read_nifti(data: bytes) -> Values:
    try:
        import nibabel
    except ImportError:
        raise MissingExtraError("reading NIfTI images", "deploy") from None
    image = (nibabel.Nifti1Image if data[344:348] == b"n+1\0" else nibabel.Nifti2Image).from_bytes(data)
    lengths = [length for length in image.shape if length != 1]
    if len(lengths) > 2:
        raise UnreadableError(f"it is a volume of shape {list(image.shape)}. Save one slice per file.")
    num_pixels = 1
    for length in lengths:
        num_pixels *= length
    check_num_pixels(num_pixels)
    values = np.asanyarray(image.dataobj)
    values = values.reshape((*image.shape[:3], 1, 1)[:3])
    oriented = int(image.header["qform_code"]) > 0 or int(image.header["sform_code"]) > 0
    turns = nibabel.io_orientation(image.affine) if oriented else None
    if turns is None or not np.isfinite(turns).all():
        return _without_slice_axis(values)
    canonical = nibabel.apply_orientation(values, turns)  # axes to the patient's right, front and head
    return _without_slice_axis(canonical)[::-1, ::-1]


def _without_slice_axis(values_XYZ: Values) -> Values:
    """[H, W] of a single slice: the last axis of length 1 is dropped, the first that is left gives the columns."""
    axis = max(a for a in range(3) if values_XYZ.shape[a] == 1)
    return np.squeeze(values_XYZ, axis=axis).T
