"""Guided by coverage: libFuzzer, by way of atheris, where that is installed (extra ``fuzz``).

    python -m fuzz.coverage               # every target for a bounded number of runs
    python -m fuzz.coverage decode -atheris_runs=1000000 folder-of-streams

Inputs that crash a target are left in the current folder; given in place of a folder, one runs
again.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

#: Targets, and how often each runs when all do.
RUNS = {
    "unpack": 200_000,
    "specials": 100_000,
    "rans": 100_000,
    "portable": 100_000,
    "decode": 200_000,
}
OPTIONS = ("-rss_limit_mb=4096", "-timeout=60", "-max_len=2048", "-print_final_stats=1", "-seed=1")
#: Modules of compiled kernels, whose branches cannot be counted.
_COMPILED = (
    "tec.masks",
    "tec.holes",
    "tec.tridiagonal",
    "tec.entropy.rans",
    "tec.entropy.rounding",
)


def main() -> int:
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (pip install -e '.[fuzz]'): no runs guided by coverage")
        return 0
    if len(sys.argv) > 1:
        _fuzz(sys.argv[1], sys.argv[2:])
    for target, runs in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "fuzz.coverage", target, f"-atheris_runs={runs}"]
            print(f"{target}: {runs} runs", flush=True)
            status = subprocess.run([*command, *OPTIONS, folder], check=False).returncode
        if status:
            print(f"{target} failed with status {status}")
            return status
    return 0


def _fuzz(target: str, arguments: list[str]) -> None:
    """One target in this process, which libFuzzer ends. ``tec`` is imported here only, so that its
    branches are counted."""
    import atheris

    with atheris.instrument_imports(
        include=["tec"], exclude=list(_COMPILED), enable_loader_override=False
    ):
        import tec.codec
        import tec.entropy.portable
        import tec.specials  # noqa: F401
        from tec import TecError

    from .corpus import build
    from .judging import check_packing
    from .mutations import seal

    with tempfile.TemporaryDirectory() as weights:
        corpus = build(Path(weights), builtin=False)
        folders = [Path(a) for a in arguments if not a.startswith("-") and Path(a).is_dir()]
        if folders:
            for i, specimen in enumerate(corpus):
                (folders[0] / f"valid-{i}").write_bytes(specimen.data)
        run = {
            "unpack": check_packing,
            "specials": _specials,
            "rans": _rans,
            "portable": _portable,
            "decode": lambda data: _decode(data, str(Path(weights) / "fp.safetensors")),
        }[target]

        def ignoring_errors(data: bytes) -> None:
            with suppress(TecError):
                run(data)

        def sealed(data: bytes, size: int, seed: int) -> bytes:
            """libFuzzer's change of what is under the checksum."""
            return seal(atheris.Mutate(data[:-4], max(1, size - 4)))

        mutator = {"custom_mutator": sealed} if target in ("unpack", "decode") else {}
        atheris.Setup([sys.argv[0], *arguments], ignoring_errors, **mutator)
        atheris.Fuzz()


def _specials(data: bytes) -> None:
    from tec.specials import unpack_specials

    head, rest = data[:6].ljust(6, b"\0"), data[6:]
    shape = (1 + head[0] % 3, 1 + head[1] % 3, 1 + head[2] % 70, 1 + head[3] % 70)
    dtype = ("uint16", "int16", "float32")[head[4] % 3]
    unpack_specials(rest, shape, dtype, (None, 0)[head[5] % 2])


@cache
def _tables() -> Any:
    from tec.entropy.tables import scale_tables

    return scale_tables("logistic", [0.06, 0.3, 1.0, 7.0, 60.0])


def _rans(data: bytes) -> None:
    import numpy as np
    from tec.entropy import rans

    n = 1 + (data[0] if data else 0)
    decoder = rans.Decoder(data[1:], _tables())
    decoder.read((np.arange(n) * 7 % len(_tables())).astype(np.uint16))
    decoder.finish()


def _portable(data: bytes) -> None:
    import numpy as np
    from tec.entropy import portable

    n = 1 + (data[0] if data else 0)
    values = np.random.default_rng(n).normal(0, 9, (3, 1, n)).astype(np.float32)
    reader = portable.Reader([data[1:]], portable.ScaleGrid())
    reader.parameters(values[0], values[1])
    reader.round(values[2])
    reader.finish()


def _decode(data: bytes, weights: str) -> None:
    from tec import codec

    codec.decode(data, weights=weights, device="cpu", max_samples=2**16)


if __name__ == "__main__":
    sys.exit(main())
