"""The commands `ayni site ...`: what a site agrees to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ayni.terminal import TerminalWatcher, print_json, size_text

site_app = typer.Typer(help="What this site agrees to.", no_args_is_help=True)
SHARING_WORDS = {
    "no": "stays here",
    "on its way": "its sharing was cut off; share it again, or take it back with --revoke",
    "shared": "shared as an expert with the coordinator's later bundles",
}


@site_app.command("share-expert")
def share_expert(
    home: Annotated[Path, typer.Argument(help="The site's own folder.", metavar="HOME")],
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the consent back for all later bundles.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether this is meant.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Agree that this site's personal model is used in the coordinator's routed bundles, and send it.

    With it go the means and variances of some channels over the site's training images, if there are five or more, and
    by how much it is better than the global model on held-out images, if there are five or more: bundles show that
    beside the site's name. No image goes. Without this command a personal model never leaves its site.

    Example: ayni site share-expert clinic-home
    """
    from ayni.site.sharing import check_shareable
    from ayni.site.site import Site

    site = Site(home)
    if revoke:
        with TerminalWatcher() as watcher:
            watcher.progress("dialling the coordinator", 0, 1)
            site.revoke_expert()
        if json:
            print_json({"shared": None})
            return
        typer.echo("Taken back: later bundles are made without this site's model. Those already made keep it.")
        return
    check_shareable(site.home, site.settings.participation)
    if not yes:
        typer.confirm(
            f"Send the personal model, the statistics of its images, and how much better it is at home than the "
            f"global model to the coordinator of {site.settings.task!r}, for bundles that others use and read?",
            abort=True,
        )
    with TerminalWatcher() as watcher:
        sent = Site(home, watcher=watcher).share_expert()
    if json:
        print_json({"shared": sent})
        return
    statistics = (
        f"statistics of {sent.num_channels} channels over {sent.num_cases} training images"
        if sent.num_cases
        else f"no statistics: {sent.num_train} training images are too few"
    )
    typer.echo(f"Shared ({size_text(sent.num_bytes)}): the weights of the personal model, and {statistics}.")
    if sent.num_held_out:
        better = "better" if sent.home_gain > 0 else "no better"
        typer.echo(
            f"Also how it does at home: on {sent.num_held_out} held-out images it is {better} than the global model "
            f"({sent.home_gain:+.3f} in the mean: Dice, or nats of the true class)."
        )
    typer.echo(f"Take it back for later bundles with: ayni site share-expert {home} --revoke")
