"""`ayni export` and `ayni diagnose`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ayni.errors import MissingExtraError, UserError
from ayni_export.cli_routed import (
    ADAPT_HELP,
    Burned,
    Device,
    Refine,
    Resize,
    adapt,
    checked_device,
    export_routed_home,
    speak,
)
from ayni_export.patience import Patience

if TYPE_CHECKING:
    from ayni_export.reported import Report

PARTLY_DONE = 3

EXPORT_HELP = """Make a signed bundle of the model in a site's folder.

An older bundle of that name is replaced; anything else that is there is left alone.

Example: ayni export clinic-home pneumonia-bundle
"""

DIAGNOSE_HELP = """Ask a bundle about images: a report to read (report.html), and the same as JSON (report.json).

A bundle that outlines structures also writes each outline as a mask (masks/IMAGE-STRUCTURE.png). A routed bundle is \
first fitted to all the images given, without labels: give a worklist, eight images or more.

PNG, JPEG, .npy, NIfTI (one slice) and DICOM are read. The report goes to --out, or to a new folder here that is \
named like the bundle with -report behind it. A report is never overwritten.

A bundle for volumes takes NIfTI files, and folders with the slices of one DICOM series; what it outlines is written \
as a label map (masks/NAME-mask.nii.gz) on the volume's own voxels.

Exit codes: 0 all done; 3 some files could not be used and the others are done; 2 nothing was done.

Example: ayni diagnose pneumonia-bundle chest1.png chest2.dcm --out report
"""


def register(app: typer.Typer) -> None:
    """Add the commands of this package to the command line."""
    app.command("export", help=EXPORT_HELP)(export)
    app.command("diagnose", help=DIAGNOSE_HELP)(diagnose)
    app.command("adapt", help=ADAPT_HELP)(adapt)


def export(
    home: Annotated[Path, typer.Argument(help="The site's own folder.", metavar="HOME")],
    bundle: Annotated[Path, typer.Argument(help="The folder to write.", metavar="BUNDLE")],
    alone: Annotated[bool, typer.Option("--alone", help="The model trained without the federation.")] = False,
    personal: Annotated[
        bool, typer.Option("--personal", help="This site's own model beside the federation's.")
    ] = False,
    routed: Annotated[
        bool, typer.Option("--routed", help="At the coordinator: the global model and all that sites share.")
    ] = False,
    form: Annotated[str, typer.Option("--form", help="Of --routed: fp16, or fp32 for twice the size.")] = "fp16",
    as_json: Annotated[bool, typer.Option("--json", help="For a program: the metadata on stdout.")] = False,
) -> None:
    from ayni.terminal import TerminalWatcher, print_json
    from ayni_export.bundle import read_bundle
    from ayni_export.calibration import images_word
    from ayni_export.model_card import SHOWS_NOTHING

    try:
        from ayni_export.export import export_site
    except ModuleNotFoundError as error:
        raise MissingExtraError("export", "export") from error
    if personal and (alone or routed):
        raise UserError("--personal, --alone and --routed are different models: ask for one of them.")
    if routed:
        export_routed_home(home, bundle, form, alone=alone, as_json=as_json)
        return
    with TerminalWatcher() as watcher:
        watcher.progress("exporting and checking the model", 0, 1)
        info = export_site(home, bundle, alone=alone, personal=personal)
    signer = read_bundle(bundle).signer
    if as_json:
        who = {"signer": signer.fingerprint, "coordinator": signer.coordinator}
        print_json({"bundle": str(bundle), **who, "info": info})
        return
    typer.echo(f"{bundle}: {info.name}, version {info.version}")
    typer.echo(f"Signed by {info.site}, {signer.fingerprint}; the coordinator {signer.coordinator} vouches for it.")
    typer.echo("Tell those who will use the bundle one of the two fingerprints by telephone (--signer).")
    typer.echo(f"ONNX Runtime agrees with torch to {info.models[0].parity.logits:.1e} on the logits.")
    if info.shows_nothing:
        typer.echo(f"Warning: {info.validation.words()} on held-out {images_word(info)}. {SHOWS_NOTHING}", err=True)
    typer.echo(f"Next: ayni diagnose {bundle} IMAGE...")


def diagnose(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    images: Annotated[list[Path], typer.Argument(help="The images.", metavar="IMAGE...")],
    out: Annotated[Path | None, typer.Option("--out", help="The folder for the report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For a program: the report on stdout as JSON.")] = False,
    resize: Resize = False,
    signer: Annotated[
        str | None, typer.Option("--signer", help="Fingerprint of the site, or of its coordinator.")
    ] = None,
    allow_burned_in: Burned = False,
    device: Device = None,
    refine: Refine = False,
) -> None:
    from ayni.terminal import print_json
    from ayni_export.bundle import read_bundle

    try:
        from ayni_export import report
        from ayni_export.diagnose import answers
        from ayni_export.mask_files import mask_files
        from ayni_export.report_folder import pieces_of, report_folder, sections_file, write_report
        from ayni_export.routed.adapting import Reading, session_for
        from ayni_export.segmentation import Segmentation
        from ayni_export.volume_answer import OutlinedVolume
    except ModuleNotFoundError as error:
        raise MissingExtraError("diagnosis", "deploy") from error
    opened = read_bundle(bundle, signer=signer)
    folder = report_folder(bundle, out, masks=opened.info.task_kind == "segmentation")
    on = checked_device(device)
    with Patience() as patience:
        reading = Reading(resize=resize, allow_burned_in=allow_burned_in, device=on, watch=patience.say)
        session, routing = session_for(opened, images, reading, refine=refine)
    speak(opened, routing, session.device, device, refine=refine)
    reported = []
    with sections_file(folder) as sections, mask_files(folder) as masks, Patience() as patience:
        each = answers(opened.info, session, images, resize=resize, allow_burned_in=allow_burned_in, watch=patience.say)
        for number, answer in enumerate(each, start=1):
            patience.say("diagnosing", number, len(images))
            written = masks.write(answer) if isinstance(answer, Segmentation | OutlinedVolume) else ()
            entry = report.entry(opened, answer, number, written)
            reported.append(entry.reported)
            sections.write(entry.section)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        made = report.make_report(opened, reported, created=created, device=session.device, routing=routing)
        write_report(folder, report.report_html(opened, made, pieces_of(sections)), report.report_json(made))
    if as_json:
        print_json(made)
    else:
        _print_table(made, folder)
    if any(image.error for image in made.images):
        raise typer.Exit(PARTLY_DONE)


def _print_table(made: Report, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ayni_export.report import columns_of, rows_of
    from ayni_export.report_outlines import SURE_MEANS

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("File", *columns_of(made)):
        table.add_column(title, overflow="fold")
    for image in made.images:
        if image.error:
            reason = image.error.removeprefix(image.file).lstrip(": ")  # the name stands beside it
            table.add_row(Text(image.file), Text("not done", style="yellow"), Text(reason, style="yellow"))
            continue
        for row, (first, *others) in enumerate(rows_of(image, ", ")):
            table.add_row(Text("" if row else image.file), Text(first, style="bold"), *map(Text, others))
    console = Console()
    console.print(table)
    if any(found.sure_share is not None for image in made.images for found in image.structures.values()):
        sure_means = SURE_MEANS.replace("area", "volume") if made.model.dimensions == 3 else SURE_MEANS
        console.print(Text(f"\n{sure_means}"))
    console.print(Text(f"\nNot for primary diagnosis. Report: {folder / 'report.html'}"))
