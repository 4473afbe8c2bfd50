"""For all tests: no time limit on an example, because a busy machine is no fault."""

from hypothesis import HealthCheck, settings

settings.register_profile("ayni", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ayni")
