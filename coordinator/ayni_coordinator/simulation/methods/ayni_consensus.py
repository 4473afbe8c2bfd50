"""FedHelp, and clinics also learn the hospitals' mean answer to the public images, with the head that diagnoses."""

from __future__ import annotations

from ayni_coordinator.simulation.methods.fedhelp import variant

METHOD = variant(consensus_weight=1.0)
