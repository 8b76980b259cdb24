"""Memory is kept while passes run, and given back where Dask says to keep none."""

from __future__ import annotations

import sys

import pytest
from arrays import run
from tec import memory
from tec.batches import in_batches

if sys.platform != "linux":
    pytest.skip("glibc's malloc", allow_module_level=True)
import resource

PROGRAM = """
    import resource
    from tec import memory

    if memory._libc() is None:
        print(-1, 0, 0, 0)
        raise SystemExit

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(200):
            bytearray(2**20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    {keep}
    [bytearray(2**20) for _ in range(64)]
    count, held = faults(), resident()
    memory.give_back()
    print(count, held - resident())
"""


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_free_is_kept_until_the_end(monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    out = run(PROGRAM.format(keep="memory.keep()" if asked else ""))
    faults, given_back = map(int, out.split()[:2])
    if faults < 0:
        pytest.skip("another libc than glibc")
    pages = 200 * 2**20 // resource.getpagesize()
    assert (faults < pages / 10) == asked
    assert (given_back > 2**25) == asked


ASKED = """
    from tec import memory
    memory._set = lambda: print("set")
    memory.trim = lambda: print("trimmed")
    memory.keep()
    memory.give_back()
    print("done")
"""


@pytest.mark.parametrize(
    ("given", "done"),
    [
        ({}, ["set"]),
        ({"MALLOC_TRIM_THRESHOLD_": "65536"}, ["set", "trimmed"]),  # Dask's
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, []),
        ({"MALLOC_MMAP_THRESHOLD_": "65536"}, []),
        ({"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=off:glibc.malloc.check=1"}, []),
        ({"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=off"}, ["set"]),
    ],
)
def test_what_somebody_has_set_stays(monkeypatch: pytest.MonkeyPatch, given, done) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert run(ASKED).split() == [*done, "done"]


def test_passes_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(memory, "keep", lambda: asked.append(1))
    in_batches([], "cpu", lambda batches: ())
    assert asked
