"""What a run measured: one row per site. `results.json` is a list of these rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ayni.artefacts.files import write_atomic
from ayni.errors import UserError

SiteRole = Literal["hospital", "clinic", "unseen"]  # unseen: it took part in nothing, and is only tested on
MAIN_METRICS = ("dice", "auc")  # the first that a row has is what a table of one figure shows
HELD_OUT = "held_out"  # the metric of a trial: AUC or Dice on images that a site holds out of training
Count = Annotated[int, Meta(ge=0)]


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One site at the end of one run, on test images: auc and balanced_accuracy, or dice and hd95 (pixels).

    Bytes and seconds are of the whole run on this site's line and of this site's own work (processor seconds of one
    thread); divided by `rounds` they are a round's.
    """

    task: str
    method: str
    seed: Count
    site: str
    role: SiteRole
    num_train: Count
    metrics: Annotated[dict[str, float], Meta(min_length=1)]
    bytes_up: Count
    bytes_down: Count
    seconds: Annotated[float, Meta(ge=0)]
    rounds: Count


def main_metric(row: Row) -> tuple[str, float]:
    """
    >>> row = Row(task="t", method="local", seed=0, site="a", role="clinic", num_train=9, bytes_up=0, bytes_down=0,
    ...           metrics={"hd95": 3.0, "dice": 0.5}, seconds=1.0, rounds=1)
    >>> main_metric(row)
    ('dice', 0.5)
    """
    name = next(name for name in (*MAIN_METRICS, *row.metrics) if name in row.metrics)
    return name, row.metrics[name]


def in_order(rows: Iterable[Row], *, tasks: Sequence[str], methods: Sequence[str]) -> list[Row]:
    """As the experiment lists its tasks and methods (ways for unseen sites last), then by seed; else in their order."""
    place = {method: number for number, method in enumerate(methods)}
    return sorted(rows, key=lambda row: (tasks.index(row.task), place.get(row.method, len(place)), row.seed))


def read_rows(path: Path) -> list[Row]:
    """Raises UserError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Row])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} holds no results of `ayni simulate`: {error}.") from None


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The whole file or the old one, never a part; one row per line, so that a difference can be read."""
    lines = ",\n ".join(msgspec.json.encode(row).decode() for row in rows)
    write_atomic(path, f"[{lines}]\n".encode())
