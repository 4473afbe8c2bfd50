"""One left-out site of one seed: its federation is trained once, and every way answers the site's images."""

from __future__ import annotations

import time

from ayni_coordinator.simulation.jobs import Job, Tell
from ayni_coordinator.simulation.results import Row
from ayni_coordinator.simulation.unseen.federation import train_without
from ayni_coordinator.simulation.unseen.site import UnseenSite
from ayni_coordinator.simulation.unseen.ways import NUM_MODELS, WAYS, Way

BYTES_PER_WEIGHT = 2  # experts travel in half precision


def rows_of_left_out(job: Job, tell: Tell) -> list[Row]:
    """One row per way; seconds are the processor's for all of the site's images, and `num_train` the labels used."""
    plan = job.entry.leave_out
    assert plan is not None
    (group,) = plan.groups
    site = train_without(job, group, plan, tell)
    return [_row(job, group, name, way, site) for name, way in WAYS.items()]


def _row(job: Job, group: str, name: str, way: Way, site: UnseenSite) -> Row:
    began_s = time.process_time()
    logits = way(site)
    seconds = time.process_time() - began_s
    figures = site.figures(logits, site.truth, distances=True).figures()
    num_weights = sum(tensor.numel() for tensor in site.states[0].values())
    return Row(
        task=job.task.name,
        method=name,
        seed=job.seed,
        site=group,
        role="unseen",
        num_train=len(site.few.train_truth) + len(site.few.holdout_truth) if name == "fine_tune" else 0,
        metrics={metric: round(value, 6) for metric, value in figures.items()},
        bytes_up=0,
        bytes_down=BYTES_PER_WEIGHT * num_weights * NUM_MODELS.get(name, site.num_experts),
        seconds=round(seconds, 3),
        rounds=0,
    )
