"""`ayni_labelled_start_own` in which the sites' small networks count by their number of images, as in FedAvg
(`fedhelp.average` of the product).
"""

from __future__ import annotations

import dataclasses

from ayni.task import Task
from ayni_coordinator.simulation.methods import ayni_labelled_start_own, fedhelp


def change_task(task: Task) -> Task:
    return fedhelp.with_settings(average="samples")(ayni_labelled_start_own.METHOD.change_task(task))


METHOD = dataclasses.replace(ayni_labelled_start_own.METHOD, change_task=change_task)
