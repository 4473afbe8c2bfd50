"""`ayni_labelled_start_own` in which the labels of public images travel too.

Clinics' public heads learn them in the rounds, as in `ayni_labelled_rounds`. No foundation model is asked.
"""

from __future__ import annotations

import dataclasses

from ayni.task import Task
from ayni_coordinator.simulation.methods import ayni_labelled_start_own, fedhelp


def change_task(task: Task) -> Task:
    return fedhelp.with_settings(label_weight=1.0)(ayni_labelled_start_own.METHOD.change_task(task))


METHOD = dataclasses.replace(ayni_labelled_start_own.METHOD, init=fedhelp.init, change_task=change_task)
