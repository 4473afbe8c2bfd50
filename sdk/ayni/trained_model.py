"""What training leaves behind and export takes up: one folder with `weights.safetensors` and `model.json`.

A site has up to two of them: `HOME/models/federated` and `HOME/models/alone`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ayni.errors import UserError
from ayni.task import ResNetSettings, Role, Task

WEIGHTS_FILE = "weights.safetensors"
MODEL_FILE = "model.json"


class Scores(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures on one set of images. `auc` is the area under the ROC curve (macro over classes if more than two)."""

    num_images: int
    auc: float
    balanced_accuracy: float


class TrainedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network that a site uses for diagnosis, with all that export and the model card need.

    `pixel_mean` and `pixel_std` (per channel, of pixels scaled to 0..1) are the normalisation that training used.
    `temperature` divides the logits so that the probabilities are calibrated on the site's held-out images.
    """

    kind: str  # "federated" or "alone"
    site: str
    role: Role
    task: Task
    network: ResNetSettings
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
