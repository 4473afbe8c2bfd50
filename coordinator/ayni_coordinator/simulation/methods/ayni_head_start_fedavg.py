"""FedAvg from the first weights of `ayni_head_start`: what FedHelp brings besides."""

from __future__ import annotations

import dataclasses

from ayni.task import Task
from ayni_coordinator.simulation.methods import fedavg, fedhelp
from ayni_coordinator.simulation.methods.ayni_head_start import START_STEPS


def change_task(task: Task) -> Task:
    return fedhelp.with_settings(start_steps=START_STEPS)(fedavg.by_samples(task))


METHOD = dataclasses.replace(fedavg.METHOD, guided=True, change_task=change_task)
