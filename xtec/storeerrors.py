"""What an error of a store means: whether to try again, and what to tell people.

Stores hand on the errors of their clients: of botocore, aiohttp, gcsfs, obstore, the system. They
are told apart by status, code and the names of their classes, so none of these has to be imported.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Literal

from tec.errors import TecError

Kind = Literal["passing", "absent", "denied", "unknown", "full", "closed", "other"]

_PASSING_CODES = {
    "BadDigest",  # of what arrived: a connection was cut
    "IncompleteBody",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "XAmzContentSHA256Mismatch",
}
_PASSING_NAMES = {
    "ChecksumError",
    "ChunkedEncodingError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
    "Timeout",
    "TimeoutError",
    "TransportError",
}
_PASSING_NUMBERS = {
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH"),
        *("EREMOTEIO", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
}
_DENIED_CODES = {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"}
_DENIED_NAMES = {"PermissionDeniedError", "UnauthenticatedError"}
_UNKNOWN_NAMES = {
    "DefaultCredentialsError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
}
_CLIENTS = {"aiohttp", "botocore", "gcsfs", "google", "obstore"}
#: Where clients ask for credentials when they have found none.
_METADATA_SERVERS = ("169.254.169.254", "metadata.google.internal")
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}

#: What to do where a folder takes no files.
CLOSED = "this place cannot be written; change its permissions, or choose another place"
_REMEDIES: dict[Kind, str] = {
    "passing": "the store or the network is not well",
    "absent": "there is no such bucket or folder; create it, or correct the name",
    "denied": "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, ... or storage_options), "
    "what they allow, and the region",
    "unknown": "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "AWS_PROFILE, or pass storage_options (for public data: s3fs takes anon=True, gcsfs "
    "token='anon', obstore skip_signature=True)",
    "full": "make room, or choose another place",
    "closed": CLOSED,
    "other": "check the bucket, its region and storage_options",
}


class StoreError(OSError):
    """A store has refused something in the end."""


def kind(error: BaseException) -> Kind | None:
    """What has happened; None where it is not for a store to say (a wrong argument, say)."""
    if isinstance(error, (TecError, StoreError)):
        return None
    names = {cls.__name__ for one in _chain(error) for cls in type(one).__mro__}
    if names & _UNKNOWN_NAMES or any(host in str(error) for host in _METADATA_SERVERS):
        return "unknown"
    status, code = _status(error), _code(error)
    if names & _DENIED_NAMES or code in _DENIED_CODES or status in (401, 403):
        return "denied"
    if status is not None:
        if status in (408, 429) or (status >= 500 and status != 501) or code in _PASSING_CODES:
            return "passing"
        return "absent" if status == 404 else "other"
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL:
        return "full"
    if number in _CLOSED:
        return "closed"
    if isinstance(error, PermissionError):
        return "denied"
    if isinstance(error, FileNotFoundError):
        return "absent"
    if names & _PASSING_NAMES or number in _PASSING_NUMBERS:
        return "passing"
    if _is_of_obstore(error) and "HTTP error" in str(error):
        return "passing"
    return "other" if type(error).__module__.partition(".")[0] in _CLIENTS else None


def explained(error: Exception, store: str, doing: str, *, tries: int = 1) -> Exception:
    """The error to raise in place of ``error``, which it is itself where there is no better one.

    Parameters
    ----------
    store : name or URL
    doing : "writing s2/c/0/0/0/0"
    tries : how often that was tried
    """
    what = kind(error)
    if what is None:
        return error
    classes = {"absent": FileNotFoundError, "denied": PermissionError, "unknown": PermissionError}
    often = f" after {tries} tries" if tries > 1 else ""
    remedy = _REMEDIES[what]
    if doing.startswith("writing"):
        remedy += "; what is there stays, and resume=True goes on with it"
    message = f"{store}: {doing} failed{often} ({reason(error)}): {remedy}"
    found: OSError = classes.get(what, StoreError)(message)
    if isinstance(error, OSError):
        found.errno = error.errno
    return found


def reason(error: BaseException) -> str:
    """The error in some words."""
    text = str(error)
    found = re.search("<Message>(.*?)</Message>", text)
    # obstore goes on with its inner state
    line = found[1] if found else text.partition("\n")[0]
    code = _code(error)
    line = f"{code}: {line}" if code and code not in line else line
    return (line if len(line) <= 200 else line[:197] + "...") or type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__
    yield from seen


def _is_of_obstore(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "obstore"


def _status(error: BaseException) -> int | None:
    """Of the answer that was an error, where there was one."""
    for one in _chain(error):
        response = getattr(one, "response", None)  # botocore
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("code", "status"):  # gcsfs and google, aiohttp; causes mean other things by it
        value = getattr(error, name, None)
        if str(value).isdecimal() and 400 <= int(str(value)) < 600:
            return int(str(value))
    if not _is_of_obstore(error):
        return None
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _code(error: BaseException) -> str | None:
    """S3's word for it."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return response.get("Error", {}).get("Code")
    found = re.search("<Code>(.*?)</Code>", str(error))
    return found[1] if found else None
