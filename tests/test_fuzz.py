"""Hostile input, a bounded share of what `make fuzz` tries; and the judge that it goes by."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import run
from hypothesis import given, settings
from hypothesis import strategies as st
from tec import StreamError, codec, stream

from fuzz import cases, corpus, judging
from fuzz.__main__ import EXACT
from fuzz.judging import Finding, check_packing, judge
from fuzz.mutations import KINDS, mutate, seal

CASES = 2000


@pytest.fixture(scope="module")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> list[corpus.Specimen]:
    return corpus.build(tmp_path_factory.mktemp("weights"), builtin=False)


def test_two_thousand_cases(specimens: list[corpus.Specimen]) -> None:
    report = cases.run(7, range(CASES), specimens)
    assert not report.findings, "\n".join(f"case {n}: {what}" for n, _, _, what in report.findings)
    by_kind: Counter[str] = Counter()
    for (kind, _), n in report.verdicts.items():
        by_kind[kind] += n
    assert by_kind.total() == CASES
    assert set(by_kind) == {*KINDS, "configuration", "metadata", "bytes of metadata"}
    # Cases get as far as the latents, the masks and the pixels, not only to the framing.
    said = Counter(what for _, what in report.verdicts.elements())
    for beginning in (
        "StreamError: checksum of the decoded latents",
        "StreamError: the mask of missing pixels",
        "StreamError: the coded stream ends in a wrong",
        "another stream, which its array refuses",
        "another image",
        "the same pixels",
    ):
        assert sum(n for what, n in said.items() if what.startswith(beginning)) >= 10, beginning


def test_a_case_is_always_the_same(specimens: list[corpus.Specimen]) -> None:
    for number in range(40):
        one, two = (mutate(np.random.default_rng([3, number]), specimens) for _ in range(2))
        assert (one.kind, one.data) == (two.kind, two.data)


def test_the_corpus_has_every_optional_field(specimens: list[corpus.Specimen]) -> None:
    headers = [stream.peek(specimen.data) for specimen in specimens]
    for has in (
        lambda h: h.config.nodata is not None,
        lambda h: h.config.offset,
        lambda h: h.config.scale != 1,
        lambda h: h.extent != (h.shape[0], *h.shape[2:]),
        lambda h: h.grids,
        lambda h: h.ranges,
        lambda h: h.how,
        lambda h: any(h.told),
        lambda h: 0 in h.extent,
    ):
        assert any(map(has, headers))
    assert {h.model for h in headers} == set(stream.MODELS)
    assert {h.dtype for h in headers} == set(stream.DTYPES)


# the judge


@pytest.fixture
def fp(specimens: list[corpus.Specimen]) -> corpus.Specimen:
    return specimens[1]


def forged(specimen: corpus.Specimen, **changes: Any) -> bytes:
    """The stream with other fields in its header, and a right checksum."""
    header, *rest = stream.unpack(specimen.data)
    return stream.pack(replace(header, **changes), *rest)


def wrong(change: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    inner = codec.decode
    monkeypatch.setattr(codec, "decode", lambda *args, **options: change(inner(*args, **options)))


def one_off(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.copy()
    pixels.flat[-1] += 1
    return pixels


def test_wrong_pixels_are_found(fp: corpus.Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge(fp, fp.data) == "the same pixels"
    assert judge(fp, forged(fp, margin=b"\1\1")) == "the same pixels"
    wrong(one_off, monkeypatch)
    with pytest.raises(Finding, match="beyond the extent"):
        judge(fp, fp.data)
    wrong(lambda pixels: pixels[:1], monkeypatch)
    with pytest.raises(Finding, match="declared"):
        judge(fp, fp.data)


def test_wrong_pixels_within_the_extent_are_found(
    specimens: list[corpus.Specimen], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = next(s for s in specimens if s.name == "tt")  # nothing is special, or beyond
    wrong(lambda pixels: one_off(pixels).clip(1, 1), monkeypatch)
    with pytest.raises(Finding, match=r"outside the range|wrong pixels"):
        judge(whole, forged(whole, margin=b"\1\1"))
    header, specials, dates, _ = stream.unpack(whole.data)
    swapped = stream.pack(replace(header, ranges=()), specials, dates)
    monkeypatch.undo()
    assert judge(whole, swapped) in ("the same pixels", "another image: ranges")


def test_a_wrong_checksum_that_is_taken_is_found(
    fp: corpus.Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "decode", lambda *args, **options: fp.pixels)
    with pytest.raises(Finding, match="checksum is wrong"):
        judge(fp, fp.data[:-1] + b"?")


GREEDY = """
    import gc, sys, tempfile
    sys.path.insert(0, {root!r})
    from pathlib import Path
    import numpy as np
    from fuzz import corpus, judging
    from tec import codec, memory

    memory._set()  # malloc keeps what is free ...
    with tempfile.TemporaryDirectory() as folder:
        specimen = corpus.build(Path(folder), builtin=False)[1]
        decode = codec.decode

        def greedy(*args, **options):
            pixels = decode(*args, **options)
            objects = [[] for _ in range(20_000)]  # garbage is collected
            return pixels * int(np.ones(samples)[0])

        codec.decode = greedy
        judging._valid_growth = lambda *args: 2**20
        for samples in (2**20, 2**24):
            np.ones(2**25)  # ... as here
            garbage = [np.ones(2**25)]
            garbage.append(garbage)
            gc.collect(0)
            del garbage
            try:
                print(judging.judge(specimen, specimen.data))
            except judging.Finding as finding:
                print(finding)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_too_much_memory_is_found() -> None:
    """Whatever ran before in the process: memory that is free, and garbage, do not hide it."""
    enough, too_much = run(GREEDY.format(root=str(Path(__file__).parents[1]))).splitlines()
    assert enough == "the same pixels"
    assert re.fullmatch(r"memory grew by 1\d\d MB", too_much)


def test_other_exceptions_are_findings(
    specimens: list[corpus.Specimen], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise IndexError("here")

    monkeypatch.setattr(judging.codec, "decode", fails)
    findings = cases.run(7, range(30), specimens).findings
    assert findings
    assert all("IndexError: here" in what for *_, what in findings)


def test_what_takes_too_long_ends_and_is_named() -> None:
    """As a crash would: it is in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "--cases", "1", "--limit", "1e-6"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(r"case 0: the process ended with status -?\d+\nTimeout", done.stdout)
    assert "1 cases of seed 1" in done.stdout
    assert ", 1 findings" in done.stdout


# properties


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_edit_of_any_stream(specimens: list[corpus.Specimen], data: st.DataObject) -> None:
    specimen = data.draw(st.sampled_from(specimens))
    body = bytearray(specimen.data[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    assert judge(specimen, seal(bytes(body)))  # some verdict, no Finding


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_what_unpacks_packs_to_what_unpacks_to_the_same(
    specimens: list[corpus.Specimen], data: st.DataObject
) -> None:
    body = bytearray(data.draw(st.sampled_from(specimens)).data[:-4])
    body[data.draw(st.integers(4, min(70, len(body) - 1)))] = data.draw(st.integers(0, 255))
    with suppress(StreamError):
        check_packing(seal(bytes(body)))


def test_what_is_packed_otherwise_is_found(
    fp: corpus.Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_packing(fp.data)
    inner = stream.pack
    monkeypatch.setattr(
        stream, "pack", lambda header, *rest: inner(replace(header, margin=b"??"), *rest)
    )
    with pytest.raises(Finding, match="is packed as"):
        check_packing(fp.data)


# memory


def test_a_stream_cannot_ask_for_more_samples_than_are_allowed(fp: corpus.Specimen) -> None:
    header, *_ = stream.unpack(fp.data)
    for shape in [(1, 3, 2**15, 2**15), (2**34, 3, 1, 1)]:
        bomb = stream.pack(replace(header, shape=shape, extent=(0, 0, 0), ranges=()), b"", [])
        assert len(bomb) < 100
        with pytest.raises(StreamError, match=r"bytes\) declares .* max_samples="):
            codec.decode(bomb)
    small = stream.pack(replace(header, extent=(0, 0, 0), ranges=()), b"", [])
    size = int(np.prod(header.shape))
    assert (codec.decode(small, max_samples=size) == header.config.nodata).all()
    with pytest.raises(StreamError, match=f"{size} samples, and {size - 1} are allowed"):
        codec.decode_many([small], max_samples=size - 1)


def test_an_array_compares_the_shape_before_anything_is_allocated(
    fp: corpus.Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocates(*args: Any, **options: Any) -> None:
        raise AssertionError("something was allocated")

    monkeypatch.setattr(codec, "decode_many", allocates)
    monkeypatch.setattr(np, "full", allocates)
    shape = (2, 3, 2**15, 2**15)
    with pytest.raises(StreamError, match=r"c/0: the stream holds shape .*32768, 32768\), the"):
        fp.coder.decode_chunks([forged(fp, shape=shape)], fp.pixels.dtype, ["c/0"])


SHAPES = ["fp, holes", "elic, holes", "none"]
MEMORY = """
    import sys, tempfile
    sys.path.insert(0, {root!r})
    from contextlib import suppress
    from dataclasses import replace
    from pathlib import Path
    import numpy as np
    from fuzz import corpus, judging
    from fuzz.mutations import seal
    from tec import TecError, codec, stream

    def grown(specimen):
        chunk = np.tile(specimen.pixels, (1, 1, 40, 40))  # 640 x 640, with masks
        valid = codec.encode(chunk, specimen.config)
        header, specials, dates, residual = stream.unpack(valid)
        junk = np.random.default_rng(0).bytes(3000)
        hostile = [
            seal(valid[:-300] + junk[:296]),
            stream.pack(header, junk, dates, residual),
            stream.pack(header, b"\\0" + specials[1:], dates, residual),
        ]
        for name, value in (
            ("payload", junk), ("payload", b"\\1"), ("decisions", junk), ("checksum", 1)
        ):
            if dates:
                changed = [replace(date, **{{name: value}}) for date in dates]
                hostile.append(stream.pack(header, specials, changed, residual))
        for data in (junk, residual.data[:9] + junk) if residual else ():
            hostile.append(stream.pack(header, specials, dates, replace(residual, data=data)))

        def decode(data):
            with suppress(TecError):
                codec.decode(data, weights=specimen.weights)

        for data in (valid, *hostile):  # networks are loaded once
            decode(data)
        return [judging.growth(lambda: decode(data)) for data in (valid, *hostile)]

    with tempfile.TemporaryDirectory() as folder:
        specimens = {{s.name: s for s in corpus.build(Path(folder), builtin=False)}}
        for name in {names!r}:
            print(*grown(specimens[name]))
"""


@pytest.fixture(scope="module")
def grown() -> dict[str, list[int]]:
    """By how many bytes memory grows for the valid stream of each large shape, and for others."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in EXACT.items():
            patch.setenv(variable, value)
        out = run(MEMORY.format(root=str(Path(__file__).parents[1]), names=SHAPES))
    return {name: [*map(int, line.split())] for name, line in zip(SHAPES, out.splitlines())}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", SHAPES)
def test_memory_of_hostile_streams_of_a_large_shape(name: str, grown: dict[str, list[int]]) -> None:
    """At most twice what the valid one takes, and some megabytes."""
    valid, *hostile = grown[name]
    assert valid > 2 * 2 * 3 * 640 * 640  # it is measured: the pixels at least
    assert max(hostile) <= 2 * valid + 4 * 2**20
