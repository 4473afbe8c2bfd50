"""FedHelp whose clinics learn, in the rounds, the labels of public images too, by their public head.

The paper's cross-entropy "where labels exist" (arXiv 2412.19654; `fedhelp.label_weight` of the product). The labels
travel to the clinics, once.
"""

from __future__ import annotations

import dataclasses

from ayni_coordinator.simulation.methods.fedhelp import variant

METHOD = dataclasses.replace(variant(label_weight=1.0), labelled=True)
