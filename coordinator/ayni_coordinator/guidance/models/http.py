"""A foundation model behind HTTP: classes of an image, or outlines in it. The contract is in docs/guidance.md: GET
/about, POST /answer, safetensors bodies."""

from __future__ import annotations

import email.utils
import http.client
import math
import os
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from ayni import __version__
from ayni.errors import IntegrityError, PeerProtocolError, UserError
from ayni.task import GuidanceSettings, Kind
from ayni.tensors import safe
from ayni_coordinator.guidance.outlines import clipped, kept_size
from ayni_coordinator.guidance.patience import with_patience
from ayni_coordinator.guidance.source import DOES, Logits, Pixels, TryLaterError

KINDS: tuple[Kind, ...] = ("classification", "segmentation")
TOKEN_VARIABLE = "AYNI_GUIDANCE_TOKEN"
CONTRACT = "ayni-guidance/1"
BATCH_SIZE = 16
TIMEOUT_S = 120.0
MAX_ABOUT_BYTES = 8 << 20

Text = Annotated[str, Meta(min_length=1, max_length=200)]


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What GET /about answers. `classes` are those of an image, or the structures that are outlined."""

    name: Text
    version: Text
    licence: Text
    kind: Kind = "classification"
    classes: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=100_000)]


def open_model(settings: GuidanceSettings, kind: Kind, home: Path) -> HttpEndpoint:
    """The endpoint at `settings.model`; what the settings say of it must be what it says itself."""
    if settings.output != "logits":
        raise UserError('an endpoint answers with logits: guidance.output is for a model in a file. Leave it "logits".')
    endpoint = HttpEndpoint(settings.model, kind, token=os.environ.get(TOKEN_VARIABLE, ""))
    for what, wanted, found in [
        ("name", settings.name, endpoint.name),
        ("version", settings.version, endpoint.version),
        ("licence", settings.licence, endpoint.licence),
        ("classes", list(settings.classes), list(endpoint.classes)),
    ]:
        if wanted and wanted != found:
            raise UserError(
                f"the task wants guidance.{what} {wanted!r}, {settings.model} now has {found!r}. Change one."
            )
    return endpoint


class HttpEndpoint:
    """A Source. Temporary failures are TryLaterError; a 4xx, a redirect or a broken reply is never tried again.

    `token` goes out as `Authorization: Bearer`, over https or to this machine only, and into no message.
    """

    def __init__(
        self,
        url: str,
        kind: Kind = "classification",
        *,
        token: str = "",
        timeout_s: float = TIMEOUT_S,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url, self._token, self._timeout_s = _checked_url(url, token), token, timeout_s
        self._kind: Kind = kind
        self._opener = urllib.request.build_opener(_NoRedirects())
        about = with_patience(self._about, pause=pause)
        self.name, self.version, self.licence, self.classes = about.name, about.version, about.licence, about.classes
        self.batch_size = BATCH_SIZE

    def answer(self, pixels_BHWC: Pixels) -> Logits:
        """logits_BC; or outlines, logits [B, S, h, w] between -8 and 8 of the size that is kept."""
        asked: dict[str, safe.Array] = {"pixels": pixels_BHWC}
        shape: tuple[int, ...] = (len(pixels_BHWC), len(self.classes))
        if self._kind == "segmentation":
            size = kept_size(*pixels_BHWC.shape[1:3])
            asked["size"], shape = np.array(size, np.int64), (*shape, *size)
        body = safe.encode(asked, {"contract": CONTRACT, "model": self.name, "version": self.version})
        reply = self._exchange("/answer", body, max_bytes=8 * math.prod(shape) + safe.MAX_HEADER_BYTES)
        try:
            tensors = safe.decode(reply)
        except IntegrityError as error:
            raise self._broken(str(error)) from None
        logits = tensors.get("logits")
        if logits is None or logits.shape != shape or logits.dtype.kind != "f":
            found = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in list(tensors.items())[:3]}
            raise self._broken(f"expected floating-point `logits` {list(shape)}, got {found}")
        with np.errstate(over="ignore"):
            narrow = logits.astype(np.float32)
        if not np.isfinite(narrow).all():
            raise self._broken("logits beyond the range of float32")
        return clipped(narrow, "logits") if self._kind == "segmentation" else narrow

    def _about(self) -> About:
        reply = self._exchange("/about", None, max_bytes=MAX_ABOUT_BYTES)
        try:
            about = msgspec.json.decode(reply, type=About)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._broken(f"/about: {str(error)[:200]}") from None
        if about.kind != self._kind:
            raise UserError(
                f"{self._url} {DOES[about.kind]}; the task is a {self._kind}. Name an endpoint whose `kind` in /about "
                f'is "{self._kind}".'
            )
        if about.kind == "classification" and len(about.classes) < 2:
            raise self._broken("/about: a classification of fewer than two classes")
        return about

    def _exchange(self, path: str, body: bytes | None, *, max_bytes: int) -> bytes:
        """One request and its reply, at most `max_bytes` and `timeout_s`."""
        request = urllib.request.Request(self._url + path, data=body, method="GET" if body is None else "POST")
        request.add_header("User-Agent", f"ayni/{__version__}")
        if body is not None:
            request.add_header("Content-Type", "application/octet-stream")
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return self._read(response, max_bytes)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.headers.get("Retry-After")) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise UserError(
                    f"{self._url} has a certificate that this machine does not trust. Check the URL."
                ) from None
            at_the_door = isinstance(error.reason, ConnectionRefusedError | socket.gaierror)
            why = f"{self._url} cannot be reached ({error.reason})"
            raise TryLaterError(why, answered_perhaps=not at_the_door) from None
        except (OSError, http.client.HTTPException) as error:
            why = f"{self._url} broke off in the middle ({type(error).__name__})"
            raise TryLaterError(why, answered_perhaps=True) from None

    def _read(self, response: Any, max_bytes: int) -> bytes:
        """The body, piece by piece: a time-out of the socket alone would let a slow sender go on for ever."""
        deadline_s, parts, size = time.monotonic() + self._timeout_s, [], 0
        while piece := response.read1(1 << 16):
            parts.append(piece)
            size += len(piece)
            if size > max_bytes:
                raise self._broken(f"a reply of more than {max_bytes} bytes")
            if time.monotonic() > deadline_s:
                raise TimeoutError
        promised = response.headers.get("Content-Length")  # read1 does not notice a body that was cut short
        if promised is not None and promised.isdecimal() and int(promised) != size:
            raise http.client.IncompleteRead(b"")
        return b"".join(parts)

    def _refusal(self, status: int, retry_after: str | None) -> Exception:
        if status in (408, 429) or status >= 500:
            why = f"{self._url} answered {status}"
            return TryLaterError(why, answered_perhaps=status not in (429, 503), after_s=_seconds(retry_after))
        if status in (401, 403):
            return UserError(f"{self._url} answered {status}: set {TOKEN_VARIABLE} to a token that it accepts.")
        if 300 <= status < 400:
            return UserError(f"{self._url} answered {status}: it has moved. Give the new address as guidance.model.")
        return UserError(f"{self._url} answered {status}: it does not take this question (docs/guidance.md).")

    def _broken(self, what: str) -> PeerProtocolError:
        return PeerProtocolError(f"{self._url} broke the guidance contract (docs/guidance.md): {what}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Images and the token go to the address in the task and nowhere else."""

    def redirect_request(self, *unused: Any) -> None:
        return None


def _checked_url(url: str, token: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        plain = not parts.username and not parts.password and not parts.query and not parts.fragment
        plain = plain and (parts.port is None or parts.port > 0)
    except ValueError:
        host, plain = "", False
    if not plain or not host or parts.scheme not in ("http", "https"):
        raise UserError("guidance.model must be a plain http or https URL, without user, password or query.")
    if token and parts.scheme == "http" and host not in ("127.0.0.1", "::1", "localhost"):
        raise UserError(f"the token in {TOKEN_VARIABLE} does not travel over plain http. Use an https URL.")
    return url.rstrip("/")


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After is a number of seconds or a date (RFC 9110, section 10.2.3)."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
