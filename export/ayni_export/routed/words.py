"""What was chosen between the experts, in plain words: the report, the terminal and an adapted bundle say the same.

Needs no numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

from ayni_export.routed.record import Adaptation, RoutedInfo

FEW_IMAGES = 8  # below, what is chosen is called rough
LEAST_SHARE = 0.01  # an expert with less is not named
ALMOST_ALL = 0.9995
FALL_BACK = "The global model answers alone"


def verdict(info: RoutedInfo, adaptation: Adaptation) -> str:
    """Who speaks, in one sentence."""
    if adaptation.chosen == "global":
        if not adaptation.tried:
            if len(info.experts) == 1:
                return f"{FALL_BACK}: there is no other expert."
            if info.say == 0 and adaptation.num_images:
                return f"{FALL_BACK}: at their own sites the experts are no better than it."
            return f"{FALL_BACK}: no {info.what} could be used to choose by."
        return f"{FALL_BACK}: a mixture was tried, and the guard refused it."
    spoken = who_spoke(info.names, adaptation.weights)
    return f"{spoken[0].upper()}{spoken[1:]}."


def unchecked(adaptation: Adaptation) -> str:
    """What nobody did."""
    how = (
        "by how the images look, without a diagnosis of any of them"
        if adaptation.tried
        else "before any image was seen"
    )
    return f"This was chosen {how}; nobody checked it."


def who_spoke(names: Sequence[str], weights: Sequence[float]) -> str:
    """
    >>> who_spoke(("the global model", "the model of north", "the model of south"), (0.25, 0.748, 0.002))
    'the model of north speaks with 75 %, the global model with 25 %'
    """
    order = sorted(range(len(names)), key=lambda i: -weights[i])
    named = [i for i in order if weights[i] >= LEAST_SHARE] or order[:1]
    if len(named) == 1:
        return f"{names[named[0]]} speaks {'' if weights[named[0]] > ALMOST_ALL else 'almost '}alone"
    first, *others = [f"{100 * weights[i]:.0f} %" for i in named]
    rest = [f"{names[i]} with {share}" for i, share in zip(named[1:], others, strict=True)]
    return ", ".join([f"{names[named[0]]} speaks with {first}", *rest])


def reasons(info: RoutedInfo, adaptation: Adaptation) -> list[str]:
    """Sentences on how it came to be, each true by itself."""
    at_home = home_words(info)
    said = [at_home] if at_home else []
    if not adaptation.tried:
        return said
    rough = "" if adaptation.num_images >= FEW_IMAGES else f": fewer than {FEW_IMAGES}, so the choice is rough"
    images = f"{adaptation.num_images} {info.what}{'' if adaptation.num_images == 1 else 's'}"
    said.append(f"The choice rests on {images}{rough}.")
    if adaptation.num_in_part:
        said.append(
            f"{adaptation.num_in_part} of them {'is' if adaptation.num_in_part == 1 else 'are'} larger than what the "
            "network sees at once: the choice rests on the part in the middle. What is answered is all of it."
        )
    sites = (expert.site for expert in info.experts)
    near = sorted((far, site) for far, site in zip(adaptation.distances, sites, strict=True) if far is not None)
    if near:
        said.append(
            f"How far the training {info.what}s of each site look from these, in nats: "
            + ", ".join(f"{site} {far:.2f}" for far, site in near)
            + "."
        )
    else:
        said.append(f"No expert's site gave statistics of its training {info.what}s, so nothing points to one of them.")
    if adaptation.refinement is not None and adaptation.refinement.num_steps:
        steps = adaptation.refinement
        own = f", the last {steps.num_own} of them layer by layer," if steps.num_own and info.has_gradient else ""
        said.append(
            f"{steps.num_steps} gradient steps on unlabelled {info.what}s{_of_answers(info)}{own} took the loss from "
            f"{steps.loss_first:.3f} to {steps.loss_last:.3f}; a falling loss is no proof of better answers."
        )
    for tried in adaptation.tried:
        what = "the start" if tried.name == "start" else "the refined mixture"
        mixture = f"{what} ({who_spoke(info.names, tried.weights)})"
        if tried.refused:
            said.append(f"The guard refused {mixture}: {'; '.join(tried.refused)}.")
        elif tried.name == adaptation.chosen:
            said.append(
                f"The guard passed {mixture}: agreement with the global model {tried.answers.agreement:.2f} of 1."
            )
    return said


def home_words(info: RoutedInfo) -> str:
    """What the sites' held-out images say of their experts; nothing if no site told."""
    if not info.num_held_out:
        return ""
    so = f": a mixture of them may have {100 * info.say:.0f} % of the say"
    return (
        f"On {info.num_held_out} held-out {info.what}s of their own sites the experts are "
        f"{'better' if info.say else 'no better'} than the global model ({info.home_gain:+.3f} {info.home_unit} in the "
        f"mean){so if info.say else ''}."
    )


def _of_answers(info: RoutedInfo) -> str:
    return "" if info.has_gradient else ", of the experts' mixed answers as there is no gradient of mixed weights,"


def explained(info: RoutedInfo, adaptation: Adaptation) -> str:
    """docs/adaptation.md of an adapted bundle: the same record gives the same bytes."""
    lines = "\n".join(f"- {sentence}" for sentence in reasons(info, adaptation))
    rows = "\n".join(
        f"| {name} | {expert.num_train} | {100 * weight:.1f} % |"
        for name, expert, weight in zip(info.names, info.experts, adaptation.weights, strict=True)
    )
    return f"""# How this bundle was adapted

{verdict(info, adaptation)} {unchecked(adaptation)}

{lines}

| expert | training {info.what}s | share, the mean over {len(info.layers)} layers |
|---|---:|---:|
{rows}

Made {adaptation.created}. All other files are as the coordinator signed them. `adaptation.json` holds the share of each
expert in each layer; the signed experts mixed by it are the weights in `models/weights.safetensors` (SHA-256 of their
values `{adaptation.weights_sha256}`), bit for bit, and every program that uses this bundle checks that.
"""
