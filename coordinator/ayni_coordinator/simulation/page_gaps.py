"""What the page of results lacks, said in sentences: methods, seeds, sites and figures that are not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ayni_coordinator.simulation.evidence import TaskEvidence
from ayni_coordinator.simulation.markdown import listed, plain
from ayni_coordinator.simulation.method_titles import in_page_order
from ayni_coordinator.simulation.page_few_labels import is_of_few_labels
from ayni_coordinator.simulation.page_tables import metric_name, named

ENOUGH_SEEDS = 3


def gaps(everything: Sequence[TaskEvidence]) -> list[str]:
    """One sentence for each gap."""
    found = []
    for kind in (False, True):  # of tasks with few labels, other methods are compared
        alike = [evidence for evidence in everything if is_of_few_labels(evidence) == kind]
        methods = in_page_order(method for evidence in alike for method in evidence.methods)
        found += [sentence for evidence in alike for sentence in _gaps(evidence, methods)]
    return found


def _gaps(evidence: TaskEvidence, methods: Sequence[str]) -> Iterator[str]:
    task = plain(evidence.task)
    absent = [named(method) for method in methods if evidence.methods and method not in evidence.methods]
    if absent:
        yield f"{task}: no run of {listed(absent)}."
    if evidence.methods and len(evidence.seeds) < ENOUGH_SEEDS:
        yield f"{task}: {len(evidence.seeds)} of the {ENOUGH_SEEDS} seeds that the intervals need to mean much."
    methods_there = in_page_order(row.method for row in evidence.rows)
    without: dict[tuple[str, ...], list[str]] = {}  # methods by the seeds that they lack
    for method in methods_there:
        lacking = tuple(map(str, sorted(evidence.seeds_beside(method) - evidence.seeds_of(method))))
        without.setdefault(lacking, []).append(named(method))
    for seeds, lacks in without.items():
        if seeds:
            yield f"{task}: {listed(lacks)} {'has' if len(lacks) == 1 else 'have'} no run of seed {listed(seeds)}."
    for method in methods_there:
        yield from _lost_sites(evidence, method)


def _lost_sites(evidence: TaskEvidence, method: str) -> Iterator[str]:
    """Of the seeds that were run: sites without a row, and rows without the main figure."""
    seeds, of_this = evidence.seeds_of(method), [row for row in evidence.rows if row.method == method]
    of_unseen = {row.role == "unseen" for row in of_this}  # what is only for unseen sites lacks no others
    wanted = {(r.seed, r.site) for r in evidence.rows if r.seed in seeds and (r.role == "unseen") in of_unseen}
    lost = sorted(wanted - {(row.seed, row.site) for row in of_this})
    if lost:
        sites = [f"{plain(site)} (seed {seed})" for seed, site in lost]
        yield f"{plain(evidence.task)}: {named(method)} has no row of {listed(sites)}."
    silent = sum(evidence.metric not in row.metrics for row in of_this)
    if silent:
        name = metric_name(evidence.metric)
        yield f"{plain(evidence.task)}: {silent} of the {len(of_this)} rows of {named(method)} have no {name}."
