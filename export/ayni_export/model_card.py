"""The model card: what a person should know before a model is used. Markdown, plain words."""

from __future__ import annotations

from ayni.trained_model import Scores
from ayni_export.bundle import BundleInfo
from ayni_export.calibration import calibration_words

FEW_IMAGES = 100  # below, a figure is called rough


def model_card(info: BundleInfo) -> str:
    """The text of docs/model_card.md; every figure stands beside the number of images behind it."""
    rounds = f"{info.rounds} rounds of federated training at this site"
    how = {
        "federated": f"{rounds}; no image left any site",
        "personal": f"this site's personal model, kept beside the federation's, after {rounds}; no image left any site",
        "alone": "trained by this site alone, without the federation",
    }[info.kind]
    parity = info.models[0].parity
    size = f"{info.image.width} x {info.image.height} pixels, {'grey' if info.image.channels == 1 else 'colour'}"
    return f"""# {info.title}

Model `{info.name}`, version `{info.version}`, for the {info.role} **{info.site}**.

## Intended use

{info.intended_use}

{_what_it_does(info)} on images of {size}, and nothing else. It is not a medical device.

## How it was made

- {how} ({info.steps} optimiser steps at this site).
- Chosen on the site's own held-out images: {info.chosen}.
- Finished {info.created}. {_calibration(info)}

## Data at this site

{_counts(info)}

## Validation

{_validation(info)}

## Limits

- Not checked on other devices, other patients or other ages than those of the sites that took part.
{_limits(info)}

## Technical

- ONNX, single precision; the preprocessing is inside. Input `pixels`: uint8 [images, {info.image.channels}, \
{info.image.height}, {info.image.width}].
- ONNX Runtime {parity.onnxruntime_version} against PyTorch {parity.pytorch_version} on {parity.num_images} images: \
logits within {parity.logits:.1e} (allowed {parity.tolerance:g}).
- SHA-256 of the weights: `{info.weights_sha256}`
"""


def licence_note(info: BundleInfo) -> str:
    return (
        f"This bundle holds a model that the site {info.site!r} made within the task {info.task!r}.\n"
        "The rights in the model lie with that site and with its federation, under the terms on which they agreed;\n"
        "the bundle by itself grants none. Ayni, the software that made it, is licensed under Apache-2.0.\n"
        "The model is provided as is, without warranty of any kind. It is not a medical device.\n"
    )


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
    return f"Probabilities are calibrated with temperature {info.temperature:.3f} on the held-out images."


def _counts(info: BundleInfo) -> str:
    """A table. One image shows any number of structures, so only classes can be summed up."""
    rows = [
        (name, info.num_train_per_class.get(name, 0), info.num_holdout_per_class.get(name, 0)) for name in info.classes
    ]
    head = "| images that show | trained on | held out |"
    if info.task_kind == "classification":
        head = "| class | trained on | held out |"
        rows.append(("**all**", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = [f"| {name} | {num_train} | {num_holdout} |" for name, num_train, num_holdout in rows]
    return "\n".join([head, "|---|---:|---:|", *lines])


def _limits(info: BundleInfo) -> str:
    if info.task_kind == "segmentation":
        return """- An image of another kind gets outlines too, and they mean nothing.
- A share of sure pixels tells nothing of what was missed. Look at every outline beside the image.
- Details finer than a pixel of what the model sees cannot be outlined, however large the image's file is."""
    return """- An image of another kind gets an answer too, with a confidence that means nothing.
- The heat map shows where hiding a part of the image lowers the answer most. It is no segmentation, and no proof.
- The calibration holds for images like the held-out ones, in about the same mixture of classes."""


def _validation(info: BundleInfo) -> str:
    scores = info.validation
    if not scores.num_images:
        return "**Not measured: the site had too few images to hold any out.**"
    rough = f"**With {scores.num_images} images these figures are rough.**"
    caution = rough if scores.num_images < FEW_IMAGES else "They describe this site's patients, not those of another."
    return f"""On {scores.num_images} held-out images of this site, which were also used to choose and calibrate it:

{_figures(scores)}

{caution}"""


def _figures(scores: Scores) -> str:
    if scores.dice is None:
        lines = [f"area under the ROC curve {scores.auc:.3f}", f"balanced accuracy {scores.balanced_accuracy:.3f}"]
    else:
        lines = [f"Dice {scores.dice:.3f}, the mean over images and structures (1 is perfect)"]
    if scores.hd95 is not None:
        lines.append(f"95th percentile of the outlines' distances {scores.hd95:.1f} pixels of what the model sees")
    return "\n".join(f"- {line}" for line in lines)
