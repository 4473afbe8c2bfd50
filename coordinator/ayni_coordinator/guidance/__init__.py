"""One-time guidance: a foundation model answers once per public image, ever (FedHelp, arXiv 2412.19654)."""

from ayni_coordinator.guidance.ask import guide

__all__ = ["guide"]
