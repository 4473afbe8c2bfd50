"""`ayni_labelled_start_weighted` in which a hospital diagnoses with the common small network where that is better than
its large one on its held-out images (`fedhelp.hospital_takes` of the product).
"""

from __future__ import annotations

import dataclasses

from ayni.task import Task
from ayni_coordinator.simulation.methods import ayni_labelled_start_weighted, fedhelp


def change_task(task: Task) -> Task:
    return fedhelp.with_settings(hospital_takes="best")(ayni_labelled_start_weighted.METHOD.change_task(task))


METHOD = dataclasses.replace(ayni_labelled_start_weighted.METHOD, change_task=change_task)
