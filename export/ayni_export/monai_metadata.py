"""configs/metadata.json as MONAI Bundles have it (docs.monai.io, mb_specification), with our own section."""

from __future__ import annotations

from collections.abc import Mapping

import ayni
from ayni_export.bundle import BundleInfo
from ayni_export.model_card import licence_of_others

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def monai_metadata(info: BundleInfo, versions: Mapping[str, str]) -> dict[str, object]:
    """`versions`: of "monai", "pytorch" and "numpy", with which the network was built and exported."""
    return {
        "schema": SCHEMA,
        "version": info.version,
        "changelog": {info.version: f"{info.kind} model after {info.rounds} rounds at {info.site}, {info.created}"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["pytorch"],
        "numpy_version": versions["numpy"],
        "required_packages_version": {"onnxruntime": info.models[0].parity.onnxruntime_version},
        "name": info.name,
        "task": info.title,
        "description": f"{_what_it_does(info)}; {info.kind} model of the site {info.site}.",
        "authors": f"{info.site}, with Ayni {ayni.__version__}",
        "copyright": f"The site {info.site} and its federation. {licence_of_others(info)}".strip(),
        "data_source": "private images of the sites that took part; they never left these sites",
        "data_type": "uint8 voxels" if info.image.depth else "uint8 pixels",
        "image_classes": f"{info.image.channels} channel(s), 0 to 255",
        "label_classes": ", ".join(info.classes),
        "pred_classes": ", ".join(info.classes),
        "eval_metrics": info.validation.figures() if info.validation.num_images else {},
        "intended_use": info.intended_use,
        "references": [],
        "network_data_format": {"inputs": _inputs(info), "outputs": _outputs(info)},
        "ayni": info,
    }


def _what_it_does(info: BundleInfo) -> str:
    if info.task_kind == "segmentation":
        point = "voxel" if info.image.depth else "pixel"
        return f"Segmentation of {', '.join(info.classes)}, each {point} in any number of them"
    return f"Classification into {len(info.classes)} classes"


def _inputs(info: BundleInfo) -> dict[str, object]:
    colours = ("grey",) if info.image.channels == 1 else ("red", "green", "blue")
    return {
        "pixels": {
            "type": "image",
            "format": "magnitude" if info.image.channels == 1 else "RGB",
            "modality": "n/a",
            "num_channels": info.image.channels,
            "spatial_shape": list(info.image.seen),
            "dtype": "uint8",
            "value_range": [0, 255],
            "is_patch_data": info.image.seen != info.image.size,
            "channel_def": {str(i): name for i, name in enumerate(colours)},
        }
    }


def _outputs(info: BundleInfo) -> dict[str, object]:
    classes = {str(i): name for i, name in enumerate(info.classes)}
    if info.task_kind == "segmentation":
        maps = {
            "type": "image",
            "format": "segmentation",
            "num_channels": len(info.classes),
            "spatial_shape": list(info.image.seen),
            "dtype": "float32",
            "is_patch_data": info.image.seen != info.image.size,
            "channel_def": classes,
        }
        return {"logits": {**maps, "value_range": []}, "probabilities": {**maps, "value_range": [0, 1]}}
    vector = {
        "num_channels": len(info.classes),
        "spatial_shape": [1],
        "dtype": "float32",
        "is_patch_data": False,
        "channel_def": classes,
    }
    return {
        "logits": {"type": "logits", "format": "classes", "value_range": [], **vector},
        "probabilities": {"type": "probabilities", "format": "classes", "value_range": [0, 1], **vector},
    }
