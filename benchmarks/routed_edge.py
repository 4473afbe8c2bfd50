"""Where there is no torch: one bundle, one worklist, one kind of figure. routed.py starts it and makes the table.

Times are CPU seconds of one thread on the processor, so that other work on the machine counts little, and wall seconds
on a GPU. E = experts, L = layers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ayni_export.bundle import Bundle, read_bundle
from ayni_export.routed.adapting import Reading, adapted
from ayni_export.routed.experts import read_experts, routed_info
from ayni_export.routed.record import GRADIENT_FILE, ROUTED_FILE
from ayni_export.runtime import Device, Session, open_session

NUM_WARM, NUM_RUNS = 3, 40  # of each graph, in a turn
PAIR = ("single", "folded")


def asked_with_binding(session: Any, device: Device, inputs: Mapping[str, Any]) -> Callable[[], None]:
    """A call that leaves inputs and outputs where the graph runs: on a GPU nothing is copied but at the start."""
    import onnxruntime

    place, binding = ("cuda" if device == "gpu" else "cpu"), session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, place, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, place, 0)

    def ask() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return ask


def latencies(bundle: Bundle, single: bytes, device: Device, num_turns: int) -> dict[str, Any]:
    """Milliseconds an image, each graph in turn: the median of a turn's runs, and of the turns' ratios."""
    experts, info = read_experts(bundle), routed_info(bundle)
    num_layers, num_experts = len(experts.layers), len(info.experts)
    image = bundle.info.image
    pixels = {"pixels": np.full((1, image.channels, image.height, image.width), 99, np.uint8)}
    routing_LE = np.full((num_layers, num_experts), 1 / num_experts, np.float32)
    term_weights_T = np.array(list(info.term_weights.values()), np.float32)
    started_s = time.perf_counter()
    weights = experts.fold(routing_LE)
    fold_ms = 1000 * (time.perf_counter() - started_s)
    graphs: dict[str, tuple[bytes, Mapping[str, Any], Mapping[str, Any]]] = {
        "single": (single, {}, pixels),
        "folded": (bundle.model, weights, pixels),
        "routed": (bundle.files[ROUTED_FILE], experts.stacked, {**pixels, "routing": routing_LE}),
        "gradient": (
            bundle.files[GRADIENT_FILE],
            experts.stacked,
            {**pixels, "routing_logits": np.zeros_like(routing_LE), "term_weights": term_weights_T},
        ),
    }
    calls = {}
    for name, (graph, tensors, inputs) in graphs.items():
        session, runs_on = open_session(graph, tensors, device=device)
        if runs_on != device:
            sys.exit(f"the {name} graph runs on the {runs_on}, not on the {device}: nothing was measured")
        calls[name] = asked_with_binding(session, device, inputs)
    clock = time.process_time if device == "cpu" else time.perf_counter
    for ask in list(calls.values()) * NUM_WARM:
        ask()
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(num_turns):
        times_ms: dict[str, list[float]] = {name: [] for name in calls}
        for run in range(NUM_RUNS):  # in turns, so that whatever else the machine does touches both alike
            for name in PAIR if run % 2 else PAIR[::-1]:
                times_ms[name].append(_time_ms(calls[name], clock))
        for name in ("routed", "gradient"):
            times_ms[name] = [_time_ms(calls[name], clock) for _ in range(NUM_RUNS)]
        for name, times in times_ms.items():
            turns[name].append(statistics.median(times))
    ratios = [folded / one for folded, one in zip(turns["folded"], turns["single"], strict=True)]
    return {
        **{f"{name}_ms": statistics.median(times) for name, times in turns.items()},
        "fold_ms": fold_ms,
        "folded_to_single": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def _time_ms(ask: Callable[[], None], clock: Callable[[], float]) -> float:
    start_s = clock()
    ask()
    return 1000 * (clock() - start_s)


def worklist(bundle: Bundle, images: list[Path], device: Device, what: str) -> dict[str, Any]:
    """Adapt to the images as `ayni adapt` does, files read and graphs opened; `plain` opens one graph and answers."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    started_s = clock()
    if what == "plain":
        experts = read_experts(bundle)
        one_LE = np.eye(1, len(routed_info(bundle).experts), dtype=np.float32).repeat(len(experts.layers), axis=0)
        session = Session(bundle, weights=experts.fold(one_LE), device=device)
        image = bundle.info.image
        for _ in images:
            session.run(np.zeros((1, image.height, image.width, image.channels), np.uint8))
        chosen = ""
    else:
        fitted = adapted(bundle, images, Reading(device=device), refine=what == "refine")
        chosen = fitted.adaptation.chosen
    return {"seconds": clock() - started_s, "chosen": chosen}


def peak_mib() -> float:
    """Of this process alone; `ru_maxrss` may be what started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what routed.py has made: bundle, single.onnx, images")
    parser.add_argument("what", choices=["latency", "plain", "start", "refine"])
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--turns", type=int, default=5)
    chosen = parser.parse_args()
    bundle = read_bundle(chosen.folder / "bundle")
    if chosen.what == "latency":
        figures = latencies(bundle, (chosen.folder / "single.onnx").read_bytes(), chosen.device, chosen.turns)
    else:
        figures = worklist(bundle, sorted((chosen.folder / "images").iterdir()), chosen.device, chosen.what)
    figures["peak_mib"] = peak_mib()
    figures["torch"] = "torch" in sys.modules
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
