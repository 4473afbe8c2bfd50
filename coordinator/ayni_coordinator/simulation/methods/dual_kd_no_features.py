"""Dual distillation without its feature term."""

from ayni_coordinator.simulation.methods import dual_kd

METHOD = dual_kd.variant(feature_weight=0.0)
