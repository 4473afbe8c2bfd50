"""Dual distillation without its response term."""

from ayni_coordinator.simulation.methods import dual_kd

METHOD = dual_kd.variant(response_weight=0.0)
