"""ONNX Runtime: is it there, is it there only once, and a session on verified bytes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection
from typing import Any

import numpy as np

from ayni.errors import MissingExtraError, UserError
from ayni_export.bundle import Bundle, BundleInfo
from ayni_export.signature import BundleError

CPU, GPU = "onnxruntime", "onnxruntime-gpu"
OUTPUTS = ("logits", "probabilities")
Floats = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Session:
    """A bundle's model, ready to run. `device` is what it really runs on, "cpu" or "gpu"."""

    def __init__(self, bundle: Bundle, *, num_threads: int = 1) -> None:
        """Raises BundleError if the model cannot be loaded, UserError or MissingExtraError if the runtime cannot."""
        installed = installed_packages()
        check_packages(installed)
        onnxruntime = _import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        # the arena stays on: without it the heap breaks up, and 110 MB become 300 now and then
        # a pattern pays for batches that come again and again; a single map of 256 x 256 takes 15 MB less without
        options.enable_mem_pattern = bundle.info.task_kind == "classification"
        options.log_severity_level = 4  # what fails is raised
        providers = ["CPUExecutionProvider"]
        if GPU in installed:
            onnxruntime.preload_dlls()
            providers.insert(0, "CUDAExecutionProvider")
        try:
            self._session = onnxruntime.InferenceSession(bundle.model, options, providers=providers)
            fits = self._fits(bundle.info)
        except Exception as error:  # the runtime has no common exception
            raise BundleError(
                f"the model in the bundle cannot be loaded by onnxruntime {onnxruntime.__version__} "
                f"({type(error).__name__}). Update onnxruntime, or export the bundle again."
            ) from None
        if not fits:
            raise BundleError("the model in the bundle is not the one that its metadata describe. Export it again.")
        self.device = "gpu" if self._session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"

    def _fits(self, info: BundleInfo) -> bool:
        """Whether black images get answers of the promised shapes."""
        if tuple(output.name for output in self._session.get_outputs()) != OUTPUTS:
            return False
        image = info.image
        # a segmentation is asked of one image at a time: two would take twice the memory for nothing
        num_images, place = (1, (image.height, image.width)) if info.task_kind == "segmentation" else (2, ())
        answers = self.run(np.zeros((num_images, image.height, image.width, image.channels), np.uint8))
        return all(answer.shape == (num_images, len(info.classes), *place) for answer in answers)

    def run(self, pixels_BHWK: Pixels) -> tuple[Floats, Floats]:
        """Returns logits and probabilities, each [B, C], or [B, S, H, W] in a segmentation of S structures."""
        pixels_BKHW = np.ascontiguousarray(pixels_BHWK.transpose(0, 3, 1, 2))
        logits, probabilities = self._session.run(list(OUTPUTS), {"pixels": pixels_BKHW})
        return logits, probabilities


def installed_packages() -> set[str]:
    """Which distributions of ONNX Runtime are installed; both bring the same module."""
    found = set()
    for name in (CPU, GPU):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
    return found


def check_packages(installed: Collection[str]) -> None:
    """Raises UserError if both are installed: they overwrite each other's files, and pip does not notice."""
    if CPU in installed and GPU in installed:
        raise UserError(
            f"both {CPU} and {GPU} are installed, and each breaks the other. Run: pip uninstall -y {CPU} {GPU}, "
            "then pip install 'ayni[deploy]' (or 'ayni[deploy-gpu]' for a machine with an NVIDIA GPU)."
        )


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("diagnosis", "deploy") from None
    return onnxruntime
