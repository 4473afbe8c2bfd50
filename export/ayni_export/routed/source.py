"""Where a routed bundle's experts come from: a coordinator's folder, opened by the package that knows how.

This package knows no coordinator. Whoever does offers, as an entry point of the group `ayni.experts`, a function from a
folder to a `Federation`; it raises UserError if that folder is not of its kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ayni.errors import MissingExtraError
from ayni.task import Task
from ayni.tensors.expert import Expert

GROUP = "ayni.experts"


@dataclass(frozen=True, slots=True)
class Federation:
    """`experts`: the global model, and then those that sites share now. `signing_key`: the coordinator's."""

    task: Task
    rounds: int
    experts: tuple[Expert, ...]
    signing_key: Ed25519PrivateKey


def read_federation(home: Path) -> Federation:
    """Raises UserError if `home` is not a coordinator's folder, MissingExtraError without that part of Ayni."""
    found = list(entry_points(group=GROUP))
    if not found:
        raise MissingExtraError("a routed bundle", "coordinator")
    try:
        read = found[0].load()
    except ModuleNotFoundError as error:
        raise MissingExtraError("a routed bundle", "coordinator") from error
    federation: Federation = read(home)
    return federation
