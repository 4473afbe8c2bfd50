"""From a trained model to a signed bundle. This needs torch; using the bundle does not."""

from __future__ import annotations

from pathlib import Path

import monai
import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ayni.errors import IntegrityError, UserError
from ayni.keys import CERTIFICATE_FILE, KEY_FOLDER, SiteKeys
from ayni.learning.networks import Network, build_network, load_weights, shapes_of
from ayni.site.state import read_settings
from ayni.task import layers_of_others
from ayni.tensors import safe
from ayni.trained_model import WEIGHTS_FILE, TrainedModel
from ayni_export import bundle as parts
from ayni_export.bundle import BundleInfo, ModelFile, Parity
from ayni_export.bundle_folder import pretty_json, take_back, write_bundle
from ayni_export.graph import DiagnosisGraph, check_parity, to_onnx
from ayni_export.model_card import licence_note, model_card
from ayni_export.monai_metadata import monai_metadata
from ayni_export.signature import Vouched, check_site, sign_files, verified_certificate

OPSET = 20  # onnxruntime 1.17 and later


def export_site(home: Path, bundle: Path, *, alone: bool = False, personal: bool = False) -> BundleInfo:
    """Write the model of a site's folder as a bundle, with the coordinator's word that the site's key signed it.

    `alone`: the model that was trained without the federation; `personal`: the site's own model beside the
    federation's, if the task has one. Raises as `export_model`.
    """
    settings, signing = read_settings(home), SiteKeys.load(home).signing
    certificate_file = home / KEY_FOLDER / CERTIFICATE_FILE
    try:
        certificate = certificate_file.read_bytes()
    except OSError as error:
        raise UserError(f"{certificate_file} cannot be read ({error.strerror}). Restore it, or join again.") from None
    return export_model(
        home / "models" / ("personal" if personal else "alone" if alone else "federated"),
        bundle,
        signing_key=signing,
        vouched=Vouched(coordinator_key=settings.coordinator_signing_key.hex(), certificate=certificate.hex()),
    )


def export_model(
    model_folder: Path,
    bundle: Path,
    *,
    signing_key: Ed25519PrivateKey,
    vouched: Vouched | None = None,
    opset: int = OPSET,
) -> BundleInfo:
    """Write the model in `model_folder` (HOME/models/federated, say) as a bundle, signed with the site's key.

    Without `vouched`, the bundle says that no coordinator vouches for the key. The whole bundle appears at once or
    not at all; an older bundle of that name is replaced, anything else, also a file of yours in it, is left alone.
    A kill at the very moment of replacing can leave the older one as `.NAME.PID.old` beside its place: the next
    export takes it back. Raises UserError if the model or the place will not do, BundleError if the coordinator
    vouches for another key or site, and IntegrityError if ONNX Runtime does not answer as torch does.
    """
    take_back(bundle)
    parts.check_replaceable(bundle)
    model = TrainedModel.read(model_folder)
    if vouched is not None:
        _, certificate = verified_certificate(vouched, signing_key.public_key().public_bytes_raw())
        check_site(certificate, model.site, model.task.name)
    network, digest = _read_network(model_folder, model)
    graph = DiagnosisGraph(network, model)
    onnx_model = to_onnx(graph, model, opset=opset)
    info = _bundle_info(model, digest, check_parity(graph, onnx_model, model))
    versions = {"monai": monai.__version__, "pytorch": str(torch.__version__), "numpy": np.__version__}
    files = {
        parts.METADATA_FILE: pretty_json(monai_metadata(info, versions)),
        parts.MODEL_FILE: onnx_model,
        parts.MODEL_CARD_FILE: model_card(info).encode(),
        parts.LICENSE_FILE: licence_note(info).encode(),
    }
    files[parts.SIGNATURE_FILE] = sign_files(files, signing_key, vouched)
    write_bundle(bundle, files)
    return info


def _read_network(folder: Path, model: TrainedModel) -> tuple[Network, str]:
    """The network with its weights, and the SHA-256 of these."""
    if len(model.pixel_mean) != model.task.image.channels or len(model.pixel_std) != model.task.image.channels:
        raise UserError(f"{folder}: the normalisation does not fit the images' channels. Run `ayni train` again.")
    try:
        weights = safe.decode((folder / WEIGHTS_FILE).read_bytes())
        network = build_network(model.network, model.task.image, len(model.task.classes))
        safe.check_like(weights, shapes_of(network))
    except OSError:
        raise UserError(f"there is no {WEIGHTS_FILE} in {folder}. Run `ayni train` first.") from None
    except IntegrityError as error:
        raise UserError(f"{folder / WEIGHTS_FILE} is damaged ({error}). Run `ayni train` again.") from None
    floats = {name: np.asarray(tensor, np.float32) for name, tensor in weights.items()}
    load_weights(network, floats)
    return network.eval(), safe.digest(floats)


def _bundle_info(model: TrainedModel, digest: str, parity: Parity) -> BundleInfo:
    return BundleInfo(
        name=f"{model.task.name}-{model.kind}-{model.site}",
        version=f"{model.created[:10].replace('-', '.')}-{digest[:8]}",
        task=model.task.name,
        title=model.task.title,
        intended_use=model.task.intended_use,
        task_kind=model.task.kind,
        classes=model.task.classes,
        image=model.task.image,
        rules=parts.VOLUME_RULES if model.task.image.depth else "",
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        temperature=model.temperature,
        site=model.site,
        role=model.role,
        kind=model.kind,
        rounds=model.rounds,
        steps=model.steps,
        chosen=model.chosen,
        created=model.created,
        num_train_per_class=model.num_train_per_class,
        num_holdout_per_class=model.num_holdout_per_class,
        validation=model.validation,
        weights_sha256=digest,
        layers_of_others=layers_of_others(model.network),
        models=(ModelFile(path=parts.MODEL_FILE, precision="fp32", parity=parity),),
    )
