"""FedAvg from the first weights of `ayni_labelled_start`: what FedHelp brings besides."""

from __future__ import annotations

import dataclasses

from ayni_coordinator.simulation.methods import ayni_head_start_fedavg

METHOD = dataclasses.replace(ayni_head_start_fedavg.METHOD, guided=False, labelled=True)
