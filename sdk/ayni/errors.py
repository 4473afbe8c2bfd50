"""Every exception of ours has one root, says whose fault it is, and ends with the next step."""

from __future__ import annotations


class AyniError(Exception):
    """Catch this one to catch all of ours, and none of anybody else's.

    `exit_code` is what the command line ends with: 1 for a failure here, 2 for a mistake in what was asked
    or given, 3 for a job done in part (some of the files failed), 4 for a coordinator that said no, 5 for a
    line that is down.
    """

    exit_code = 1


class UserError(AyniError):
    """What was asked or given cannot be done; the text says what to change."""

    exit_code = 2


class DataError(UserError):
    """The images, labels or folders given are not usable; the text names the file."""


class PeerProtocolError(AyniError):
    """The other side broke the protocol: drop the message, keep serving the rest."""


class IntegrityError(AyniError):
    """Bytes do not match their hash, signature or promised shape: they were not used."""


class DamagedError(IntegrityError):
    """Bytes were damaged on their way; what arrived was thrown away, and asking again may help."""


class RefusedError(AyniError):
    """The coordinator answered, and said no. `code` is for programs."""

    exit_code = 4

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # positional: survives pickling
        self.code, self.message = code, message

    def __str__(self) -> str:
        return self.message


class NotAdmittedError(RefusedError):
    """The coordinator does not let this key in: unknown, used, expired, left or revoked. It does not say which."""

    def __init__(self, message: str) -> None:
        super().__init__("not-admitted", message)

    def __reduce__(self) -> tuple[type[NotAdmittedError], tuple[str]]:
        return type(self), (self.message,)


class LineError(AyniError):
    """The coordinator could not be reached or stopped answering; what was stored will be sent later."""

    exit_code = 5


class MissingExtraError(AyniError):
    """A part of Ayni that is not installed here."""

    exit_code = 2

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(what, extra)
        self.what, self.extra = what, extra

    def __str__(self) -> str:
        return f"{self.what} needs a part that is not installed. Run: pip install 'ayni[{self.extra}]'"
