"""What the demo measured: `results.json` for programs, `details.json` for the report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ayni.artefacts.files import write_atomic
from ayni.errors import UserError
from ayni.task import Role

RESULTS_FILE = "results.json"
DETAILS_FILE = "details.json"


class Metrics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """On the official test images."""

    auc: float
    balanced_accuracy: float


class SiteResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`local`: the network that the site diagnoses with, trained by this site alone; `federated`: the same after the
    federation. Bytes are those of the whole demo on this site's line."""

    name: str
    role: Role
    num_train: int
    bytes_up: int
    bytes_down: int
    local: Metrics
    federated: Metrics

    @property
    def gain(self) -> float:
        """Difference in test AUC; above zero if the federation helped."""
        return self.federated.auc - self.local.auc

    @property
    def num_bytes(self) -> int:
        return self.bytes_up + self.bytes_down


class DemoResults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of results.json, field for field."""

    task: str
    seed: int
    rounds: int
    wall_s: float
    sites: list[SiteResult]

    def of_role(self, role: Role) -> list[SiteResult]:
        """The sites of one role, the largest first."""
        return sorted((site for site in self.sites if site.role == role), key=lambda site: (-site.num_train, site.name))


class Curve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One site's AUC on its own held-out images: the start model, then after each round. None: not known."""

    site: str
    num_holdout: int
    federated: list[float | None]
    alone: list[float | None]


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the demo's story; `start_s` counts from its beginning."""

    title: str
    text: str
    start_s: float
    wall_s: float


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One diagnosis by a site's exported model. Pictures are PNG files; `heat_map` has the image below the colours."""

    site: str
    image: str
    picture: bytes
    heat_map: bytes
    probabilities: dict[str, float]
    truth: str

    @property
    def answer(self) -> str:
        return max(self.probabilities, key=lambda name: self.probabilities[name])


class ReportExtras(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the report shows beside the results. `num_weights` is the size of the network that travels."""

    title: str
    num_weights: int
    num_public: int
    num_test_per_class: dict[str, int]
    data_credit: str
    guidance: str = ""  # name and version of the foundation model
    guidance_calls: int = 0
    curves: list[Curve] = []
    steps: list[Step] = []
    samples: list[Sample] = []
    bytes_by_purpose: dict[str, dict[str, int]] = {}  # site -> purpose -> bytes, both ways
    versions: dict[str, str] = {}
    machine: str = ""
    created: str = ""  # ISO 8601, UTC


def fedavg_bytes(rounds: int, num_weights: int) -> int:
    """What plain federated averaging moves over one site's line: each round all weights, down and up, 4 bytes each.

    >>> fedavg_bytes(20, 100_000)
    16000000
    """
    return rounds * 2 * 4 * num_weights


def write_results(results: DemoResults, extras: ReportExtras, folder: Path) -> None:
    for name, value in [(RESULTS_FILE, results), (DETAILS_FILE, extras)]:
        write_atomic(folder / name, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_results(folder: Path) -> tuple[DemoResults, ReportExtras]:
    """What `write_results` wrote. Raises UserError if it is not there or damaged."""
    try:
        results = msgspec.json.decode((folder / RESULTS_FILE).read_bytes(), type=DemoResults)
        extras = msgspec.json.decode((folder / DETAILS_FILE).read_bytes(), type=ReportExtras)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{folder} holds no results of a demo ({error}). Run `ayni demo --out {folder}`.") from None
    return results, extras
