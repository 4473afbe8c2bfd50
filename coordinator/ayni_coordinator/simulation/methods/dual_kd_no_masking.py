"""Dual distillation that believes the teacher also where it is in doubt, asked once."""

from ayni_coordinator.simulation.methods import dual_kd

METHOD = dual_kd.variant(max_entropy=1.0, passes=1)
