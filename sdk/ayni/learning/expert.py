"""From a site's personal model to what it shares as an expert."""

from __future__ import annotations

from pathlib import Path

from ayni.artefacts.files import write_atomic
from ayni.errors import UserError
from ayni.jobs import Done, MakeExpert
from ayni.learning.batches import Normaliser
from ayni.learning.home_gain import home_gain
from ayni.learning.models import read_weights
from ayni.learning.networks import load_weights, seeded_network
from ayni.learning.site_data import OwnImages, load_own_images
from ayni.learning.statistics import training_statistics
from ayni.learning.steps import peak_rss_mb
from ayni.learning.training import load_global, read_task_of
from ayni.tensors.expert import Expert, ExpertInfo, encode_expert
from ayni.trained_model import TrainedModel


def make_expert(job: MakeExpert) -> Done:
    """Writes the expert; without statistics if there are too few training images (`MIN_CASES`), and without what it
    gains at home if there are too few held-out ones, or the data changed since it was trained.

    The weights are in half precision, as first weights are, unless all of this task's travel in 32 bits.
    """
    context, task = job.context, read_task_of(job.context)
    if task.personal is None:
        raise UserError("this federation's task keeps no personal models, so there is none to share.")
    folder = Path(context.home) / "models" / "personal"
    model, weights = TrainedModel.read(folder), read_weights(folder)
    own, normalise = load_own_images(context, task), Normaliser(model.pixel_mean, model.pixel_std)
    network = seeded_network(task.small_network, task, task.seed)
    load_weights(network, load_global(job.global_model, job.global_digest, network))
    statistics_2F = training_statistics(network, own.train_NCHW, normalise)
    num_train = len(own.train_truth)
    personal = seeded_network(task.small_network, task, task.seed)
    load_weights(personal, weights)
    num_held_out, gain, spread = 0, 0.0, 0.0
    if _is_what_was_trained_on(own, model):  # else what is held out now may have been trained on
        num_held_out, gain, spread = home_gain(personal, network, own, normalise, task.kind)
    info = ExpertInfo(
        site=context.site,
        task=task.name,
        rounds=model.rounds,
        decay=task.personal.decay if task.personal.kind == "iop" else 0.0,
        num_train=num_train,
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        reference_digest=job.global_digest if statistics_2F is not None or num_held_out else "",
        num_cases=num_train if statistics_2F is not None else 0,
        num_held_out=num_held_out,
        home_gain=round(gain, 4),
        home_spread=round(spread, 4),
    )
    expert = Expert(info, weights, None if statistics_2F is None else statistics_2F.numpy())
    write_atomic(Path(job.expert_out), encode_expert(expert, "fp32" if task.traffic.form == "fp32" else "fp16"))
    return Done(num_examples=num_train, peak_rss_mb=peak_rss_mb())


def _is_what_was_trained_on(own: OwnImages, model: TrainedModel) -> bool:
    """As far as the model remembers: the numbers of images of each class."""
    now = (own.count(truth, model.task.classes) for truth in (own.train_truth, own.holdout_truth))
    return tuple(now) == (model.num_train_per_class, model.num_holdout_per_class)
