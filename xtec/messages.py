"""How xtec speaks to its users besides exceptions."""

from __future__ import annotations

import logging
import sys
import warnings

#: What was decided for the user, at level INFO: silent unless logging is configured.
log = logging.getLogger("xtec")


def warn(message: str) -> None:
    """Warn with the line of the caller outside this package, however deep inside it we are."""
    level, frame = 1, sys._getframe()
    while (
        frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "xtec"
    ):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
