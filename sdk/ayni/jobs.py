"""What a site's agent asks of its training process, and what comes back: one JSON object per line.

The agent talks to the coordinator and holds no torch; the training process (`ayni.learning.worker`) holds torch
and no socket. Paths are absolute and lie in the site's own folder, but for the data.
"""

from __future__ import annotations

import msgspec

from ayni.task import Participation, Role
from ayni.trained_model import Scores


class SiteContext(msgspec.Struct, frozen=True, kw_only=True):
    """What stays the same from job to job."""

    home: str  # training state lies in HOME/training, trained models in HOME/models
    task_path: str  # the task as JSON
    site: str
    role: Role
    participation: Participation
    data: str  # a folder with labels.csv, or a .npz file
    num_threads: int = 1
    memory_mb: int = 0  # 0: no limit


class TrainRound(msgspec.Struct, frozen=True, kw_only=True, tag="train-round"):
    """Train one round. Running the same job again gives the same bytes, also after kill -9 in the middle.

    `global_model` lists the artefacts that make the global model: one whole, then changes; empty if no weights
    travel. Its tensors' digest must be `global_digest`. `guidance` are the foundation model's targets, `consensus`
    the hospitals', `labels` the truth of public images, `teacher` the network that a task with `dual_kd` has. What is
    to be sent is written to `update_out` and `soft_labels_out` if these are given.
    """

    context: SiteContext
    round_number: int
    global_model: list[str]
    global_digest: str
    public_set: str | None
    guidance: str | None
    consensus: str | None
    update_out: str | None
    soft_labels_out: str | None
    teacher: str | None = None
    labels: str | None = None


class FinishTraining(msgspec.Struct, frozen=True, kw_only=True, tag="finish"):
    """After the last round: choose the network for diagnosis on held-out data, write HOME/models/federated; and
    HOME/models/personal if the task has `personal`."""

    context: SiteContext
    rounds: int
    global_model: list[str]
    global_digest: str
    teacher: str | None = None


class TrainAlone(msgspec.Struct, frozen=True, kw_only=True, tag="train-alone"):
    """The same network, the same budget of steps, without the federation: HOME/models/alone."""

    context: SiteContext


class MakeExpert(msgspec.Struct, frozen=True, kw_only=True, tag="make-expert"):
    """Write the personal model (HOME/models/personal) as an expert to `expert_out`, with the statistics of the site's
    training images in the global model, and what it gains over that on held-out ones. The same job gives the same
    bytes."""

    context: SiteContext
    global_model: list[str]
    global_digest: str
    expert_out: str


class Evaluate(msgspec.Struct, frozen=True, kw_only=True, tag="evaluate"):
    """Score every model in HOME/models on a labelled set (`split` is the npz's part)."""

    context: SiteContext
    data: str
    split: str


Job = TrainRound | FinishTraining | TrainAlone | MakeExpert | Evaluate


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    step: int
    num_steps: int
    what: str
    loss: float


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """`num_examples` is the number of private training images; the scores are on held-out data, or on the set
    that Evaluate was given (one entry per model)."""

    num_examples: int = 0
    train_s: float = 0.0
    peak_rss_mb: int = 0
    scores: dict[str, Scores] = {}


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """`user_error`: the text is for the person at the site, and no retry will help before they act."""

    message: str
    user_error: bool


Event = Progress | Done | Failed
