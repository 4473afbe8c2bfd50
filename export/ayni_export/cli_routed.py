"""`ayni adapt`, `ayni export --routed`, and what `ayni diagnose` says of a routed bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ayni.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from ayni_export.bundle import Bundle
    from ayni_export.routed.record import Adaptation
    from ayni_export.runtime import Device as DeviceName

PARTLY_DONE = 3

ADAPT_HELP = """Fit a routed bundle to the images of one place, without labels and offline; write it as a bundle.

The images (or volumes: NIfTI files and folders of DICOM slices) stay here: what is kept is how much each site's model \
has to say, and why. Give a worklist, eight images or more. The result answers as fast as a single model, and every \
file that the coordinator signed is in it.

Exit codes: 0 all images used; 3 some could not be read; 2 nothing was done.

Example: ayni adapt routed-bundle worklist/*.png --out our-bundle
"""

Resize = Annotated[bool, typer.Option("--resize", help="Scale larger images down to the model's size.")]
Burned = Annotated[
    bool, typer.Option("--allow-burned-in", help="Take DICOM images with text burned in (it may name the patient).")
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu or gpu. By default the GPU, if ayni[deploy-gpu] is installed.")
]
Refine = Annotated[
    bool, typer.Option("--refine", help="A routed bundle: a few gradient steps on the images, weighed up by the guard.")
]


def checked_device(device: str | None) -> DeviceName | None:
    """Raises UserError for anything but cpu, gpu, or nothing."""
    if device not in (None, "cpu", "gpu"):
        raise UserError(f"--device is cpu or gpu, not {device!r}.")
    return cast("DeviceName | None", device)


def speak(
    bundle: Bundle, adaptation: Adaptation | None, ran_on: DeviceName, device: str | None, *, refine: bool
) -> None:
    """On stderr: which GPU could not be used, which site's model speaks, and what was asked for in vain."""
    from ayni_export.routed.words import verdict
    from ayni_export.runtime import fell_back

    if told := fell_back(checked_device(device), ran_on):
        typer.echo(told, err=True)
    info = bundle.info.routed
    if info is not None and adaptation is not None:
        typer.echo(verdict(info, adaptation), err=True)
    if refine and (info is None or (bundle.adaptation is not None and adaptation is not None)):
        typer.echo("--refine changes nothing: it is for a routed bundle that was not adapted yet.", err=True)
    elif refine and info is not None and info.say == 0:
        typer.echo("--refine changes nothing: at home the experts are no better than the global model.", err=True)
    elif refine and info is not None and not info.has_gradient:
        typer.echo(
            f"--refine mixes answers, not weights: no gradient graph is here ({info.why_no_gradient}).", err=True
        )


def adapt(
    bundle: Annotated[Path, typer.Argument(help="The routed bundle's folder.", metavar="BUNDLE")],
    images: Annotated[list[Path], typer.Argument(help="The images of one place.", metavar="IMAGE...")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the adapted bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="For a program: adaptation.json on stdout.")] = False,
    resize: Resize = False,
    signer: Annotated[str | None, typer.Option("--signer", help="Fingerprint of the coordinator.")] = None,
    allow_burned_in: Burned = False,
    device: Device = None,
    refine: Refine = False,
) -> None:
    from ayni.terminal import print_json
    from ayni_export.bundle import check_replaceable, read_bundle

    try:
        from ayni_export.patience import Patience
        from ayni_export.routed.adapting import Reading, adapted, write_adapted
        from ayni_export.routed.experts import routed_info
        from ayni_export.routed.words import reasons, verdict
    except ModuleNotFoundError as error:
        raise MissingExtraError("adapting", "deploy") from error
    opened = read_bundle(bundle, signer=signer)
    info = routed_info(opened)
    check_replaceable(out)
    on = checked_device(device)
    with Patience() as patience:
        reading = Reading(resize=resize, allow_burned_in=allow_burned_in, device=on, watch=patience.say)
        fitted = adapted(opened, images, reading, refine=refine)
    adaptation = fitted.adaptation
    speak(opened, None, adaptation.device, device, refine=refine)
    if not adaptation.num_images:
        raise UserError(
            f"none of the {len(images)} files could be used: nothing was adapted. `ayni diagnose {bundle} IMAGE` says "
            "why of each."
        )
    write_adapted(opened, bundle, fitted, out)
    if as_json:
        print_json(adaptation)
    else:
        typer.echo(verdict(info, adaptation))
        for sentence in reasons(info, adaptation):
            typer.echo(f"- {sentence}")
        typer.echo(f"Next: ayni diagnose {out} IMAGE...")
    if adaptation.num_unreadable:
        typer.echo(f"{adaptation.num_unreadable} of {len(images)} files could not be used.", err=True)
        raise typer.Exit(PARTLY_DONE)


def export_routed_home(home: Path, bundle: Path, form: str, *, alone: bool, as_json: bool) -> None:
    """`ayni export --routed HOME BUNDLE`."""
    from ayni.terminal import TerminalWatcher, print_json
    from ayni_export.bundle import read_bundle
    from ayni_export.routed.pack import check_form, export_federation
    from ayni_export.routed.words import home_words

    if alone:
        raise UserError("--routed is of a federation, and --alone of one site: ask for one of them.")
    checked = check_form(form)
    with TerminalWatcher() as watcher:
        watcher.progress("packing the experts and checking the graphs", 0, 1)
        info = export_federation(home, bundle, form=checked)
    opened = read_bundle(bundle)
    routed = opened.info.routed
    assert routed is not None
    num_bytes = {name: len(data) for name, data in opened.files.items()}
    if as_json:
        print_json({"bundle": str(bundle), "signer": opened.signer.fingerprint, "info": info, "bytes": num_bytes})
        return
    typer.echo(f"{bundle}: {info.name}, version {info.version}")
    typer.echo(f"{len(routed.experts)} experts ({', '.join(routed.names)}), {len(routed.layers)} layers, {routed.form}")
    if at_home := home_words(routed):
        typer.echo(at_home)
    if routed.say == 0:
        typer.echo("So the global model answers alone.")
    for name, size in num_bytes.items():
        typer.echo(f"  {size / 1e6:8.3f} MB  {name}")
    speed = routed.latency
    gradient = f"no gradient: {routed.why_no_gradient}"
    if speed.gradient_ms is not None:
        gradient = f"one gradient {speed.gradient_ms:.1f} ms"
    one = "An image" if routed.dimensions == 2 else "What the network sees of a volume at once"
    typer.echo(f"{one}: plain {speed.plain_ms:.1f} ms, mixing inside {speed.routed_ms:.1f} ms, {gradient}")
    typer.echo(f"ONNX Runtime agrees with torch to {info.models[0].parity.logits:.1e} on the logits.")
    typer.echo(f"Signed by the coordinator, {opened.signer.fingerprint}: tell it by telephone (--signer).")
    typer.echo(f"Next: ayni diagnose {bundle} IMAGE...")
