"""FedBN (Li et al. 2021, arXiv 2102.07623): FedAvg of all but the normalisation layers, which stay at their site.

Ours are group normalisations: what stays is their scale and shift.
"""

from __future__ import annotations

from ayni_coordinator.simulation.averaging import norm_names
from ayni_coordinator.simulation.methods.fedavg import averaging_method

METHOD = averaging_method(is_own=norm_names)
