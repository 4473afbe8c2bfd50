"""One run: a method on a task with a seed, from the data on the disk to one row per site.

Every site is trained by what the method says, in the order of the experiment, in one process; messages pass in
memory, encoded as on the wire. Test images are touched once, at the end.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from ayni.errors import UserError
from ayni.learning.batches import as_tensor
from ayni.learning.models import best_of
from ayni.learning.scores import answers, final_scores
from ayni.learning.site_data import own_images
from ayni.task import Task
from ayni_coordinator.simulation.collection import Dealt, deal, read_plans
from ayni_coordinator.simulation.experiment import METHODS, Setting
from ayni_coordinator.simulation.jobs import Job, Tell
from ayni_coordinator.simulation.loading import load_collection
from ayni_coordinator.simulation.method import Candidate, Message, Method, Setup, SimulatedSite
from ayni_coordinator.simulation.public import load_public
from ayni_coordinator.simulation.results import HELD_OUT, Row
from ayni_coordinator.simulation.teachers import centre_of


def method_named(name: str) -> Method:
    module = importlib.import_module(f"{METHODS}.{name}")
    method: Method = module.METHOD
    return method


def run_job(job: Job, tell: Tell) -> list[Row]:
    """Raises UserError for data or settings that will not do."""
    torch.set_num_threads(job.num_threads)
    torch.use_deterministic_algorithms(True)
    if job.left_out:
        from ayni_coordinator.simulation.unseen.run import rows_of_left_out

        return rows_of_left_out(job, tell)
    if job.entry.personal:
        from ayni_coordinator.simulation.personal import rows_of_personal

        return rows_of_personal(job, tell)
    method = method_named(job.method)
    setup, dealt = set_up(job, method)
    outcomes = run_rounds(method, setup, tell)
    return held_out_rows(job, setup, outcomes) if job.trial else rows_of(job, setup, dealt, outcomes)


def set_up(job: Job, method: Method) -> tuple[Setup, list[Dealt]]:
    """What the method is given, and the same sites with their test images, which it is not."""
    task = method.change_task(msgspec.structs.replace(job.task, seed=job.seed))
    plans, data = read_plans(job.entry), Path(job.data_folder)
    collection = load_collection(data, job.entry.data, task, job.entry.crop)
    dealt, repository = deal(collection, plans, seed=job.seed)
    public = load_public(collection, plans.public, task, data, method)
    centre = None
    if method.taught or len(repository):
        centre = centre_of(collection, repository, task, public.images.normalise, data)
    del collection
    return Setup(task, tuple(_site(one, task) for one in dealt), public, _settings(method, job), centre), dealt


def _site(dealt: Dealt, task: Task) -> SimulatedSite:
    own = own_images(dealt.pixels_NHWK, dealt.truth, task, dealt.name, unlabelled=dealt.unlabelled_NHWK)
    return SimulatedSite(dealt.name, dealt.role, own, torch.from_numpy(dealt.hidden_truth))


def _settings(method: Method, job: Job) -> Mapping[str, Setting]:
    unknown = sorted(set(job.settings) - set(method.settings))
    if unknown:
        raise UserError(f"{job.method} has no setting {unknown[0]!r}; it has {', '.join(method.settings) or 'none'}.")
    for name, value in job.settings.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"the setting {name} of {job.method} is {value!r}; it must be a number.")
    return {**method.settings, **job.settings}


class Outcome(msgspec.Struct, kw_only=True):
    """What a run cost a site, and the networks that it may diagnose with."""

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    candidates: Sequence[Candidate] = ()


def run_rounds(method: Method, setup: Setup, tell: Tell) -> dict[str, Outcome]:
    """All rounds; the seconds are the processor's, of the site's own work."""
    outcomes = {site.name: Outcome() for site in setup.sites}
    server, broadcast = method.open(setup)
    states: dict[str, Any] = {}
    for site in setup.sites:
        with _Clock(outcomes[site.name]):
            states[site.name] = method.init(setup, site)
    num_turns = setup.num_rounds * len(setup.sites)
    for round_number in range(1, setup.num_rounds + 1):
        messages: dict[str, Message] = {}
        for number, site in enumerate(setup.sites):
            received = _receive(broadcast.to(site.role), outcomes[site.name])
            with _Clock(outcomes[site.name]):
                sent = method.site_step(setup, states[site.name], received, round_number)
            outcomes[site.name].bytes_up += sum(map(len, sent.values()))
            messages[site.name] = sent
            tell((round_number - 1) * len(setup.sites) + number + 1, num_turns)
        server, broadcast = method.aggregate(setup, server, dict(sorted(messages.items())), round_number)
    for site in setup.sites:
        received = _receive(broadcast.to(site.role), outcomes[site.name])
        outcomes[site.name].candidates = method.candidates(setup, states[site.name], received)
    return outcomes


def _receive(message: Message, outcome: Outcome) -> Message:
    outcome.bytes_down += sum(map(len, message.values()))
    return message


class _Clock:
    """Adds the processor's seconds to an outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def __enter__(self) -> None:
        self._began_s = time.process_time()

    def __exit__(self, *error: object) -> None:
        self._outcome.seconds += time.process_time() - self._began_s


def chosen_by_holdout(candidates: Sequence[Candidate], site: SimulatedSite, setup: Setup) -> Candidate:
    """By the rule that the product has: the first, unless another is better by more than chance."""
    truth = site.own.holdout_truth
    if len(candidates) == 1 or not len(truth):
        return candidates[0]
    logits = [answers(one.network.eval(), site.own.holdout_MCHW, one.normalise) for one in candidates]
    figures = [setup.objective.score(some, truth).main for some in logits]
    return candidates[best_of(figures, setup.objective.chance(logits[0], truth))]


def held_out_rows(job: Job, setup: Setup, outcomes: Mapping[str, Outcome]) -> list[Row]:
    """One per site that holds images out, with the figure on these alone: what settings are chosen by."""
    rows = []
    for site in setup.sites:
        if len(truth := site.own.holdout_truth):
            chosen = chosen_by_holdout(outcomes[site.name].candidates, site, setup)
            logits = answers(chosen.network.eval(), site.own.holdout_MCHW, chosen.normalise)
            metrics = {HELD_OUT: round(setup.objective.score(logits, truth).main, 6)}
            rows.append(_row(job, setup, site, site.num_examples + len(truth), outcomes[site.name], metrics))
    return rows


def rows_of(job: Job, setup: Setup, dealt: Sequence[Dealt], outcomes: Mapping[str, Outcome]) -> list[Row]:
    """One per site, in the order of the experiment."""
    rows = []
    for one in dealt:
        site, outcome = next(site for site in setup.sites if site.name == one.name), outcomes[one.name]
        chosen = chosen_by_holdout(outcome.candidates, site, setup)
        metrics = {name: round(value, 6) for name, value in figures_on_test(chosen, one, setup.task).items()}
        rows.append(_row(job, setup, site, len(one.truth), outcome, metrics))
    return rows


def _row(
    job: Job, setup: Setup, site: SimulatedSite, num_train: int, outcome: Outcome, metrics: dict[str, float]
) -> Row:
    return Row(
        task=job.task.name,
        method=job.method,
        seed=job.seed,
        site=site.name,
        role=site.role,
        num_train=num_train,
        metrics=metrics,
        bytes_up=outcome.bytes_up,
        bytes_down=outcome.bytes_down,
        seconds=round(outcome.seconds, 2),
        rounds=setup.num_rounds,
    )


def figures_on_test(chosen: Candidate, dealt: Dealt, task: Task) -> dict[str, float]:
    logits = answers(chosen.network.eval(), as_tensor(dealt.test_pixels_NHWK), chosen.normalise)
    return final_scores(logits, torch.from_numpy(dealt.test_truth), task).figures()
