"""Whether a site's own network is better than the global model even at home: on images that the site held out.

Where it is not, nothing speaks for mixing it in elsewhere. What leaves the site is one mean: it tells how good two
models are, and nothing of what an image shows.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ayni.learning.batches import Normaliser
from ayni.learning.scores import answers, dice_of_each
from ayni.learning.site_data import OwnImages
from ayni.task import Kind


def home_gain(personal: nn.Module, general: nn.Module, own: OwnImages, normalise: Normaliser, kind: Kind) -> float:
    """Of the site's held-out images the mean of `personal`'s figure less `general`'s; 0 if it holds none out.

    The figure is an image's Dice, the mean over structures, or the logarithm (nats) of what its true class was given:
    an area under a curve says nothing of the few images that a clinic can hold out.
    """
    if not len(own.holdout_truth):
        return 0.0
    figures = [
        _figure(answers(network.eval(), own.holdout_MCHW, normalise), own.holdout_truth, kind)
        for network in (personal, general)
    ]
    return float((figures[0] - figures[1]).mean())


def _figure(logits: Tensor, truth: Tensor, kind: Kind) -> Tensor:
    """[M], higher is better."""
    if kind == "segmentation":
        return dice_of_each(logits, truth).double()
    return -functional.cross_entropy(logits.double(), truth, reduction="none")
