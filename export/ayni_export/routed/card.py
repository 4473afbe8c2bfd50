"""The model card and the licence note of a routed bundle: what a person should know before it is used."""

from __future__ import annotations

from ayni_export.bundle import BundleInfo
from ayni_export.model_card import licence_of_others
from ayni_export.routed.record import ExpertNote, RoutedInfo
from ayni_export.routed.words import home_words


def routed_card(info: BundleInfo, routed: RoutedInfo) -> str:
    """The text of docs/model_card.md."""
    parity, speed = info.models[0].parity, routed.latency
    what, measures = routed.what, "sizes" if info.image.depth else "areas"
    rows = "\n".join(
        f"| {name} | {note.num_train or ''} | {note.num_cases or 'none'} | {_at_home(note, routed)} |"
        for name, note in zip(routed.names, routed.experts, strict=True)
    )
    gradient = (
        f"- No gradient is in it: {routed.why_no_gradient}. Steps of `--refine` are those of mixed answers."
        if routed.gradient_parity is None
        else f"- Exact gradients for `--refine`, within a share of {routed.gradient_parity:.1e} of PyTorch's."
    )
    return f"""# {info.title}

Routed model `{info.name}`, version `{info.version}`: {len(routed.experts)} experts of one federation, and the means to
mix them for a place that never trained.

## Intended use

{info.intended_use}

It is not a medical device. {_whose_answers(routed)} The report of each diagnosis shows which model spoke.

## Experts

Each site agreed to share its model, and can withdraw it from later bundles. No {what} left any site.
{licence_of_others(info)}
| expert | training {what}s | {what}s behind its statistics | better at home than the global model |
|---|---:|---:|---:|
{rows}

## How a mixture is chosen

- From the worklist's feature statistics (means and variances of few layers) and those of the sites' training {what}s.
- A guard compares its answers with the global model's on the same {what}s: {measures}, sureness and agreement. If they
  part too far, the global model answers alone, and the report says so.
- {home_words(routed) or f"No site told how its model does on {what}s that it held out."}
{_in_part(info)}\
- One {what} is enough; eight or more are better.

## Limits

- **Not measured at your place.** No figure of the sites' own models holds for a mixture, nor for other patients.
- The guard needs no label, so it cannot know what is right: it knows only what is unusual.
- Probabilities are not calibrated.

## Technical

- ONNX; the experts are stored with {"16" if routed.form == "fp16" else "32"} bits and mixed with 32, in each of \
{len(routed.layers)} layers by weights that sum to 1.
- ONNX Runtime {parity.onnxruntime_version} against PyTorch {parity.pytorch_version} on {parity.num_images} {what}s: \
logits of mixed experts within {parity.logits:.1e}, mixed before or inside the graph (allowed {parity.tolerance:g}).
{gradient}
- One {what} on one thread where it was made: {speed.plain_ms:.1f} ms plain, {speed.routed_ms:.1f} ms mixed inside\
{f", {speed.gradient_ms:.1f} ms with its gradient" if speed.gradient_ms is not None else ""}.
- SHA-256 of the experts' weights: `{info.weights_sha256}`
"""


def _at_home(note: ExpertNote, routed: RoutedInfo) -> str:
    if not note.num_held_out:
        return "" if note.site == "global" else "not told"
    return f"{note.home_gain:+.3f} {routed.home_unit} on {note.num_held_out} held-out {routed.what}s"


def _whose_answers(routed: RoutedInfo) -> str:
    if routed.say == 0:
        return "The global model answers alone: at their own sites the experts are no better than it."
    return (
        f"Answers to one worklist come from one mixture of experts, chosen by how {routed.what}s look, without labels."
    )


def _in_part(info: BundleInfo) -> str:
    if not info.image.depth:
        return ""
    seen = " x ".join(map(str, info.image.seen))
    return f"- Of a volume that is larger than what the network sees at once, {seen} voxels, both look at the middle.\n"


def routed_licence(info: BundleInfo, routed: RoutedInfo) -> str:
    sites = ", ".join(expert.site for expert in routed.experts[1:]) or "no single site"
    return (
        f"This bundle holds the global model of the task {info.task!r} and models that were shared by: {sites}.\n"
        "The rights in the models lie with those sites and their federation, under the terms on which they agreed;\n"
        "the bundle by itself grants none. Ayni, the software that made it, is licensed under Apache-2.0.\n"
        "The models are provided as is, without warranty of any kind. They are not a medical device.\n"
        f"{licence_of_others(info)}"
    )
