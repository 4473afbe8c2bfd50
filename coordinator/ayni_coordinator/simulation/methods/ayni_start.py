"""`ayni_soft` from first weights that the centre has trained on its labelled images: they cost no byte more than random
ones."""

from __future__ import annotations

from collections.abc import Mapping

from ayni.tensors.safe import Floats
from ayni_coordinator.simulation.method import Setup
from ayni_coordinator.simulation.methods import dual_kd
from ayni_coordinator.simulation.methods.ayni_soft import SOFT
from ayni_coordinator.simulation.teachers import start_of


def start(setup: Setup) -> Mapping[str, Floats]:
    """The same for all methods that begin so."""
    return start_of(dual_kd.centre_in(setup), dual_kd.with_settings(setup.task, **SOFT))


METHOD = dual_kd.variant(start=start, **SOFT)
