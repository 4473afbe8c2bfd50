"""FedAvg on labelled images, from the first weights of `ayni_start`: what these alone bring."""

from ayni_coordinator.simulation.methods import dual_kd
from ayni_coordinator.simulation.methods.ayni_start import start

METHOD = dual_kd.variant(start=start, response_weight=0.0, feature_weight=0.0)
