"""`ayni coordinator teach`: a thin face on `ayni_coordinator.teaching`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path, typer.Argument(help="The coordinator's own folder.", metavar="HOME")]
FORMS, DEVICES = ("auto", "fp16", "fp32"), ("cpu", "cuda")


def register(app: typer.Typer) -> None:
    app.command("teach")(teach)


def teach(
    home: Home,
    data: Annotated[
        Path | None, typer.Option(help="The centre's labelled images: a folder, or a .npz file.", metavar="LABELLED")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="In place of the task's dual_kd.teacher_steps.")
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="FILE", help="A teacher that was trained elsewhere, as safetensors; --data measures it."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What the teacher is called.")] = "",
    licence: Annotated[str, typer.Option(help="Under which licence sites may use it.")] = "",
    form: Annotated[
        str, typer.Option(help="How it travels: fp16, fp32; auto takes fp16 if held-out images lose nothing by it.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="Where it trains: cpu or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Train the teacher of a task with dual_kd on labelled images, and publish it: each site fetches it once.

    May be killed and started again; it goes on where it was. Several processes share the work with torchrun
    --nproc-per-node 2 -m ayni.cli coordinator teach ...

    Example: ayni coordinator teach centre --data national-archive
    """
    from ayni.errors import UserError
    from ayni.terminal import TerminalWatcher, print_json
    from ayni_coordinator.teaching.processes import rank_from_environment
    from ayni_coordinator.teaching.teach import Lesson
    from ayni_coordinator.teaching.teach import teach as teach_home

    if form not in FORMS or device not in DEVICES:
        raise UserError(f"--form is {', '.join(FORMS)}; --device is {', '.join(DEVICES)}.")
    lesson = Lesson(data, teacher, steps, name, licence, form, device)  # type: ignore[arg-type]
    if rank_from_environment():  # of several processes the first one speaks
        teach_home(home, lesson, lambda what, done, total: None)
        return
    with TerminalWatcher() as watcher:
        watcher.progress("reading images", 0, 1)
        taught = teach_home(home, lesson, watcher.progress)
    assert taught is not None
    if json:
        print_json(taught)
        return
    typer.echo(f"The teacher {taught.info.name!r}: {taught.told}")
    typer.echo(f"Next: ayni coordinator invite {home} SITE, then ayni coordinator serve {home}")
