"""`ayni_labelled_start_own` with a setting: what power of its number of images a site counts by in the mean.

0: all alike, .5: by the root, 1: by the number, as in FedAvg (`fedhelp.average` of the product). `ayni simulate --tune`
chooses it on held-out images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ayni.errors import UserError
from ayni_coordinator.aggregation import POWERS
from ayni_coordinator.simulation.averaging import GlobalModel
from ayni_coordinator.simulation.method import Broadcast, Message, Setup
from ayni_coordinator.simulation.methods import ayni_labelled_start_own, fedhelp


def aggregate(
    setup: Setup, state: GlobalModel, messages: Mapping[str, Message], round_number: int
) -> tuple[GlobalModel, Broadcast]:
    names = {power: name for name, power in POWERS.items()}
    power = setup.number("power")
    if power not in names:
        raise UserError(f"the setting power is {power:g}; it must be one of {', '.join(map(str, names))}.")
    task = fedhelp.with_settings(average=names[power])(setup.task)
    return fedhelp.aggregate(dataclasses.replace(setup, task=task), state, messages, round_number)


METHOD = dataclasses.replace(ayni_labelled_start_own.METHOD, aggregate=aggregate, settings={"power": 0.0})
