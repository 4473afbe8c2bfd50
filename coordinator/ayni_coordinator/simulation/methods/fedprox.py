"""FedProx: FedAvg, and each step is held near the global weights by mu/2 times the squared distance.

Li et al. 2020, arXiv 1812.06127.
"""

from __future__ import annotations

from ayni_coordinator.simulation.methods.fedavg import averaging_method

METHOD = averaging_method(mu=0.01)
