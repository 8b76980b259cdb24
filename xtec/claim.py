"""One append at a time: a small object in the store says whose it is.

A guard, no lock: on stores that cannot write only what is not there yet, two appends that begin
within the same moment both believe that they are alone until one of them ends.
"""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from .objects import read
from .remote import name_of
from .rootlast import LEFT_OVER

if TYPE_CHECKING:
    from zarr.abc.store import Store

#: Appends of this process that have not ended.
_running: set[str] = set()


class Claim:
    """Held by an append from before it looks at the store until it has ended.

    Parameters
    ----------
    store, name : it, and the compressed variable, beside whose chunks the object lies
    take_over : whoever else has one (``resume=True``)

    Raises
    ------
    ValueError
        Another append has not ended, as far as that is known: one whose process is gone has.
    """

    def __init__(self, store: Store, name: str, take_over: bool) -> None:
        # What is left over by that name goes with the next overwrite or resume.
        self._store, self._key = store, f"{name}/append{LEFT_OVER}"
        self._id = uuid4().hex
        self._take_over = take_over

    def __enter__(self) -> Self:
        mine = {
            "id": self._id,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "begun": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        }
        data = default_buffer_prototype().buffer.from_bytes(json.dumps(mine).encode())
        sync(self._store.set_if_not_exists(self._key, data))
        found = self._found()
        if found.get("id") != self._id:
            if not self._take_over and not _has_ended(found):
                raise ValueError(
                    f"another append to {name_of(self._store)} was begun at {found.get('begun')} "
                    f"by process {found.get('process')} of {found.get('host')}, and has not ended: "
                    "let it end; if it was interrupted, resume=True with the same dates goes on "
                    f"with it, or delete {self._key} in the store to append others"
                )
            sync(self._store.set(self._key, data))
        _running.add(self._id)
        return self

    def check(self) -> None:
        """Raises RuntimeError where another append has taken over."""
        found = self._found()
        if found.get("id") != self._id:
            raise RuntimeError(
                f"another append to {name_of(self._store)} has taken over (process "
                f"{found.get('process')} of {found.get('host')}, {found.get('begun')}): this one "
                "ends without its dates; append them again when the other has ended"
            )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _running.discard(self._id)
        try:
            if self._found().get("id") == self._id:
                sync(self._store.delete(self._key))
        except Exception:
            if kind is None:
                raise  # else a store that fails once more would hide what has failed

    def _found(self) -> dict[str, Any]:
        data = read(self._store, self._key)
        try:
            found = json.loads(data or b"{}")
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}


def _has_ended(found: dict[str, Any]) -> bool:
    """Whether the process of a claim is gone, as far as can be told from here."""
    process = found.get("process")
    if found.get("host") != socket.gethostname() or not isinstance(process, int):
        return not found
    if process == os.getpid():
        return found.get("id") not in _running
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
