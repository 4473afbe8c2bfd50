"""`ayni coordinator ...` and `ayni demo`: thin faces on the coordinator. Heavy parts are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ayni_coordinator import cli_teach
from ayni_coordinator.simulation import cli as simulation_cli
from ayni_coordinator.simulation import page_cli

Home = Annotated[Path, typer.Argument(help="The coordinator's own folder.", metavar="HOME")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="A setting in place of the task's, like training.rounds=5; repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

coordinator_app = typer.Typer(help="Run a federation: set up, invite, serve, look, intervene.", no_args_is_help=True)
round_app = typer.Typer(help="Close or extend the open round by hand.", no_args_is_help=True)
coordinator_app.add_typer(round_app, name="round")
cli_teach.register(coordinator_app)


def register(app: typer.Typer) -> None:
    """Called by the command line through the entry point `ayni.commands`."""
    app.add_typer(coordinator_app, name="coordinator")
    app.command("demo")(demo)
    simulation_cli.register(app)
    page_cli.register(app)


@coordinator_app.command("example")
def example(
    folder: Annotated[Path, typer.Argument(help="The folder to make.", metavar="FOLDER")],
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="How the images are dealt out.")] = 0,
) -> None:
    """A federation to try by hand: task.toml with every setting explained, and X-rays for six sites.

    Example: ayni coordinator example pneumonia
    """
    from ayni_coordinator.demo.split import write_example

    write_example(folder, seed=seed)
    typer.echo(f"Next: ayni coordinator init centre --task {folder / 'task.toml'}")


@coordinator_app.command("init")
def init(
    home: Home,
    task: Annotated[Path, typer.Option(help="The task as TOML; `ayni coordinator example` writes one.")],
    endpoint: Annotated[str, typer.Option(help="The address that sites dial.")] = "tcp://127.0.0.1:7700",
    bind: Annotated[str, typer.Option(help="Where to listen; all addresses at the endpoint's port by default.")] = "",
    database: Annotated[str, typer.Option(help="SQLAlchemy URL; SQLite in HOME by default.")] = "",
    store: Annotated[str, typer.Option(help="Folder or fsspec URL for artefacts; HOME/store by default.")] = "",
    changes: Changes = None,
) -> None:
    """Set up a federation: keys, public set, the foundation model's one-time answers, and first weights.

    Example: ayni coordinator init centre --task pneumonia/task.toml --endpoint tcp://ayni.example.org:7700
    """
    from ayni.keys import fingerprint
    from ayni.task_file import read_task
    from ayni.terminal import TerminalWatcher
    from ayni_coordinator.home import create_home

    agreed = read_task(task, changes or ())
    with TerminalWatcher() as watcher:
        watcher.progress("making keys, first weights and the public set", 0, 1)
        made = create_home(home, agreed, endpoint=endpoint, bind=bind, database=database, store=store)
    typer.echo(f"The federation {made.task.name!r} stands in {home}.")
    typer.echo(f"Its signature has the fingerprint {fingerprint(made.keys.signing_public)}.")
    image = made.task.image
    if image.patch and not agreed.image.patch:
        seen, whole = (" x ".join(map(str, sides)) for sides in (image.patch, image.size))
        typer.echo(
            f"A network sees {seen} voxels (slices, rows, columns) of {whole} at once: what fits training.memory_mb, "
            f"{made.task.training.memory_mb}."
        )
    guide(home)
    first = f"ayni coordinator teach {home} --data LABELLED, then " if made.task.dual_kd else ""
    typer.echo(f"Next: {first}ayni coordinator invite {home} SITE --role clinic, then ayni coordinator serve {home}")


@coordinator_app.command("guide")
def guide(home: Home) -> None:
    """Ask the foundation model about the public images, each once, and teach the first weights, if the task says so.

    Goes on where an earlier run stopped.

    Example: ayni coordinator guide centre
    """
    from ayni.terminal import TerminalWatcher
    from ayni_coordinator.guiding import add_guidance
    from ayni_coordinator.home import CoordinatorHome

    with TerminalWatcher() as watcher:
        told = add_guidance(CoordinatorHome.open(home), watcher.progress)
    typer.echo(told)


@coordinator_app.command("invite")
def invite(
    home: Home,
    site: Annotated[str, typer.Argument(help="A short name for the site, like clinic-north.")],
    role: Annotated[
        str, typer.Option(help="clinic: the small network. hospital: the large one and a proxy.")
    ] = "clinic",
    valid_hours: Annotated[float, typer.Option(min=0.001, max=8760, help="How long it can be used.")] = 72.0,
    qr: Annotated[Path | None, typer.Option(help="Where to write the QR code picture (.png or .svg).")] = None,
    json: AsJson = False,
) -> None:
    """Make one invitation for one site: a string (standard output) and its QR code picture.

    Example: ayni coordinator invite centre clinic-north --qr clinic-north.png
    """
    import io

    import segno

    from ayni.artefacts.files import write_atomic
    from ayni.errors import UserError
    from ayni.terminal import print_json
    from ayni_coordinator.by_hand import new_invitation

    picture = qr or home / "invitations" / f"{site}.png"
    if picture.suffix not in (".png", ".svg"):
        raise UserError(f"--qr {picture}: the picture is a .png or a .svg file.")
    text = new_invitation(home, site, role, valid_hours * 3600).to_string()
    drawn = io.BytesIO()
    segno.make(text, error="m").save(drawn, kind=picture.suffix[1:], scale=6)
    write_atomic(picture, drawn.getvalue(), mode=0o600)  # whoever sees it can join
    if json:
        print_json({"site": site, "role": role, "invitation": text, "qr": str(picture)})
        return
    typer.echo(text)
    typer.echo(f"Send it to {site} by a way that you trust; it works once, for {valid_hours:g} hours.", err=True)
    typer.echo(f"Its QR code is in {picture}.", err=True)


@coordinator_app.command("serve")
def serve(home: Home) -> None:
    """Listen for sites and run the rounds, until Ctrl-C or SIGTERM. May be killed and started again at any point.

    Example: ayni coordinator serve centre
    """
    import logging

    from ayni_coordinator.guiding import check_guided
    from ayni_coordinator.home import CoordinatorHome
    from ayni_coordinator.serve import serve as serve_home
    from ayni_coordinator.teaching.publish import check_taught

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    opened = CoordinatorHome.open(home)
    check_guided(opened)
    check_taught(opened)
    serve_home(opened, on_start=lambda endpoint: typer.echo(f"{opened.task.name!r} is served at {endpoint}"))


@coordinator_app.command("status")
def status(home: Home, json: AsJson = False) -> None:
    """How the federation stands, from what is stored. Works while it is served, and while it is not.

    Example: ayni coordinator status centre
    """
    from ayni.terminal import print_json
    from ayni_coordinator.views import federation_view

    view = federation_view(home)
    if json:
        print_json(view)
        return
    typer.echo(f"{view.task}: {view.phase}, round {view.round_number} of {view.num_rounds}")
    if view.to_do:
        typer.echo(f"It cannot be served yet: {view.to_do}")
    if view.phase == "open":
        typer.echo(f"deadline in {view.deadline_in_s:.0f} s, quorum {view.quorum}")
    for site in view.sites:
        expert = ", shares its personal model" if site.expert_since else ""
        typer.echo(f"  {site.name} ({site.role}, {site.state}{expert}): {site.this_round}")


@coordinator_app.command("sites")
def sites(home: Home, json: AsJson = False) -> None:
    """The register: who has joined, when each was last seen, and what it cost in bytes.

    Example: ayni coordinator sites centre --json
    """
    from rich.console import Console
    from rich.table import Table

    from ayni.terminal import print_json, size_text
    from ayni_coordinator.views import federation_view

    view = federation_view(home)
    if json:
        print_json(view.sites)
        return
    table = Table("site", "role", "state", "takes part by", "expert since", "last seen", "up", "down")
    for site in view.sites:
        up, down = size_text(site.bytes_up), size_text(site.bytes_down)
        who = (site.name, site.role, site.state, site.participation, site.expert_since or "-")
        table.add_row(*who, site.last_seen, up, down)
    Console().print(table)


@coordinator_app.command("revoke")
def revoke(home: Home, site: Annotated[str, typer.Argument(help="The site's name.")]) -> None:
    """Shut a site out: its key is no longer admitted, also on a live line. What it gave before stays counted.

    Example: ayni coordinator revoke centre clinic-north
    """
    from ayni_coordinator.by_hand import revoke_site

    revoke_site(home, site)
    typer.echo(f"{site!r} is revoked. A coordinator that is serving sees it within a second.")


@round_app.command("close")
def close_round(home: Home) -> None:
    """Close the open round with the answers that have come, without waiting for the others.

    Example: ayni coordinator round close centre
    """
    from ayni_coordinator.by_hand import close_by_hand

    typer.echo(close_by_hand(home))


@round_app.command("extend")
def extend_round(
    home: Home, minutes: Annotated[float, typer.Argument(min=0.01, max=525_600, help="From now on.")]
) -> None:
    """Give the open round more time, counted from now.

    Example: ayni coordinator round extend centre 90
    """
    from ayni_coordinator.by_hand import extend_by_hand

    typer.echo(extend_by_hand(home, minutes * 60))


@coordinator_app.command("log")
def log(home: Home, json: AsJson = False) -> None:
    """The audit log: every step, append-only, in words.

    Example: ayni coordinator log centre
    """
    from ayni.terminal import print_json
    from ayni_coordinator.views import audit_lines

    lines = audit_lines(home)
    if json:
        print_json(lines)
        return
    for line in lines:
        typer.echo(f"{line.at}  {line.who}: {line.what}")


@coordinator_app.command("publish")
def publish(
    home: Home,
    bundle: Annotated[Path, typer.Argument(help="A bundle folder that `ayni export` made.")],
    name: Annotated[str, typer.Option(help="Under which name sites fetch it.")] = "bundle",
) -> None:
    """Distribute a diagnosis bundle: sites get it with `ayni fetch`, signed and verified like every artefact.

    Example: ayni coordinator publish centre pneumonia-bundle
    """
    from ayni_coordinator.publishing import publish_bundle

    typer.echo(publish_bundle(home, bundle, name))


def demo(
    out: Annotated[Path, typer.Option(help="Where report.html, results.json and all folders go.")],
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The same seed gives the same figures.")] = 0,
    changes: Changes = None,
) -> None:
    """The whole story on chest X-rays, on this machine: a coordinator, two hospitals and four clinics as processes.

    Example: ayni demo --out out/demo
    """
    from ayni.errors import MissingExtraError

    try:
        from ayni_coordinator.demo.run import run_demo
    except ModuleNotFoundError as error:
        raise MissingExtraError("The demo", "all") from error

    run_demo(out, seed=seed, changes=changes or [])
