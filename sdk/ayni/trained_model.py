"""What training leaves behind and export takes up: one folder with `weights.safetensors` and `model.json`.

A site has up to three of them, in `HOME/models`: `federated`, `personal` (its own small network beside the
federation's) and `alone`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from ayni.errors import UserError
from ayni.task import Architecture, Role, Task

WEIGHTS_FILE = "weights.safetensors"
MODEL_FILE = "model.json"
LEAST_DICE = 0.05  # below, outlines are where nothing is
MODEL_KINDS = ("federated", "personal", "alone")


class Scores(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Figures on one set of images. `auc` is the area under the ROC curve (macro over classes if more than two).

    Of a segmentation, `dice` is the mean over images and structures (both masks empty: 1), and `hd95` the mean of the
    95th percentile of the distances between the outlines (both masks empty: 0; one of them: the image's diagonal);
    None if it was not measured. `assd` is the mean of their average distance (both ways), of volumes only. `unit`:
    pixels of what the network sees, or mm. `structures` has the same figures of each. `auc` and `balanced_accuracy`
    then say nothing.
    """

    num_images: int
    auc: float = 0.5
    balanced_accuracy: float = 0.0
    dice: float | None = None
    hd95: float | None = None
    assd: float | None = None
    unit: Literal["pixels", "mm"] = "pixels"
    structures: dict[str, dict[str, float]] = {}

    @property
    def main(self) -> float:
        """What models are chosen by: Dice of a segmentation, AUC of a classification."""
        return self.auc if self.dice is None else self.dice

    @property
    def main_name(self) -> str:
        return "AUC" if self.dice is None else "Dice"

    @property
    def shows_nothing(self) -> bool:
        """Whether a model with these figures is no better than guessing, or outlines hardly a pixel rightly.

        >>> [Scores(num_images=9, auc=auc).shows_nothing for auc in (0.5, 0.51)]
        [True, False]
        """
        return self.num_images > 0 and (self.auc <= 0.5 if self.dice is None else self.dice < LEAST_DICE)

    def words(self) -> str:
        """
        >>> Scores(num_images=9, dice=0.9, hd95=2.0).words()
        'Dice 0.900, HD95 2.0 pixels'
        """
        if self.dice is None:
            return f"AUC {self.auc:.3f}, balanced accuracy {self.balanced_accuracy:.3f}"
        distances = {"HD95": self.hd95, "ASSD": self.assd}
        measured = [f", {name} {value:.1f} {self.unit}" for name, value in distances.items() if value is not None]
        return f"Dice {self.dice:.3f}" + "".join(measured)

    def figures(self) -> dict[str, float]:
        """What was measured, by its name; of a structure as `dice_NAME`."""
        if self.dice is None:
            return {"auc": self.auc, "balanced_accuracy": self.balanced_accuracy}
        whole = {"dice": self.dice, "hd95": self.hd95, "assd": self.assd}
        of_each = {f"{name}_{s}": value for s, figures in self.structures.items() for name, value in figures.items()}
        return {name: value for name, value in whole.items() if value is not None} | of_each


class TrainedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network that a site uses for diagnosis, with all that export and the model card need.

    `pixel_mean` and `pixel_std` (per channel, of pixels scaled to 0..1) are the normalisation that training used.
    `temperature` divides the logits so that the probabilities are calibrated on the site's held-out images.
    """

    kind: str  # one of MODEL_KINDS
    site: str
    role: Role
    task: Task
    network: Architecture
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    temperature: float
    num_train_per_class: dict[str, int]
    num_holdout_per_class: dict[str, int]
    validation: Scores  # on the held-out part of the site's own data
    rounds: int  # federated ones that this site trained
    steps: int  # optimiser steps at this site in all
    chosen: str  # which candidate the held-out images chose, in words
    created: str  # ISO 8601, UTC

    @classmethod
    def read(cls, folder: Path) -> TrainedModel:
        try:
            return msgspec.json.decode((folder / MODEL_FILE).read_bytes(), type=cls)
        except FileNotFoundError:
            raise UserError(f"there is no trained model in {folder}. Run `ayni train` first.") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UserError(f"{folder / MODEL_FILE} is damaged ({error}). Run `ayni train` again.") from None
