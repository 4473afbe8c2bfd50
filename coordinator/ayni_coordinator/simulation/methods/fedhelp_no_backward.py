"""FedHelp in which the proxy teaches the large network nothing."""

from __future__ import annotations

from ayni_coordinator.simulation.methods.fedhelp import variant

METHOD = variant(consensus_weight=0.0, ranking_weight=0.0)
