"""HTML as values: what is not marked as HTML is text, and text is always escaped."""

from __future__ import annotations

from html import escape


class Html(str):
    """Text that is HTML already. Only `tag` and `join` make it."""

    __slots__ = ()


_VOID = frozenset({"br", "img", "meta"})


def tag(name: str, /, *content: str, **attributes: str) -> Html:
    """One element. In an attribute's name an underscore is a hyphen and a last one falls off; `""` leaves it out.

    >>> tag("p", "a < b", tag("b", "!"), class_="note")
    '<p class="note">a &lt; b<b>!</b></p>'
    """
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value)
    opening = name + "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    return Html(f"<{opening}>" if name in _VOID else f"<{opening}>{join(*content)}</{name}>")


def join(*content: str) -> Html:
    return Html("".join(part if isinstance(part, Html) else escape(part, quote=False) for part in content))
