"""From a federation's experts to a signed routed bundle. This needs torch; using the bundle does not.

    models/experts.safetensors            every tensor of every expert, stacked [E, ...], once for all graphs
           plain.onnx                     one network; its weights are folded when it is used
           plain_with_statistics.onnx     the same, and what it sees of images
           routed.onnx                    mixes the experts inside, by weights [L, E] that are an input
           gradient.onnx                  the loss of one image and its exact gradient, if the network allows, and
                                          what it sees at once is not so large that a step would take gigabytes
           statistics.safetensors         of the sites' training images, where a site shared them

E = experts (0 is the global model), L = layers.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import monai
import numpy as np
import torch
from torch import Tensor

from ayni.data.volume_file import size_text
from ayni.errors import IntegrityError, UserError
from ayni.learning.networks import Network
from ayni.task import layers_of_others
from ayni.tensors import safe
from ayni.trained_model import Scores
from ayni_export import bundle as parts
from ayni_export.bundle import BundleInfo, ModelFile, Parity
from ayni_export.bundle_folder import pretty_json, take_back, write_bundle
from ayni_export.monai_metadata import monai_metadata
from ayni_export.routed import record
from ayni_export.routed.card import routed_card, routed_licence
from ayni_export.routed.collecting import comparable, notes_of, stack_of
from ayni_export.routed.external import located
from ayni_export.routed.graph import gradient_graph, plain_graph, routed_graph
from ayni_export.routed.layers import layers_of
from ayni_export.routed.losses import WEIGHTS
from ayni_export.routed.measured import latency
from ayni_export.routed.parity import check_forward, check_gradient
from ayni_export.routed.record import Form, RoutedInfo
from ayni_export.routed.source import Federation, read_federation
from ayni_export.routed.views import view
from ayni_export.signature import sign_files

MOST_PLACES = 1 << 18  # pixels or voxels: at 64 x 64 x 64 voxels a gradient step takes about a gigabyte
TEMPERATURE = 1.0  # nobody can calibrate a mixture for a place without labels


def export_federation(home: Path, bundle: Path, *, form: Form = "fp16") -> BundleInfo:
    """The global model and the experts that sites share now, from a coordinator's folder. Raises as `export_routed`."""
    return export_routed(read_federation(home), bundle, form=form)


def export_routed(
    federation: Federation, bundle: Path, *, form: Form = "fp16", most_places: int = MOST_PLACES
) -> BundleInfo:
    """Write a routed bundle, signed by the coordinator. The whole bundle appears at once or not at all, as a plain one.

    `form`: how the experts are stored; the mixing is done in 32 bits. `most_places`: what the network may see at once
    for the bundle to have a gradient graph. Raises UserError if the place will not do,
    IntegrityError if an expert does not fit the task, or ONNX Runtime does not answer as torch does.
    """
    take_back(bundle)
    parts.check_replaceable(bundle)
    network, stack = stack_of(federation, form)
    files, routed, parity = _graphs(federation, network, stack, form, most_places)
    info = _info(federation, routed, parity, safe.digest({name: tensor.numpy() for name, tensor in stack.items()}))
    versions = {"monai": monai.__version__, "pytorch": str(torch.__version__), "numpy": np.__version__}
    files |= {
        record.STATISTICS_FILE: safe.encode(comparable(federation)),
        parts.METADATA_FILE: pretty_json(monai_metadata(info, versions)),
        parts.MODEL_CARD_FILE: routed_card(info, routed).encode(),
        parts.LICENSE_FILE: routed_licence(info, routed).encode(),
    }
    files[parts.SIGNATURE_FILE] = sign_files(files, federation.signing_key, None)
    write_bundle(bundle, files)
    return info


def _graphs(
    federation: Federation, network: Network, stack: dict[str, Tensor], form: Form, most_places: int
) -> tuple[dict[str, bytes], RoutedInfo, Parity]:
    """The graphs and the experts beside them, and what is known of both. Nothing comes of it if ONNX Runtime's answers
    differ from torch's; if only the gradient does, or has no graph, it is left out and the bundle says so."""
    task, arrays = federation.task, {name: tensor.numpy() for name, tensor in stack.items()}
    first = {name: tensor[0].float() for name, tensor in stack.items()}
    plain = plain_graph(network, first, task.image, temperature=TEMPERATURE, statistics=False)
    looking = plain_graph(network, first, task.image, temperature=TEMPERATURE)
    routed = routed_graph(network, stack, task.image, temperature=TEMPERATURE)
    check_forward(network, stack, task.image, temperature=TEMPERATURE, plain=plain)
    parity = check_forward(network, stack, task.image, temperature=TEMPERATURE, plain=looking, routed=routed)
    gradient, apart, why = _gradient(federation, network, stack, most_places)
    terms = WEIGHTS[task.kind]
    speed = latency(arrays, task.image, plain=plain, routed=routed, gradient=gradient, term_weights=terms)
    about = RoutedInfo(
        experts=notes_of(federation),
        tensors=tuple(stack),
        layers=tuple(layer.name for layer in layers_of(stack)),
        form=form,
        reference_digest=safe.digest(federation.experts[0].weights),
        term_weights=terms,
        gradient_parity=apart,
        why_no_gradient=why,
        latency=speed,
        dimensions=3 if task.image.depth else 2,
        home_unit="Dice" if task.kind == "segmentation" else "nats",
    )
    experts = safe.encode(arrays)
    # a folded network's file will be laid out like this one, so the graph can say where its weights will lie
    example = safe.encode({name: tensor.numpy() for name, tensor in first.items()})
    place, beside = Path(record.FOLDED_FILE).name, Path(record.EXPERTS_FILE).name
    files = {
        record.EXPERTS_FILE: experts,
        record.PLAIN_FILE: located(plain, place, example),
        record.LOOKING_FILE: located(looking, place, example),
        record.ROUTED_FILE: located(routed, beside, experts),
    }
    if gradient is not None:
        files[record.GRADIENT_FILE] = located(gradient, beside, experts)
    return files, about, parity


def _gradient(
    federation: Federation, network: Network, stack: dict[str, Tensor], most_places: int
) -> tuple[bytes | None, float | None, str]:
    """The graph and how closely it follows torch; or why there is none."""
    task = federation.task
    if math.prod(task.image.seen) > most_places:
        return None, None, f"the network sees {size_text(task.image.seen)} at once, and a step would fill the memory"
    second = view(task.seed, num_axes=len(task.image.size), mirror=task.training.mirror)
    try:
        gradient = gradient_graph(network, stack, task.image, view=second)
        return gradient, check_gradient(network, stack, task.image, view=second, gradient=gradient), ""
    except IntegrityError as error:
        return None, None, str(error)


def _info(federation: Federation, routed: RoutedInfo, parity: Parity, digest: str) -> BundleInfo:
    task, created, mean = federation.task, datetime.now(UTC).isoformat(timespec="seconds"), federation.experts[0].info
    return BundleInfo(
        name=f"{task.name}-routed",
        version=f"{created[:10].replace('-', '.')}-{digest[:8]}",
        task=task.name,
        title=task.title,
        intended_use=task.intended_use,
        task_kind=task.kind,
        classes=task.classes,
        image=task.image,
        rules=parts.VOLUME_RULES if task.image.depth else "",
        pixel_mean=mean.pixel_mean,
        pixel_std=mean.pixel_std,
        temperature=TEMPERATURE,
        site="coordinator",
        role="coordinator",
        kind="routed",
        rounds=federation.rounds,
        steps=0,
        chosen="between experts, for each worklist",
        created=created,
        num_train_per_class={},
        num_holdout_per_class={},
        validation=Scores(num_images=0),
        weights_sha256=digest,
        layers_of_others=layers_of_others(task.small_network),
        models=(ModelFile(path=record.PLAIN_FILE, precision="fp32", parity=parity),),
        routed=routed,
    )


def check_form(form: str) -> Form:
    """Raises UserError for anything but fp16 and fp32."""
    if form == "fp16":
        return "fp16"
    if form == "fp32":
        return "fp32"
    raise UserError(f"--form is fp16 or fp32, not {form!r}.")
