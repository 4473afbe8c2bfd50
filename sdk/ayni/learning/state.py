"""Training state on disk: one safetensors file per state, written whole or not at all.

`HOME/training` holds the state after the last round and the one before it, a checkpoint inside a round, and the
learning curves. A round that was cut is trained on from its checkpoint to the same bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ayni.artefacts.files import write_atomic
from ayni.errors import IntegrityError
from ayni.tensors import safe
from ayni.tensors.safe import Array
from ayni.trained_model import Scores

_STATE_NAME = re.compile(r"state-after-(\d{4,})\.safetensors")


class StateInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`job` tells what was being trained: a checkpoint of another job is not taken up."""

    job: str
    round_number: int
    step: int = 0  # steps done in this round
    loss_sums: dict[str, float] = {}  # over those steps
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    large_mean: tuple[float, ...] = ()  # of a hospital's large network, which may be given images by others
    large_std: tuple[float, ...] = ()
    train_s: float = 0.0
    rounds_trained: int = 0  # by this site, with this round: it may have joined late or missed some
    steps_trained: int = 0  # optimiser steps in those rounds of the network that diagnoses here


@dataclass(frozen=True, slots=True)
class State:
    info: StateInfo
    tensors: dict[str, Array] = field(default_factory=dict)


def write_state(path: Path, state: State) -> None:
    write_atomic(path, safe.encode(state.tensors, {"state": msgspec.json.encode(state.info).decode()}))


def read_state(path: Path) -> State | None:
    """None if there is no such file. A damaged one raises IntegrityError, which names it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return State(msgspec.json.decode(safe.read_metadata(data)["state"], type=StateInfo), safe.decode(data))
    except (IntegrityError, KeyError, msgspec.MsgspecError) as error:
        raise IntegrityError(f"the training state {path} is damaged ({error}). Delete it and train again.") from None


class TrainingFolder:
    """Names in HOME/training."""

    def __init__(self, home: Path) -> None:
        self.path = home / "training"

    def state_after(self, round_number: int) -> Path:
        return self.path / f"state-after-{round_number:04d}.safetensors"

    def checkpoint(self, what: str) -> Path:
        return self.path / f"checkpoint-{what}.safetensors"

    def history(self, what: str) -> Path:
        return self.path / ("history.jsonl" if what == "federated" else f"history-{what}.jsonl")

    def rounds(self) -> list[int]:
        """The rounds of which a state is kept, in order."""
        names = (_STATE_NAME.fullmatch(file.name) for file in self.path.glob("state-after-*"))
        return sorted(int(match[1]) for match in names if match)

    def forget_before(self, round_number: int) -> None:
        for old in self.rounds():
            if old < round_number:
                self.state_after(old).unlink()


class HistoryLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One point of the learning curves. `auc` (of a segmentation `dice`) is on held-out images: of the network that
    diagnoses here after this round's training, and of the global model that the round began with. Round 0 is before
    any training."""

    round: int
    auc: float | None = None
    balanced_accuracy: float | None = None
    dice: float | None = None
    global_auc: float | None = None
    global_dice: float | None = None
    losses: dict[str, float] = {}


def history_line(round_number: int, now: Scores, of_global: float | None, losses: dict[str, float]) -> HistoryLine:
    """`of_global`: the main figure of the global model that the round began with."""
    if now.dice is not None:
        return HistoryLine(round=round_number, dice=now.dice, global_dice=of_global, losses=losses)
    return HistoryLine(
        round=round_number,
        auc=now.auc,
        balanced_accuracy=now.balanced_accuracy,
        global_auc=of_global,
        losses=losses,
    )


def read_history(path: Path) -> list[HistoryLine]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [msgspec.json.decode(line, type=HistoryLine) for line in lines]


def add_history(path: Path, lines: list[HistoryLine]) -> None:
    """A round that is trained again replaces its old line."""
    new = {line.round for line in lines}
    kept = [line for line in read_history(path) if line.round not in new]
    ordered = sorted([*kept, *lines], key=lambda line: line.round)
    write_atomic(path, b"".join(msgspec.json.encode(line) + b"\n" for line in ordered))
