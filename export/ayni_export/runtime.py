"""ONNX Runtime: is it there, is it there only once, and a session on verified bytes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np

from ayni.errors import MissingExtraError, UserError
from ayni.tensors.safe import Array
from ayni_export.bundle import Bundle, BundleInfo
from ayni_export.signature import BundleError

CPU, GPU = "onnxruntime", "onnxruntime-gpu"
OUTPUTS = ("logits", "probabilities")
Device = Literal["cpu", "gpu"]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Session:
    """A bundle's model, ready to run. `device` is what it really runs on, "cpu" or "gpu"."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        weights: Mapping[str, Array] | None = None,
        device: Device | None = None,
        num_threads: int = 1,
    ) -> None:
        """`weights`: of a model that has none of its own (a routed bundle's). `device`: None takes a GPU if this
        installation can use one. Raises BundleError if the model cannot be loaded, UserError or MissingExtraError if
        the runtime cannot.
        """
        # a pattern pays for batches that come again and again; a single map of 256 x 256 takes 15 MB less without
        mem_pattern = bundle.info.task_kind == "classification"
        self._session, self.device = open_session(
            bundle.model, weights or {}, device=device, num_threads=num_threads, mem_pattern=mem_pattern
        )
        try:
            fits = self._fits(bundle.info)
        except Exception as error:  # the runtime has no common exception
            raise not_loaded(error) from None
        if not fits:
            raise BundleError("the model in the bundle is not the one that its metadata describe. Export it again.")

    def _fits(self, info: BundleInfo) -> bool:
        """Whether black images get answers of the promised shapes."""
        if tuple(output.name for output in self._session.get_outputs()) != OUTPUTS:
            return False
        image, dense = info.image, info.task_kind == "segmentation"
        # a segmentation is asked of one image at a time: two would take twice the memory for nothing
        num_images, place = 1 if dense or image.depth else 2, image.seen if dense else ()
        answers = self.run(np.zeros((num_images, *image.seen, image.channels), np.uint8))
        return all(answer.shape == (num_images, len(info.classes), *place) for answer in answers)

    def run(self, pixels_BHWK: Pixels) -> tuple[Floats, Floats]:
        """Returns logits and probabilities, each [B, C], or [B, S, H, W] in a segmentation of S structures.

        Of volumes H, W are D, H, W: what the model sees of one at once.
        """
        logits, probabilities = self._session.run(list(OUTPUTS), {"pixels": planes(pixels_BHWK)})
        return logits, probabilities


def planes(pixels_BHWK: Pixels) -> Pixels:
    """[B, K, H, W], or [B, K, D, H, W] of volumes, as a graph takes them."""
    return np.ascontiguousarray(np.moveaxis(pixels_BHWK, -1, 1))


def open_session(
    model: bytes,
    initialisers: Mapping[str, Array],
    *,
    device: Device | None = None,
    num_threads: int = 1,
    mem_pattern: bool = True,
) -> tuple[Any, Device]:
    """A session of ONNX Runtime, and what it really runs on. `initialisers`: tensors that the model names and lacks.

    A GPU that cannot be used is no error: the processor takes over, and the caller sees it. Raises BundleError if the
    model cannot be loaded, UserError or MissingExtraError if the runtime cannot.
    """
    installed = installed_packages()
    check_packages(installed)
    onnxruntime = _import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # the arena stays on: without it the heap breaks up, and 110 MB become 300 now and then
    options.enable_mem_pattern = mem_pattern
    options.log_severity_level = 4  # what fails is raised
    providers = ["CPUExecutionProvider"]
    if GPU in installed and device != "cpu":
        onnxruntime.preload_dlls()
        providers.insert(0, "CUDAExecutionProvider")
    try:
        if initialisers:
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensor) for tensor in initialisers.values()]
            options.add_external_initializers(list(initialisers), values)
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # the runtime has no common exception
        raise not_loaded(error) from None
    # without a GPU it still lists CUDA as available: only the session itself tells
    return session, "gpu" if session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"


def not_loaded(error: Exception) -> BundleError:
    version = _import_onnxruntime().__version__
    return BundleError(
        f"the model in the bundle cannot be loaded by onnxruntime {version} ({type(error).__name__}). Update "
        "onnxruntime, or export the bundle again."
    )


def fell_back(wanted: Device | None, device: Device) -> str:
    """What to say if a GPU was asked for and the processor ran; nothing otherwise."""
    if wanted != "gpu" or device == "gpu":
        return ""
    if GPU in installed_packages():
        return "No NVIDIA GPU can be used here (driver, CUDA or cuDNN are missing): this processor answered instead."
    return (
        f"--device gpu needs {GPU}: this processor answered instead. Run: pip uninstall -y {CPU}, then "
        "pip install 'ayni[deploy-gpu]'."
    )


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
