"""FedHelp with public images of another kind than the sites' own."""

from __future__ import annotations

from ayni_coordinator.simulation.methods.fedhelp import variant

METHOD = variant(public="out-of-domain", consensus_weight=0.0)
