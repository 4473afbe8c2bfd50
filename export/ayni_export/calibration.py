"""What a segmentation's probabilities mean, in words: the report and the model card say the same. Needs no numpy."""

from __future__ import annotations

from ayni_export.bundle import BundleInfo

FEW_HELD_OUT = 100  # a calibration on fewer images is called rough


def calibration_words(info: BundleInfo) -> str:
    """Whether a probability of .9 can be taken as such, and on how many images that rests."""
    if info.routed is not None:
        return "the probabilities are not calibrated: no image of this place has a label"
    num_images = info.validation.num_images
    if info.temperature == 1:  # what training leaves if it has too few images to say
        return f"the probabilities are not calibrated, as too few {images_word(info)} were held out"
    rough = ", which is rough" if num_images < FEW_HELD_OUT else ""
    points = "voxels" if info.image.depth else "pixels"
    of_what = f"the {points} of {num_images} held-out {images_word(info)} of the site"
    return f"the probabilities are calibrated on {of_what}{rough}"


def images_word(info: BundleInfo) -> str:
    return "volumes" if info.image.depth else "images"
