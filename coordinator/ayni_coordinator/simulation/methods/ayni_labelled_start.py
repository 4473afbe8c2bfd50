"""FedHelp whose first weights the labels of the public images have taught.

Before anything is sent, the centre lets the small network learn the public images' labels or masks, which a developed
centre can give and which never leave it (ayni.learning.head_start; `public_set_labelled` of the product). In the
rounds clinics take private steps, as in `fedhelp_no_guidance`. No foundation model is asked.
"""

from __future__ import annotations

import dataclasses

from ayni_coordinator.simulation.methods import ayni_head_start

METHOD = dataclasses.replace(ayni_head_start.METHOD, guided=False, labelled=True)
