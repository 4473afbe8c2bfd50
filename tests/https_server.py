"""A real HTTPS server on loopback for the tests of downloading, and how it may misbehave."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Publisher:
    """What the server answers: set the fields between requests; `asked` are the requests, as (path, range)."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.cut_after: list[int] = []  # of the next answers, each ends after so many bytes
        self.knows_ranges = True
        self.redirect_to = ""
        self.status = 200
        self.tells_length = True
        self.asked: list[tuple[str, str]] = []


def make_certificate(folder: Path) -> Path:
    """One file with a key and a certificate for 127.0.0.1 that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return folder / "server.pem"


@contextmanager
def serving(publisher: Publisher, certificate: Path | None) -> Iterator[str]:
    """The server's address; without a certificate it speaks plain HTTP."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(publisher))
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(publisher: Publisher) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            asked_range = self.headers.get("Range", "")
            publisher.asked.append((self.path, asked_range))
            self.close_connection = True
            if publisher.redirect_to and self.path != "/moved":
                self._start(302, {"Location": publisher.redirect_to, "Content-Length": "0"})
                return
            if publisher.status != 200:
                self._start(publisher.status, {"Content-Length": "0"})
                return
            total, start = len(publisher.content), 0
            found = re.fullmatch(r"bytes=(\d+)-", asked_range)
            if found and publisher.knows_ranges:
                start = int(found[1])
                headers = {"Content-Range": f"bytes {start}-{total - 1}/{total}"}
                if start >= total:
                    self._start(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
                    return
            else:
                headers = {}
            if publisher.tells_length:
                headers["Content-Length"] = str(total - start)
            self._start(206 if headers.get("Content-Range") else 200, headers)
            num_bytes = publisher.cut_after.pop(0) if publisher.cut_after else total
            self.wfile.write(publisher.content[start : start + num_bytes])

        def _start(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()

    return Handler
