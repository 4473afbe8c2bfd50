"""Plain bytes, deflated, as a tensor of an artefact; read back with a bound, so that no bomb goes off."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from ayni.errors import IntegrityError


def deflated(plain: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(zlib.compress(plain, 9), np.uint8)


def inflated(packed: bytes, num_bytes: int, what: str) -> bytes:
    """Exactly `num_bytes`, and never more in memory. Raises IntegrityError, which says `what` is damaged."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(packed, num_bytes)
    except zlib.error as error:
        raise IntegrityError(f"{what}, damaged: {error}") from None
    if len(plain) != num_bytes or inflater.unconsumed_tail:
        raise IntegrityError(f"{what}, not of the promised length")
    return plain
