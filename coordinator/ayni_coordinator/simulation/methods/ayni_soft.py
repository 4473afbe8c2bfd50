"""Dual distillation in which the teacher's probabilities count as truth on unlabelled images, everywhere: cross-entropy
and Dice in the place of squares where it is sure."""

from __future__ import annotations

from typing import Any

from ayni_coordinator.simulation.methods import dual_kd

SOFT: dict[str, Any] = {"response": "soft-labels", "response_weight": 0.5}
METHOD = dual_kd.variant(**SOFT)
