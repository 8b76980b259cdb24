"""The exceptions of tec. All are ``ValueError``."""

from __future__ import annotations


class TecError(ValueError):
    """Root of every error that tec raises on purpose."""


class StreamError(TecError):
    """The bytes are damaged, truncated, foreign, or made for something else."""


class WeightsError(TecError):
    """A checkpoint is missing, cannot be fetched, or is not the one that was asked for."""
