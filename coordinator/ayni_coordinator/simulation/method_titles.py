"""What each method is called on the page of results, from `methods.toml`: no method is imported, and no torch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

TITLES_FILE = Path(__file__).with_name("methods.toml")
Kind = Literal["bound", "baseline", "ours", "ablation", "personal"]


class Title(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`title` is one line; `source` says where the method was published; `part` is what an ablation of the method `of`
    leaves out."""

    kind: Kind
    title: str = ""
    source: str = ""
    part: str = ""
    of: str = "fedhelp"


@cache
def known_titles() -> dict[str, Title]:
    """By name, in the order of the page."""
    return msgspec.toml.decode(TITLES_FILE.read_bytes(), type=dict[str, Title])


def title_of(method: str) -> Title:
    """Of any method: one that nobody described is what its name begins with.

    >>> title_of("ayni_sparse").kind, title_of("fedhelp_no_heads").part, title_of("scaffold").kind
    ('ours', 'no heads', 'baseline')
    """
    if found := known_titles().get(method):
        return found
    if method.startswith("fedhelp_"):
        return Title(kind="ablation", part=method.removeprefix("fedhelp_").replace("_", " "))
    return Title(kind="ours" if method.startswith("ayni_") else "baseline")


def in_page_order(methods: Iterable[str]) -> tuple[str, ...]:
    """
    >>> in_page_order({"zeta", "fedhelp", "alpha", "local"})
    ('local', 'fedhelp', 'alpha', 'zeta')
    """
    known = list(known_titles())
    return tuple(sorted(set(methods), key=lambda name: (known.index(name) if name in known else len(known), name)))
