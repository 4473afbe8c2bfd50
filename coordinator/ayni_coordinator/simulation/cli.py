"""`ayni simulate`: a thin face on `simulate.py`. Heavy parts are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ayni_coordinator.simulation.experiment import Experiment
    from ayni_coordinator.simulation.simulate import Request

ENGINES = ("processes", "ray")


def register(app: typer.Typer) -> None:
    """Called by the coordinator's part of the command line."""
    app.command("simulate")(simulate)


def simulate(
    experiment: Annotated[Path, typer.Argument(help="A TOML file: methods, seeds, tasks.", metavar="EXPERIMENT")],
    out: Annotated[Path, typer.Option(help="Where rows, results.json and results.md go.")],
    data: Annotated[Path, typer.Option(help="The folder that `ayni data fetch` filled.")] = Path("data"),
    task: Annotated[list[str] | None, typer.Option(help="Only this task now; repeatable.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method now; repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed now; repeatable.")] = None,
    engine: Annotated[str, typer.Option(help="processes, or ray for a cluster (RAY_ADDRESS).")] = "processes",
    workers: Annotated[int | None, typer.Option(min=1, max=4096, help="Runs at once; one per core by default.")] = None,
    memory_mb: Annotated[
        int | None, typer.Option(min=1, help="For all runs together; 80 % of what is free by default.")
    ] = None,
    memory_per_run_mb: Annotated[
        int | None, typer.Option(min=1, help="For one run; learned from finished runs by default.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Try the values of [tuning] on held-out images, write OUT/tuned.toml.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Compare methods: whole federations, each simulated in one process. May be killed and started again at any point.

    Finished runs lie in OUT/rows and are kept as long as their task, settings and Ayni's version stay the same.
    Ends with 3 if some runs failed; the same command tries them again.

    Example: ayni simulate examples/evidence/evidence.toml --out out/evidence
    """
    from ayni.errors import UserError
    from ayni_coordinator.simulation.experiment import read_experiment
    from ayni_coordinator.simulation.simulate import Request, require_parts

    if engine not in ENGINES:
        raise UserError(f"--engine is {' or '.join(ENGINES)}, not {engine!r}.")
    require_parts()
    request = Request(
        out=out, data=data, tasks=task or (), methods=method or (), seeds=seed or (),
        num_workers=workers, memory_mb=memory_mb, memory_per_run_mb=memory_per_run_mb,
        tune=tune,
    )  # fmt: skip
    simulate_and_tell(read_experiment(experiment), request, engine, json=json)


def simulate_and_tell(experiment: Experiment, request: Request, engine: str, *, json: bool) -> None:
    """What came of it goes to standard output."""
    from ayni.terminal import print_json
    from ayni_coordinator.simulation.processes import processes
    from ayni_coordinator.simulation.ray_engine import ray_workers, require_ray
    from ayni_coordinator.simulation.simulate import simulate as run

    if engine == "ray":
        require_ray()
    summary = run(experiment, request, ray_workers if engine == "ray" else processes)
    if json:
        print_json(summary)
    else:
        typer.echo(f"{summary.num_rows} rows in {summary.results}; {summary.ran} runs now, {summary.kept} before.")
        for failed in summary.failed:
            typer.echo(f"failed: {failed.method} on {failed.task}, seed {failed.seed}: {failed.message}")
    if summary.failed:
        raise typer.Exit(3)
