"""The model card: what a person should know before a model is used. Markdown, plain words."""

from __future__ import annotations

from ayni.trained_model import Scores
from ayni_export.bundle import BundleInfo
from ayni_export.calibration import calibration_words, images_word

SHOWS_NOTHING = (
    "By these figures it has learnt nothing: do not use it. Train longer, or look at the data and their labels."
)
FEW_IMAGES = 100  # below, a figure is called rough
_FIGURES = {"dice": "Dice", "hd95": "HD95", "assd": "ASSD"}


def model_card(info: BundleInfo) -> str:
    """The text of docs/model_card.md; every figure stands beside the number of images behind it."""
    rounds = f"{info.rounds} rounds of federated training at this site"
    how = {
        "federated": f"{rounds}; no image left any site",
        "personal": f"this site's personal model, kept beside the federation's, after {rounds}; no image left any site",
        "alone": "trained by this site alone, without the federation",
    }[info.kind]
    parity = info.models[0].parity
    images, shape = images_word(info), ", ".join(map(str, (info.image.channels, *info.image.seen)))
    return f"""# {info.title}

Model `{info.name}`, version `{info.version}`, for the {info.role} **{info.site}**.

## Intended use

{info.intended_use}

{_what_it_does(info)} on {images} of {_size(info)}, and nothing else. It is not a medical device.

## How it was made

- {how} ({info.steps} optimiser steps at this site).
{_others(info)}\
- Chosen on the site's own held-out {images}: {info.chosen}.
- Finished {info.created}. {_calibration(info)}

## Data at this site

{_counts(info)}

## Validation

{_validation(info)}

## Limits

- Not checked on other devices, other patients or other ages than those of the sites that took part.
{_limits(info)}

## Technical

- ONNX, single precision; {_preprocessing(info)}. Input `pixels`: uint8 [{images}, {shape}].
- ONNX Runtime {parity.onnxruntime_version} against PyTorch {parity.pytorch_version} on {parity.num_images} {images}: \
logits within {parity.logits:.1e} (allowed {parity.tolerance:g}).
- SHA-256 of the weights that were trained here: `{info.weights_sha256}`
"""


def _others(info: BundleInfo) -> str:
    return f"- It holds {info.layers_of_others}; no site trained them.\n" if info.layers_of_others else ""


def licence_note(info: BundleInfo) -> str:
    return (
        f"This bundle holds a model that the site {info.site!r} made within the task {info.task!r}.\n"
        "The rights in the model lie with that site and with its federation, under the terms on which they agreed;\n"
        "the bundle by itself grants none. Ayni, the software that made it, is licensed under Apache-2.0.\n"
        "The model is provided as is, without warranty of any kind. It is not a medical device.\n"
        f"{licence_of_others(info)}"
    )


def licence_of_others(info: BundleInfo) -> str:
    return f"It holds {info.layers_of_others}.\n" if info.layers_of_others else ""


def _size(info: BundleInfo) -> str:
    image, colours = info.image, "grey" if info.image.channels == 1 else "colour"
    if not image.depth:
        return f"{image.width} x {image.height} pixels, {colours}"
    steps = "" if image.spacing_mm is None else f" of {' x '.join(f'{step:g}' for step in image.spacing_mm)} mm"
    return f"up to {' x '.join(map(str, image.size))} voxels{steps} (slices x rows x columns), {colours}"


def _preprocessing(info: BundleInfo) -> str:
    if info.image.depth:
        return f"volumes are brought to 8 bits by the rules {info.rules}, and what follows is inside"
    return "the preprocessing is inside"


def _one_of(classes: tuple[str, ...]) -> str:
    if len(classes) == 1:
        return f"*{classes[0]}*"
    named = [f"*{name}*" for name in classes[:10]]
    more = [f"{len(classes) - 10} more"] if len(classes) > 10 else []
    return ", ".join((named + more)[:-1]) + " and " + (named + more)[-1]


def _what_it_does(info: BundleInfo) -> str:
    if info.task_kind == "segmentation":
        return f"It outlines {_one_of(info.classes)}"
    return f"It tells {_one_of(info.classes)} apart"


def _calibration(info: BundleInfo) -> str:
    if info.task_kind == "segmentation":
        words = calibration_words(info)
        return f"{words[0].upper()}{words[1:]} (temperature {info.temperature:.3f})."
    return f"Probabilities are calibrated with temperature {info.temperature:.3f} on the held-out {images_word(info)}."


def _counts(info: BundleInfo) -> str:
    """A table. One image shows any number of structures, so only classes can be summed up."""
    rows = [
        (name, info.num_train_per_class.get(name, 0), info.num_holdout_per_class.get(name, 0)) for name in info.classes
    ]
    head = f"| {images_word(info)} that show | trained on | held out |"
    if info.task_kind == "classification":
        head = "| class | trained on | held out |"
        rows.append(("**all**", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = [f"| {name} | {num_train} | {num_holdout} |" for name, num_train, num_holdout in rows]
    return "\n".join([head, "|---|---:|---:|", *lines])


def _limits(info: BundleInfo) -> str:
    if info.image.depth:
        return _limits_of_volumes(info)
    if info.task_kind == "segmentation":
        return """- An image of another kind gets outlines too, and they mean nothing.
- A share of sure pixels tells nothing of what was missed. Look at every outline beside the image.
- Details finer than a pixel of what the model sees cannot be outlined, however large the image's file is."""
    return """- An image of another kind gets an answer too, with a confidence that means nothing.
- The heat map shows where hiding a part of the image lowers the answer most. It is no segmentation, and no proof.
- The calibration holds for images like the held-out ones, in about the same mixture of classes."""


def _limits_of_volumes(info: BundleInfo) -> str:
    if info.task_kind == "segmentation":
        return """- A volume of another kind gets outlines too, and they mean nothing.
- A volume that is larger than those of training is looked at in overlapping parts, each without sight of the rest.
- A share of sure voxels tells nothing of what was missed. Look at every outline beside the volume.
- Details finer than a voxel of what the model sees cannot be outlined, however fine the file is."""
    return """- A volume of another kind gets an answer too, with a confidence that means nothing.
- A heat map, if there is one, shows where hiding a part lowers the answer most. It is no segmentation, and no proof.
- The calibration holds for volumes like the held-out ones, in about the same mixture of classes."""


def _validation(info: BundleInfo) -> str:
    scores = info.validation
    if not scores.num_images:
        return f"**Not measured: the site had too few {images_word(info)} to hold any out.**"
    rough = f"**With {scores.num_images} {images_word(info)} these figures are rough.**"
    caution = rough if scores.num_images < FEW_IMAGES else "They describe this site's patients, not those of another."
    if info.shows_nothing:
        caution = f"**{SHOWS_NOTHING}** {caution}"
    held_out = f"{scores.num_images} held-out {images_word(info)}"
    return f"""On {held_out} of this site, which were also used to choose and calibrate it:

{_figures(scores, images_word(info))}

{caution}"""


def _figures(scores: Scores, images: str) -> str:
    if scores.dice is None:
        lines = [f"area under the ROC curve {scores.auc:.3f}", f"balanced accuracy {scores.balanced_accuracy:.3f}"]
    else:
        lines = [f"Dice {scores.dice:.3f}, the mean over {images} and structures (1 is perfect)"]
    unit = "mm" if scores.unit == "mm" else "pixels of what the model sees"
    if scores.hd95 is not None:
        lines.append(f"95th percentile of the outlines' distances {scores.hd95:.1f} {unit}")
    if scores.assd is not None:
        lines.append(f"mean of the outlines' distances {scores.assd:.2f} {unit}")
    for name, figures in scores.structures.items():
        said = ", ".join(f"{_FIGURES.get(figure, figure)} {value:.3f}" for figure, value in figures.items())
        lines.append(f"{name}: {said}")
    return "\n".join(f"- {line}" for line in lines)
