"""From a federation's experts to a signed routed bundle. This needs torch; using the bundle does not.

    models/experts.safetensors            every tensor of every expert, stacked [E, ...], once for all graphs
           plain.onnx                     one network; its weights are folded when it is used
           plain_with_statistics.onnx     the same, and what it sees of images
           routed.onnx                    mixes the experts inside, by weights [L, E] that are an input
           gradient.onnx                  the loss of one image and its exact gradient, if the network allows
           statistics.safetensors         of the sites' training images, where a site shared them

E = experts (0 is the global model), L = layers.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import monai
import numpy as np
import torch

from ayni.errors import IntegrityError, UserError
from ayni.learning.networks import build_network, shapes_of
from ayni.tensors import safe
from ayni.tensors.safe import Array
from ayni.trained_model import Scores
from ayni_export import bundle as parts
from ayni_export.bundle import BundleInfo, ModelFile, Parity
from ayni_export.bundle_folder import pretty_json, take_back, write_bundle
from ayni_export.graph import TOLERANCE
from ayni_export.monai_metadata import monai_metadata
from ayni_export.routed import record
from ayni_export.routed.answers import with_normalisation
from ayni_export.routed.card import routed_card, routed_licence
from ayni_export.routed.external import located
from ayni_export.routed.graph import gradient_graph, plain_graph, routed_graph
from ayni_export.routed.layers import layers_of
from ayni_export.routed.losses import WEIGHTS
from ayni_export.routed.measured import Model, gradient_parity, latency, plain_parity, routed_parity
from ayni_export.routed.mixing import stacked
from ayni_export.routed.record import ExpertNote, Form, RoutedInfo
from ayni_export.routed.source import Federation, read_federation
from ayni_export.routed.views import view
from ayni_export.signature import sign_files

TEMPERATURE = 1.0  # nobody can calibrate a mixture for a place without labels


def export_federation(home: Path, bundle: Path, *, form: Form = "fp16") -> BundleInfo:
    """The global model and the experts that sites share now, from a coordinator's folder. Raises as `export_routed`."""
    return export_routed(read_federation(home), bundle, form=form)


def export_routed(federation: Federation, bundle: Path, *, form: Form = "fp16") -> BundleInfo:
    """Write a routed bundle, signed by the coordinator. The whole bundle appears at once or not at all, as a plain one.

    `form`: how the experts are stored; the mixing is done in 32 bits. Raises UserError if the place will not do,
    IntegrityError if an expert does not fit the task, or ONNX Runtime does not answer as torch does.
    """
    take_back(bundle)
    parts.check_replaceable(bundle)
    model = _model(federation, form)
    tensors, image = model.tensors(), federation.task.image
    first = {name: tensor[0].float() for name, tensor in tensors.items()}
    experts = safe.encode(model.stack)
    # a folded network's file will be laid out like this one, so the graph can say where its weights lie
    example = safe.encode({name: tensor.numpy() for name, tensor in first.items()})
    place, beside = Path(record.FOLDED_FILE).name, Path(record.EXPERTS_FILE).name
    looking = plain_graph(model.network, first, image, temperature=TEMPERATURE)
    plain = plain_graph(model.network, first, image, temperature=TEMPERATURE, statistics=False)
    routed = routed_graph(model.network, tensors, image, temperature=TEMPERATURE)
    files = {
        record.PLAIN_FILE: located(plain, place, example),
        record.LOOKING_FILE: located(looking, place, example),
        record.ROUTED_FILE: located(routed, beside, experts),
        record.EXPERTS_FILE: experts,
        record.STATISTICS_FILE: _statistics(federation),
    }
    about, parity, gradient = _measured(federation, model, files, form)
    if gradient is not None:
        files[record.GRADIENT_FILE] = located(gradient, beside, experts)
    info = _info(federation, about, parity, safe.digest(model.stack))
    versions = {"monai": monai.__version__, "pytorch": str(torch.__version__), "numpy": np.__version__}
    files |= {
        parts.METADATA_FILE: pretty_json(monai_metadata(info, versions)),
        parts.MODEL_CARD_FILE: routed_card(info, about).encode(),
        parts.LICENSE_FILE: routed_licence(info, about).encode(),
    }
    files[parts.SIGNATURE_FILE] = sign_files(files, federation.signing_key, None)
    write_bundle(bundle, files)
    return info


def _model(federation: Federation, form: Form) -> Model:
    """The experts' tensors as they will be stored. Raises IntegrityError if one does not fit the task's network."""
    task, kind = federation.task, np.float16 if form == "fp16" else np.float32
    network = build_network(task.small_network, task.image, len(task.classes)).eval()
    names = [expert.info.site for expert in federation.experts]
    if not names or names[0] != "global" or len(set(names)) < len(names):
        raise IntegrityError(f"experts are the global model and at most one of each site, not {names}")
    states = []
    for expert in federation.experts:
        if expert.info.task != task.name or len(expert.info.pixel_mean) != task.image.channels:
            raise IntegrityError(f"the expert of {expert.info.site!r} is of another task than {task.name!r}")
        safe.check_like(expert.weights, shapes_of(network))
        weights = {name: torch.from_numpy(np.array(expert.weights[name])) for name in shapes_of(network)}
        states.append(with_normalisation(weights, expert.info.pixel_mean, expert.info.pixel_std))
    with np.errstate(over="ignore"):  # refused in the next lines
        stack: dict[str, Array] = {name: tensor.numpy().astype(kind) for name, tensor in stacked(states).items()}
    for name, tensor in stack.items():
        safe.check_floats(name, tensor)
    return Model(network, stack, layers_of(stack), task.image, TEMPERATURE)


def _statistics(federation: Federation) -> bytes:
    """[2, F] by site, of those that can be compared: made in the very global model that is packed."""
    return safe.encode(_comparable(federation))


def _comparable(federation: Federation) -> dict[str, Array]:
    digest = safe.digest(federation.experts[0].weights)
    return {
        expert.info.site: expert.statistics_2F
        for expert in federation.experts
        if expert.statistics_2F is not None and expert.info.reference_digest == digest
    }


def _measured(
    federation: Federation, model: Model, files: dict[str, bytes], form: Form
) -> tuple[RoutedInfo, Parity, bytes | None]:
    """Gates: nothing is written if the answers differ from torch's; no gradient goes in if that one does."""
    task = federation.task
    plain, routed = files[record.PLAIN_FILE], files[record.ROUTED_FILE]
    parity, apart = plain_parity(model, plain), routed_parity(model, routed)
    if not max(parity.logits, apart) <= TOLERANCE:
        raise IntegrityError(
            f"ONNX Runtime's logits differ from torch's by {max(parity.logits, apart):.2g} (at most {TOLERANCE:g} is "
            "allowed): no bundle was written. Update torch and onnxruntime."
        )
    terms, second = WEIGHTS[task.kind], view(task.seed, mirror=task.training.mirror)
    gradient, slope_apart, why = None, None, ""
    try:
        gradient = gradient_graph(model.network, model.tensors(), task.image, view=second)
        slope_apart = gradient_parity(model, gradient, second, terms)
    except IntegrityError as error:
        why = str(error)
    if slope_apart is not None and not slope_apart <= TOLERANCE:
        gradient, slope_apart, why = None, None, f"it differs from torch's by {slope_apart:.2g}"
    with_statistics = _comparable(federation)
    notes = tuple(
        ExpertNote(
            site=expert.info.site,
            num_train=expert.info.num_train,
            rounds=expert.info.rounds,
            num_cases=expert.info.num_cases if expert.info.site in with_statistics else 0,
            weights_sha256=safe.digest(expert.weights),
        )
        for expert in federation.experts
    )
    info = RoutedInfo(
        experts=notes,
        tensors=tuple(model.stack),
        layers=tuple(layer.name for layer in model.layers),
        form=form,
        reference_digest=safe.digest(federation.experts[0].weights),
        term_weights=terms,
        routed_parity=apart,
        gradient_parity=slope_apart,
        why_no_gradient=why,
        latency=latency(model, plain, routed, gradient, terms),
    )
    return info, parity, gradient


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
