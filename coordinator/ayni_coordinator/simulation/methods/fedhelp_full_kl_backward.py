"""FedHelp in which the proxy teaches its full answer back, by the weight that the order has."""

from __future__ import annotations

from ayni_coordinator.simulation.methods.fedhelp import variant

METHOD = variant(consensus_weight=0.0, backward="full-kl")
