"""`ayni_soft` from first weights that the centre has trained on its labelled images: they cost no byte more than random
ones."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ayni.tensors.safe import Floats
from ayni_coordinator.simulation.method import Setup
from ayni_coordinator.simulation.methods import dual_kd
from ayni_coordinator.simulation.methods.ayni_soft import SOFT
from ayni_coordinator.simulation.teachers import start_of


def start(setup: Setup) -> Mapping[str, Floats]:
    """The same for all methods that begin so."""
    settings = msgspec.structs.replace(setup.task.dual_kd, **SOFT)  # type: ignore[type-var]
    return start_of(dual_kd.centre_in(setup), msgspec.structs.replace(setup.task, dual_kd=settings))


METHOD = dual_kd.variant(start=start, **SOFT)
