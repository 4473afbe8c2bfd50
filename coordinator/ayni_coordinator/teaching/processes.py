"""Several processes that train one teacher, as `torchrun` starts them; one process where nobody did.

torchrun --nproc-per-node 2 -m ayni.cli coordinator teach HOME --data LABELLED
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from ayni.errors import UserError

PATIENCE = timedelta(minutes=30)  # for the slowest process, which may be reading its data


@dataclass(frozen=True, slots=True)
class Processes:
    """This one is number `rank` of `world`; number 0 writes files and talks."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait_for_all(self) -> None:
        if self.world > 1:
            distributed.barrier()


def rank_from_environment() -> int:
    """0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Joins the others: by NCCL between graphics cards, by Gloo between processors. Raises UserError without a card."""
    rank, world = rank_from_environment(), int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device("cpu")
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no graphics card on this machine. Leave it out, or use cpu.")
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if world == 1:
        yield Processes(0, 1, place)
        return
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(rank, world, place)
    finally:
        distributed.destroy_process_group()
