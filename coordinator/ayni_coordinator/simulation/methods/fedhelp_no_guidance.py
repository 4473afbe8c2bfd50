"""FedHelp without the foundation model: clinics take no public steps, and as many private ones as the others."""

from __future__ import annotations

from ayni_coordinator.simulation.methods.fedhelp import variant

METHOD = variant("FedHelp without guidance", consensus_weight=0.0, guidance_weight=0.0)
