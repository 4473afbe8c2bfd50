"""`ayni export` and `ayni diagnose`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ayni.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from ayni_export.report import Report

PARTLY_DONE = 3
PATIENCE_S = 2.0
Item = TypeVar("Item")

EXPORT_HELP = """Make a signed bundle of the model in a site's folder.

HOME is the folder of the site, BUNDLE the folder to write. An older bundle there is replaced, anything else is not.

Example: ayni export ./north-clinic ./pneumonia-bundle
"""

DIAGNOSE_HELP = """Ask a bundle about images: a report to read (report.html), and the same as JSON.

PNG, JPEG, .npy, NIfTI (one slice) and DICOM are read. The report goes to --out, or to a new folder
NAME-report here, NAME being the bundle's; a report is never overwritten.

Exit code: 0 all done; 3 some files could not be used, the others are done; 2 nothing was done.

Example: ayni diagnose ./pneumonia-bundle chest1.png chest2.dcm --out ./report
"""


def register(app: typer.Typer) -> None:
    """Add the commands of this package to the command line."""
    app.command("export", help=EXPORT_HELP)(export)
    app.command("diagnose", help=DIAGNOSE_HELP)(diagnose)


def export(
    home: Annotated[Path, typer.Argument(help="The folder of the site.")],
    bundle: Annotated[Path, typer.Argument(help="The folder to write.")],
    alone: Annotated[bool, typer.Option("--alone", help="The model trained without the federation.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For a program: the metadata on stdout.")] = False,
) -> None:
    from ayni.keys import CERTIFICATE_FILE, KEY_FOLDER, SiteKeys, fingerprint

    signing = SiteKeys.load(home)
    certificate_file = home / KEY_FOLDER / CERTIFICATE_FILE
    certificate = certificate_file.read_bytes() if certificate_file.is_file() else None
    try:
        from ayni_export.export import export_model
    except ModuleNotFoundError as error:
        raise MissingExtraError("export", "export") from error
    model_folder = home / "models" / ("alone" if alone else "federated")
    info = export_model(model_folder, bundle, signing_key=signing.signing, certificate=certificate)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.format(msgspec.json.encode(info), indent=2).decode())
        return
    parity = info.models[0].parity
    typer.echo(f"{bundle}: {info.name}, version {info.version}")
    typer.echo(
        f"signed by {fingerprint(signing.signing_public)}; ONNX Runtime agrees with torch to {parity.logits:.1e}"
    )
    typer.echo(f"Next: ayni diagnose {bundle} IMAGE...")


def diagnose(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    images: Annotated[list[Path], typer.Argument(help="The images.")],
    out: Annotated[Path | None, typer.Option("--out", help="The folder for the report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For a program: the report on stdout as JSON.")] = False,
    resize: Annotated[bool, typer.Option("--resize", help="Scale larger images down to the model's size.")] = False,
    signer: Annotated[
        str | None, typer.Option("--signer", help="Fingerprint that the bundle's signer must have.")
    ] = None,
    allow_burned_in: Annotated[
        bool, typer.Option("--allow-burned-in", help="Take DICOM images with text burned in (it may name the patient).")
    ] = False,
) -> None:
    from ayni_export.bundle import read_bundle

    opened = read_bundle(bundle, signer=signer)
    folder = _report_folder(bundle, out)
    try:
        from ayni_export import report
        from ayni_export.diagnose import answers
        from ayni_export.runtime import Session
    except ModuleNotFoundError as error:
        raise MissingExtraError("diagnosis", "deploy") from error
    session = Session(opened)
    each = answers(opened.info, session, images, resize=resize, allow_burned_in=allow_burned_in)
    entries = [
        report.entry(opened, answer, number)
        for number, answer in enumerate(with_progress(each, len(images), "diagnosing"), start=1)
    ]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    made = report.make_report(opened, entries, created=created, device=session.device)
    _write_report(folder, report.report_html(opened, made, entries), report.report_json(made))
    if as_json:
        sys.stdout.write(report.report_json(made).decode())
    else:
        _print_table(made, folder)
    if any(image.error for image in made.images):
        raise typer.Exit(PARTLY_DONE)


def with_progress(items: Iterable[Item], num_items: int, what: str) -> Iterator[Item]:
    """Pass the items on; show a bar on stderr once it has taken two seconds."""
    start_s = time.monotonic()
    bar = None
    try:
        for num_done, item in enumerate(items, start=1):
            if bar is None and time.monotonic() - start_s > PATIENCE_S and num_done < num_items:
                from rich.console import Console
                from rich.progress import Progress

                bar = Progress(console=Console(stderr=True), transient=True)
                task = bar.add_task(what, total=num_items)
                bar.start()
            yield item
            if bar is not None:
                bar.update(task, completed=num_done)
    finally:
        if bar is not None:
            bar.stop()


def _report_folder(bundle: Path, out: Path | None) -> Path:
    """Where the report goes. A report is a document: none is ever overwritten."""
    if out is not None:
        if (out.exists() and not out.is_dir()) or (out / "report.html").exists():
            raise UserError(f"{out} already holds something else or a report. Choose another folder with --out.")
        return out
    name = f"{bundle.resolve().name}-report"
    folder, number = Path(name), 1
    while folder.exists():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder


def _write_report(folder: Path, html: str, json: bytes) -> None:
    from ayni.artefacts.files import write_atomic

    try:
        write_atomic(folder / "report.json", json)
        write_atomic(folder / "report.html", html.encode())
    except OSError as error:
        raise UserError(f"the report cannot be written to {folder} ({error.strerror}). Choose another --out.") from None


def _print_table(made: Report, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ayni_export.report import percent, printable

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("File", "Finding", "Confidence"):
        table.add_column(title, overflow="fold")
    for image in made.images:
        if image.error:
            reason = image.error.removeprefix(image.file).lstrip(": ")  # the name stands beside it
            table.add_row(Text(image.file), Text("not done", style="yellow"), Text(reason, style="yellow"))
        else:
            sure = f"{percent(image.confidence)}, {image.confidence_words}"
            table.add_row(Text(image.file), Text(printable(image.finding), style="bold"), Text(sure))
    console = Console()
    console.print(table)
    console.print(Text(f"\nNot for primary diagnosis. Report: {folder / 'report.html'}"))
