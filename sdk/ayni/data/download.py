"""One file by HTTPS, over a line that may break: what has come is kept, and the next try goes on there."""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import ayni
from ayni.errors import IntegrityError, LineError, UserError

TIMEOUT_S = 30.0  # without a byte
BLOCK_BYTES = 1 << 16
MAX_CUTS = 100  # in one call; each must have brought something


def download(url: str, part: Path, num_bytes: int, on_progress: Callable[[int, int], None]) -> None:
    """Bring `part` to its `num_bytes`, going on where it ends. What is in it, the caller must verify.

    Raises LineError, with `part` kept, or IntegrityError if the publisher's file has another length.
    """
    for _ in range(MAX_CUTS):
        before = _length(part)
        if before == num_bytes:
            return
        if before > num_bytes:
            part.unlink()
            before = 0
        trouble = _go_on(url, part, before, num_bytes, on_progress)
        if _length(part) == num_bytes:
            return
        from_the_start = before > 0 and not part.exists()
        if _length(part) <= before and not from_the_start:
            break
    raise LineError(
        f"{url} did not arrive ({trouble}); {_length(part)} of {num_bytes} bytes are kept. The same command goes on "
        "there."
    )


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _go_on(url: str, part: Path, start: int, num_bytes: int, on_progress: Callable[[int, int], None]) -> str:
    """One request; returns what ended it, if that was before the end of the file."""
    headers = {"User-Agent": f"ayni/{ayni.__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with _opener().open(urllib.request.Request(_https(url), headers=headers), timeout=TIMEOUT_S) as answer:
            start = _agreed_start(answer, start, num_bytes)
            with part.open("r+b" if start else "wb") as file:
                file.seek(start)
                _write(answer, file, start, num_bytes, on_progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # it does not know that place: from the beginning next time
            part.unlink()
        return f"the publisher answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        return str(error) or type(error).__name__
    return "the line was cut"


def _agreed_start(answer: Any, start: int, num_bytes: int) -> int:
    """Where the answer's bytes belong: a server may send all, whatever was asked for. Raises IntegrityError."""
    place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if answer.status == 206 and not (start and place and int(place[1]) == start):
        raise LineError(f"{answer.url} sent another part than was asked for. Try again later.")
    start = start if answer.status == 206 else 0
    told = answer.headers.get("Content-Length", "")
    if told.isdecimal() and start + int(told) != num_bytes:
        raise IntegrityError(
            f"{answer.url} has {start + int(told)} bytes and the catalogue says {num_bytes}: it is another file now. "
            "Get it from a mirror (--from)."
        )
    return start


def _write(answer: Any, file: IO[bytes], start: int, num_bytes: int, on_progress: Callable[[int, int], None]) -> None:
    done = start
    file.truncate(start)
    while block := answer.read(min(BLOCK_BYTES, num_bytes - done + 1)):
        done += len(block)
        if done > num_bytes:
            file.truncate(0)
            raise IntegrityError(f"{answer.url} is longer than the {num_bytes} bytes of the catalogue. Use a mirror.")
        file.write(block)
        on_progress(done, num_bytes)


class _OnlyToHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, request: urllib.request.Request, answer: Any, code: int, message: str, headers: Any, new_url: str
    ) -> urllib.request.Request | None:
        return super().redirect_request(request, answer, code, message, headers, _https(new_url))


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_OnlyToHttps)


def _https(url: str) -> str:
    if not url.lower().startswith("https://"):
        raise UserError(f"{url} is not https: it was not asked. Get the data from a mirror (--from).")
    return url
