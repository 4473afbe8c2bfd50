"""What does a routed bundle cost? Run: python -m benchmarks.routed [--device gpu]

Five experts of the default small network for images of 128 x 128 pixels (weights are random: what they cost does not
depend on what they know), packed as `ayni export --routed` packs them, and then, in processes without torch:

- plain inference of a folded bundle beside the same network exported as a model of its own, in turns;
- adapting a worklist of 16 images, by the start alone and with gradient steps, in plain inferences per image;
- peak memory. On a GPU, inputs and outputs stay there (IO binding).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image

from ayni.learning.batches import Normaliser
from ayni.learning.networks import build_network, initial_weights, load_weights
from ayni.learning.statistics import training_statistics
from ayni.task import ImageSettings, Kind, Task, TrainingSettings
from ayni.tensors import safe
from ayni.tensors.expert import Expert, ExpertInfo
from ayni.trained_model import Scores, TrainedModel
from ayni_export.export import OPSET
from ayni_export.graph import DiagnosisGraph, parity_images, to_onnx
from ayni_export.routed.pack import export_routed
from ayni_export.routed.source import Federation

NUM_EXPERTS, NUM_IMAGES, PIXELS = 5, 16, 128
KINDS: tuple[Kind, ...] = ("segmentation", "classification")


def federation(kind: Kind) -> Federation:
    task = Task(
        name="cost",
        title="Cost",
        kind=kind,
        classes=("one", "other"),
        image=ImageSettings(height=PIXELS, width=PIXELS),
        training=TrainingSettings(rounds=1),
    )
    first = initial_weights(task)
    network = build_network(task.small_network, task.image, len(task.classes)).eval()
    load_weights(network, first)
    normalise, images = Normaliser((0.5,), (0.25,)), torch.from_numpy(parity_images(1, PIXELS, PIXELS))
    seen = training_statistics(network, images, normalise)
    assert seen is not None
    experts = []
    for number in range(NUM_EXPERTS):
        noise = np.random.default_rng(number)
        weights = {name: w + 0.02 * noise.standard_normal(w.shape, np.float32) for name, w in first.items()}
        told: dict[str, Any] = {"reference_digest": safe.digest(first), "num_cases": len(images)} if number else {}
        info = ExpertInfo(
            site=f"site-{number}" if number else "global",
            task=task.name,
            rounds=1,
            decay=0.1,
            num_train=100,
            pixel_mean=normalise.mean,
            pixel_std=normalise.std,
            **told,
        )
        statistics_2F = (seen * (1 + 0.1 * number)).numpy() if number else None
        experts.append(Expert(info, weights if number else first, statistics_2F))
    return Federation(task, 1, tuple(experts), Ed25519PrivateKey.generate())


def make(folder: Path, kind: Kind) -> None:
    """The bundle, the same network as a model of its own, and a worklist."""
    made = federation(kind)
    info = export_routed(made, folder / "bundle")
    (folder / "single.onnx").write_bytes(single_model(made))
    (folder / "images").mkdir()
    for number, pixels_HW in enumerate(parity_images(1, PIXELS, PIXELS)[:NUM_IMAGES, 0]):
        Image.fromarray(pixels_HW).save(folder / "images" / f"{number:02}.png")
    if info.routed is None or info.routed.gradient_parity is None:
        sys.exit(f"the {kind} bundle has no gradient graph: {info.routed and info.routed.why_no_gradient}")


def single_model(made: Federation) -> bytes:
    """The global model as `ayni export` writes one."""
    task, about = made.task, made.experts[0].info
    network = build_network(task.small_network, task.image, len(task.classes)).eval()
    load_weights(network, made.experts[0].weights)
    model = TrainedModel(
        kind="federated",
        site="global",
        role="clinic",
        task=task,
        network=task.small_network,
        pixel_mean=about.pixel_mean,
        pixel_std=about.pixel_std,
        temperature=1.0,
        num_train_per_class={},
        num_holdout_per_class={},
        validation=Scores(num_images=0),
        rounds=1,
        steps=1,
        chosen="",
        created="",
    )
    return to_onnx(DiagnosisGraph(network, model), model, opset=OPSET)


def at_the_edge(folder: Path, what: str, device: str, num_turns: int) -> dict[str, Any]:
    """One process without torch: its figures."""
    command = [sys.executable, "-m", "benchmarks.routed_edge", str(folder), what, "--device", device]
    done = subprocess.run([*command, "--turns", str(num_turns)], stdout=subprocess.PIPE, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    assert not figures["torch"]
    return figures


def measured(folder: Path, device: str, num_turns: int) -> dict[str, Any]:
    """Of one kind. A worklist's own cost is what its process takes more than one that only opens the bundle."""
    figures = at_the_edge(folder, "latency", device, num_turns)
    del figures["peak_mib"]
    for what in ("plain", "start", "refine"):
        runs = [at_the_edge(folder, what, device, num_turns) for _ in range(num_turns)]
        seconds = statistics.median(run["seconds"] for run in runs)
        figures[what] = {
            "seconds": seconds,
            "in_plain_inferences_per_image": 1000 * seconds / NUM_IMAGES / figures["single_ms"],
            "peak_mib": max(run["peak_mib"] for run in runs),
            "chosen": runs[0]["chosen"],
        }
    figures["bytes"] = {file.name: file.stat().st_size for file in sorted((folder / "bundle" / "models").iterdir())}
    figures["bytes"]["single.onnx"] = (folder / "single.onnx").stat().st_size
    return figures


def table(kind: str, figures: dict[str, Any]) -> str:
    ratio = figures["folded_to_single"]
    lines = [
        f"{kind}, {NUM_EXPERTS} experts, {PIXELS} x {PIXELS} pixels",
        f"  a model of its own            {figures['single_ms']:8.2f} ms an image",
        f"  folded                        {figures['folded_ms']:8.2f} ms, ratio {ratio['median']:.3f} "
        f"({ratio['min']:.3f}-{ratio['max']:.3f}); folding once {figures['fold_ms']:.1f} ms",
        f"  routed, mixed at every image  {figures['routed_ms']:8.2f} ms",
        f"  exact gradient of an image    {figures['gradient_ms']:8.2f} ms",
    ]
    names = {"plain": "only answering", "start": "adapting by the start", "refine": "... and gradient steps"}
    for what, name in names.items():
        one = figures[what]
        lines.append(
            f"  {NUM_IMAGES} images, {name:22} {one['seconds']:8.2f} s in all = "
            f"{one['in_plain_inferences_per_image']:.1f} inferences an image, peak {one['peak_mib']:.0f} MiB"
        )
    lines.append("  bytes: " + ", ".join(f"{name} {size:,}" for name, size in figures["bytes"].items()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--turns", type=int, default=5, help="how often each is measured")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as place:
            print(f"making the {kind} bundle", file=sys.stderr)
            make(Path(place), kind)
            figures[kind] = measured(Path(place), chosen.device, chosen.turns)
        if not chosen.json:
            print(table(kind, figures[kind]), flush=True)
    if chosen.json:
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
