"""Every site alone, small ones from the first weights of `ayni_labelled_start`: what federating brings besides."""

from __future__ import annotations

import dataclasses

from ayni_coordinator.simulation.methods import ayni_head_start_alone

METHOD = dataclasses.replace(ayni_head_start_alone.METHOD, guided=False, labelled=True)
