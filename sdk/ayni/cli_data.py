"""The commands `ayni data ...`: look at data before anything is trained, and get public data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ayni.terminal import TerminalWatcher, print_json, size_text

if TYPE_CHECKING:
    from ayni.data.catalogue import DataSet
    from ayni.data.check import DataReport, MaskReport
    from ayni.data.check_masks import MaskValue

data_app = typer.Typer(help="Look at images before anything is trained; get public data sets.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
NUM_SHOWN = 10


@data_app.command("check")
def data_check(
    path: Annotated[
        Path,
        typer.Argument(help="A folder with labels.csv, or with images and masks; or a .npz file.", metavar="DIR"),
    ],
    unlabelled: Annotated[
        bool,
        typer.Option("--unlabelled", help="For a task with dual distillation: images may lack a mask or label."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Counts per class or mask value, sizes, duplicates, unreadable files - before anything is trained.

    Example: ayni data check x-rays
    """
    from ayni.data.check import DataReport, check_data

    with TerminalWatcher() as watcher:
        report = check_data(
            path, lambda done, total: watcher.progress("looking at images", done, total), unlabelled=unlabelled
        )
    if json:
        print_json(report)
    elif isinstance(report, DataReport):
        _show_labelled(report)
    else:
        _show_segmented(report)
    if not report.usable:
        raise typer.Exit(2)


def _show_labelled(report: DataReport) -> None:
    typer.echo(f"{report.path}: {report.num_images} labelled {_kind(report)} that can be read")
    if report.num_unlabelled or report.unlabelled_allowed:
        typer.echo(f"  without a label: {report.num_unlabelled}")
    typer.echo("  per class: " + ", ".join(f"{name}: {number}" for name, number in report.num_per_class.items()))
    _show_sizes(report)
    _show_lists(
        {
            "equal pixels": [" = ".join(group) for group in report.duplicates],
            "unreadable": [f"{bad.file} ({bad.reason})" for bad in report.unreadable],
            "image without a label": report.images_without_label,
            "empty label": [] if report.unlabelled_allowed else report.unlabelled,
            "label without an image": report.labels_without_image,
            "warning": report.warnings,
        },
        report.usable,
    )


def _show_segmented(report: MaskReport) -> None:
    typer.echo(f"{report.path}: {report.num_images} {_kind(report)} with a mask that can be read")
    if report.is_of_volumes or report.num_unlabelled or report.unlabelled_allowed:
        typer.echo(f"  without a mask: {report.num_unlabelled}")
    _show_sizes(report)
    values = {"all above 0": report.foreground, **report.mask_values}
    _show_lists(
        {
            "mask value": [_value_line(name, found, report) for name, found in values.items()],
            "empty mask": report.empty_masks,
            "equal pixels": [" = ".join(group) for group in report.duplicates],
            "unreadable": [f"{bad.file} ({bad.reason})" for bad in report.unreadable],
            "image without a mask": [] if report.unlabelled_allowed else report.images_without_mask,
            "mask without an image": report.masks_without_image,
            "wrong size": report.wrong_sizes,
            "warning": report.warnings,
        },
        report.usable,
    )


def _kind(report: DataReport | MaskReport) -> str:
    return "volumes" if report.is_of_volumes else "images"


def _value_line(name: str, found: MaskValue, report: MaskReport) -> str:
    whole = "volume" if report.is_of_volumes else "area"
    size = "" if found.mean_mm3 is None else f", {found.mean_mm3:.4g} mm3 in the mean"
    return f"{name} in {found.num_images} {_kind(report)}, where it takes {found.mean_share:.1%} of the {whole}{size}"


def _show_sizes(report: DataReport | MaskReport) -> None:
    _show_counts("sizes (slices x rows x columns)" if report.is_of_volumes else "sizes", report.sizes)
    if report.spacings:
        _show_counts("spacings", report.spacings)
        sides = " x ".join(f"{side:.4g}" for side in report.largest_mm)
        typer.echo(f"  longest sides: {sides} mm; the task's depth, height and width must hold them at its spacing")
    elif report.is_of_volumes:
        typer.echo("  spacings: none in a .npz file; they are taken to be the task's")


def _show_counts(title: str, counts: Mapping[str, int]) -> None:
    shown = [f"{name}: {number}" for name, number in list(counts.items())[:NUM_SHOWN]]
    more = [f"and {len(counts) - NUM_SHOWN} more {title.partition(' ')[0]}"] if len(counts) > NUM_SHOWN else []
    typer.echo(f"  {title}: " + ", ".join(shown + more))


def _show_lists(lists: Mapping[str, list[str]], usable: bool) -> None:
    for title, entries in lists.items():
        for entry in entries[:NUM_SHOWN]:
            typer.echo(f"  {title}: {entry}")
        if len(entries) > NUM_SHOWN:
            typer.echo(f"  {title}: and {len(entries) - NUM_SHOWN} more (--json lists all)")
    typer.echo("  usable for training" if usable else "  NOT usable for training: mend the lines above first")


@data_app.command("list")
def data_list(json: AsJson = False) -> None:
    """The public data sets that `ayni data fetch` knows, with their licences.

    Example: ayni data list
    """
    from ayni.data.catalogue import CATALOGUE

    if json:
        print_json(list(CATALOGUE.values()))
        return
    for data_set in CATALOGUE.values():
        way = "" if data_set.url else ", from a mirror only"
        typer.echo(f"{data_set.name}: {data_set.title}")
        typer.echo(f"    {size_text(data_set.num_bytes)}{way}; licence: {data_set.licence}")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A name that `ayni data list` shows.")],
    mirror: Annotated[
        Path | None,
        typer.Option("--from", help="A local folder that holds it, itself or one level below; no line is needed."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of all data; it gets NAME.npz, or a folder NAME.")] = Path(
        "data"
    ),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether the licence is accepted.")] = False,
    json: AsJson = False,
) -> None:
    """Get a public data set from its publisher or a local mirror; size, hash, licence and citation come first.

    It arrives whole and verified, or not at all; the same command goes on after a cut.

    Example: ayni data fetch pneumoniamnist
    """
    from ayni.data.catalogue import find_data_set
    from ayni.data.fetch import check_source, fetch, is_fetched

    data_set = find_data_set(name)
    with TerminalWatcher() as watcher:
        there = is_fetched(data_set, out, lambda done, total: _tell(watcher, "comparing", data_set, done, total))
    if not there:
        check_source(data_set, mirror)
        _introduce(data_set, mirror)
        if not yes:
            typer.confirm("Get it under this licence?", abort=True, err=True)
        with TerminalWatcher() as watcher:
            fetch(data_set, out, mirror, lambda done, total: _tell(watcher, "getting", data_set, done, total))
    target = out / data_set.target
    if json:
        print_json({"name": name, "path": target, "sha256": data_set.sha256, "licence": data_set.licence})
    else:
        typer.echo(f"{target}: {'is there already, and whole' if there else 'whole and verified'}")


def _tell(watcher: TerminalWatcher, what: str, data_set: DataSet, done: int, total: int) -> None:
    watcher.progress(f"{what} {data_set.target} (kB)", done // 1000, total // 1000)


def _introduce(data_set: DataSet, mirror: Path | None) -> None:
    files = f", {data_set.num_files} files" if data_set.is_folder else ""
    for line in (
        f"{data_set.name}: {data_set.title}",
        f"  from: {data_set.url if mirror is None else mirror} (published at {data_set.page})",
        f"  size: {size_text(data_set.num_bytes)}{files}",
        f"  SHA-256{' of the list of files' if data_set.is_folder else ''}: {data_set.sha256}",
        f"  licence: {data_set.licence}",
        f"  cite: {data_set.citation}",
    ):
        typer.echo(line, err=True)
