"""`ayni_labelled_start` in which a hospital's large network is given images by that hospital's own mean and deviation.

All other networks are averaged, and must see images alike; this one never leaves (`fedhelp.large_normalise` of the
product).
"""

from __future__ import annotations

import dataclasses

from ayni.task import Task
from ayni_coordinator.simulation.methods import ayni_labelled_start, fedhelp


def change_task(task: Task) -> Task:
    return fedhelp.with_settings(large_normalise="own")(ayni_labelled_start.METHOD.change_task(task))


METHOD = dataclasses.replace(ayni_labelled_start.METHOD, change_task=change_task)
