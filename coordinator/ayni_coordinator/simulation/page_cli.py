"""`ayni results`: the page of results from the rows. Heavy parts are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("results")(results)


def results(
    rows: Annotated[Path, typer.Argument(help="What `ayni simulate` wrote.", metavar="ROWS")],
    out: Annotated[Path, typer.Option(help="The page; its pictures go beside it.")] = Path("docs/results.md"),
) -> None:
    """The page that compares the methods: tables, pictures, and what held and what did not, all from the rows.

    Example: ayni results docs/results.json --out docs/results.md
    """
    from ayni_coordinator.simulation.page import write_page
    from ayni_coordinator.simulation.results import read_rows

    write_page(read_rows(rows), out)
    typer.echo(f"The page is {out}.")
