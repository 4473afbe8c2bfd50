"""FedHelp whose first weights the foundation model has taught.

Before anything is sent, the centre lets the small network learn what the foundation model said of the public images
(ayni.learning.head_start; `fedhelp.start_steps` of the product). In the rounds clinics take private steps, as in
`fedhelp_no_guidance`. The foundation model's answers need not travel.
"""

from __future__ import annotations

import dataclasses

from ayni_coordinator.simulation.methods import fedhelp, fedhelp_no_guidance

START_STEPS = 400
METHOD = dataclasses.replace(
    fedhelp.variant(consensus_weight=0.0, guidance_weight=0.0, start_steps=START_STEPS), init=fedhelp_no_guidance.init
)
