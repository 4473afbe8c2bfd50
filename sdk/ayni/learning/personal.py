"""A site's personal model: a running mean of what it has trained, round after round (IOP-FL, arXiv 2204.08467).

p <- decay * p + (1 - decay) * w, where w is the site's freshly trained small network (a hospital's proxy); the first w
is its start. Training never starts from it, and it leaves its site only by `ayni site share-expert`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ayni.tensors.safe import Array


def personal_after(before: Mapping[str, Array], trained: Mapping[str, Array], decay: float) -> dict[str, Array]:
    """The personal model after one more round, by the names of the network's state; `before` is empty at first.

    Arrays of its own, never views of `trained`. What counts (an integer buffer) is taken from `trained`, not averaged.

    >>> p = personal_after({"w": np.ones(1, np.float32)}, {"w": np.zeros(1, np.float32)}, decay=0.25)
    >>> float(p["w"][0])
    0.25
    """
    return {name: _moved(before.get(name), array, decay) for name, array in trained.items()}


def _moved(before: Array | None, trained: Array, decay: float) -> Array:
    if before is None or trained.dtype.kind != "f":
        return np.array(trained)
    moved: Array = (decay * before.astype(np.float64) + (1 - decay) * trained.astype(np.float64)).astype(trained.dtype)
    return moved
