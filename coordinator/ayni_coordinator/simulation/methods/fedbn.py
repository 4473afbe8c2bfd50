"""FedBN: FedAvg of all but the normalisation layers, which stay at their site."""

from __future__ import annotations

from ayni_coordinator.simulation.averaging import norm_names
from ayni_coordinator.simulation.methods.fedavg import averaging_method

METHOD = averaging_method(
    "FedBN (group normalisation kept local)", "Li et al. 2021, arXiv 2102.07623", is_own=norm_names
)
