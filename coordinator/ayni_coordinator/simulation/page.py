"""The page that compares the methods, and its pictures: everything on it is made from the rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ayni.artefacts.files import write_atomic
from ayni.errors import DataError
from ayni_coordinator.simulation import page_claims, page_tables
from ayni_coordinator.simulation.evidence import TaskEvidence, by_task
from ayni_coordinator.simulation.markdown import plain
from ayni_coordinator.simulation.page_few_labels import few_labels_section, lead_grows_section
from ayni_coordinator.simulation.page_gaps import gaps
from ayni_coordinator.simulation.page_tables import ALONE, OURS, metric_name
from ayni_coordinator.simulation.page_unseen import unseen_section
from ayni_coordinator.simulation.plots import bytes_plot, dot_plot
from ayni_coordinator.simulation.results import Row
from ayni_coordinator.simulation.statistics import NUM_RESAMPLES

HOW_TO_READ = f"""\
- **Sites.** Small sites are clinics with few images, large ones are hospitals; each counts once, whatever its size. A
  score is the mean over sites and seeds, on test images by which no network was chosen.
- **Intervals** are of 95 % by a bootstrap of {NUM_RESAMPLES:,} resamples over seeds and sites. A resample draws seeds
  and, apart from them, sites, with replacement, and takes the mean where they cross: a site has the same size at every
  seed, and a seed's run gives one global model to all its sites, so neither single results nor the sites within a seed
  are independent, and drawing those would give intervals that are too narrow. Of n it draws n − 1, so that the spread
  is that of the unbiased estimate. The intervals speak of further seeds, and of further sites like these.
- **How far to trust them.** Three seeds and two to six sites are few. Tried on made-up figures whose true mean is
  known, such an interval held it in about nine of ten cases (eight of ten with two sites that differ much), not in 95
  of 100. That the test images are few is not in them: all methods are tested on the same ones. Nothing is corrected for
  the number of comparisons: of forty with nothing behind them, two to four would look like something.
- **Differences** (over `{ALONE}`, over `{OURS}`) are paired: the same seed, the same site, another method; a pair is
  drawn as one. **Bold**: the interval lies on the better side of zero; *italic*: on the worse side.
- **Bytes and seconds** are those of a small site: up and down together, and processor seconds of one thread for its own
  work; means over small sites and seeds, of the whole run divided by its rounds.
- **–** stands for a figure that is not there; (10 of 12) says that so many of the seeds and sites gave one."""


def write_page(rows: Sequence[Row], markdown: Path) -> None:
    """Writes the page, and beside it two pictures for each task. The same rows give the same bytes.

    A file of the page's name with `_notes` before its ending (`results_notes.md`) is taken into the page as it is.
    Raises DataError if there are no rows, or two for the same site of the same run.
    """
    if not rows:
        raise DataError("there are no rows to make a page of. Run `ayni simulate` first.")
    everything = by_task(rows)
    notes = markdown.with_name(f"{markdown.stem}_notes{markdown.suffix}")
    written = notes.read_text(encoding="utf-8") if notes.exists() else ""
    pictures = {}
    for evidence in _with_sites_that_took_part(everything):
        pictures[picture_name(markdown, evidence.task)] = dot_plot(evidence)
        pictures[picture_name(markdown, evidence.task, "bytes")] = bytes_plot(evidence)
    page = "\n\n".join(_paragraphs(everything, markdown, notes.name, written.strip())) + "\n"
    for name, picture in pictures.items():
        write_atomic(markdown.with_name(name), picture.encode())
    write_atomic(markdown, page.encode())  # last: it names the pictures


def picture_name(markdown: Path, task: str, what: str = "") -> str:
    """
    >>> picture_name(Path("docs/results.md"), "skin lesion/8", "bytes")
    'results-skin-lesion-8-bytes.svg'
    """
    words = [markdown.stem, *re.findall(r"\w+", task), *([what] if what else [])]
    return f"{'-'.join(words)}.svg"


def _paragraphs(everything: Sequence[TaskEvidence], markdown: Path, notes_name: str, notes: str) -> Iterator[str]:
    yield "# Results: which method for which task"
    yield (
        "Made by `ayni results` from the rows of `ayni simulate`; every figure and every verdict is computed. What "
        f"people wrote is from `{notes_name}` and stands under *Notes*."
    )
    federated = _with_sites_that_took_part(everything)
    yield "## What the small sites gain"
    yield f"Mean difference to `{ALONE}` at the small sites, with its 95 % interval; how to read it is said below."
    yield page_tables.summary_matrix(federated)
    if notes:
        yield "## Notes"
        yield f"<!-- from {notes_name}: write there, not here -->\n\n{notes}\n\n<!-- end of {notes_name} -->"
    yield "## What held and what did not work"
    yield (
        "*holds*: the interval says so. *not shown*: the mean says so, the interval does not. Up to "
        f"{100 * (page_claims.SAME_BYTES - 1):.0f} % more bytes count as no more. The last claim is judged at the "
        "large site that fares worst, and by the interval over all of them."
    )
    yield from page_claims.claims_section(federated)
    yield from page_claims.parts_section(federated)
    yield from few_labels_section(federated)
    yield from lead_grows_section(federated)
    for evidence in federated:
        yield from _task_section(evidence, markdown)
    yield from unseen_section(everything)
    yield "## What is missing here"
    yield "\n".join(f"- {sentence}" for sentence in gaps(everything)) or "Every method has every seed and site."
    yield "## How to read this"
    yield HOW_TO_READ
    yield "## The methods"
    yield page_tables.method_list(everything)


def _with_sites_that_took_part(everything: Sequence[TaskEvidence]) -> list[TaskEvidence]:
    return [evidence for evidence in everything if evidence.methods]


def _task_section(evidence: TaskEvidence, markdown: Path) -> Iterator[str]:
    task, metric = plain(evidence.task), metric_name(evidence.metric)
    yield f"## {task}"
    yield f"{_sites_in_words(evidence)} Seeds: {', '.join(map(str, evidence.seeds))}. Main metric: {metric}."
    yield page_tables.main_table(evidence)
    yield f"![{task}: {metric} of each method]({picture_name(markdown, evidence.task)})"
    yield f"![{task}: gain over alone against bytes]({picture_name(markdown, evidence.task, 'bytes')})"
    if second := page_tables.second_table(evidence):
        yield second
    if of_each := page_tables.structures_table(evidence):
        yield of_each


def _sites_in_words(evidence: TaskEvidence) -> str:
    said = []
    for role, what in (("clinic", "small"), ("hospital", "large")):
        sites = sorted({row.site for row in evidence.rows if row.role == role})
        images = [row.num_train for row in evidence.rows if row.role == role]
        if sites:
            plural = "" if len(sites) == 1 else "s"
            said.append(f"{len(sites)} {what} site{plural} ({min(images)} to {max(images)} training images)")
    return f"{' and '.join(said)}." if said else ""
