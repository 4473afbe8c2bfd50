"""FedProx: FedAvg, and each step is held near the global weights by mu/2 times the squared distance."""

from __future__ import annotations

from ayni_coordinator.simulation.methods.fedavg import averaging_method

METHOD = averaging_method("FedProx", "Li et al. 2020, arXiv 1812.06127", mu=0.01)
