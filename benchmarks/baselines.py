"""The codecs that ours is compared with, each at the best settings that were found for it.

Found means: tried on frames of SSL4EO-S12, GELOS, BigEarthNet and hydro (val), at 36 to 48 dB.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import wrappers
from wrappers import Parts, Shape


@dataclass(frozen=True)
class Baseline:
    """A codec in one of its modes.

    Attributes
    ----------
    name : of codec and mode
    family : modes of one family count as one codec, the better of them at each PSNR
    settings : from small files to large ones
    to_parts : (band, y, x) uint16, setting -> bytes; (time, band, y, x) where ``series``
    to_dn : bytes, shape -> integers of that shape
    how : what the setting is, and what else was chosen
    packages : that it needs; the first one may lack the codec (``flag`` of imagecodecs)
    series : whether it codes several dates together
    """

    name: str
    family: str
    settings: tuple[float, ...]
    to_parts: Callable[[np.ndarray, float], Parts]
    to_dn: Callable[[Parts, Shape], np.ndarray]
    how: str
    packages: tuple[str, ...] = ("imagecodecs",)
    flag: str = ""
    series: bool = False

    def missing(self) -> str:
        """Why it cannot be run here; empty where it can."""
        return missing(self.packages, self.flag)

    def stamp(self) -> str:
        """Changes with everything that results depend on."""
        versions = " ".join(f"{p} {version(p)}" for p in self.packages)
        return f"{versions} {zlib.crc32(Path(wrappers.__file__).read_bytes()):08x}"

    def encode(self, dn: np.ndarray, setting: float) -> Parts:
        """(time, band, y, x) uint16; one date unless ``series``."""
        return self.to_parts(dn if self.series else dn[0], setting)

    def decode(self, parts: Parts, shape: Shape) -> np.ndarray:
        """(time, band, y, x) integers."""
        if self.series:
            return self.to_dn(parts, shape)
        return self.to_dn(parts, shape[1:])[None]


#: Packages whose module has another name
_MODULES = {"pillow": "PIL"}


def missing(packages: tuple[str, ...], flag: str = "") -> str:
    """Why a codec cannot be run here; empty where it can. A package may lack the codec: ``flag`` of
    imagecodecs."""
    for package in packages:
        try:
            module = importlib.import_module(_MODULES.get(package, package))
        except ImportError as error:
            return f"{package} cannot be imported ({error})"
    if flag and not getattr(module, flag).available:
        return f"{package} {version(package)} was built without {flag}"
    return ""


_QP = (50, 46, 42, 38, 34, 30, 26, 21)

BASELINES = {
    codec.name: codec
    for codec in (
        Baseline(
            "JPEG 2000 rate",
            "JPEG 2000",
            (400, 240, 160, 110, 80, 60, 45, 36, 28, 22, 17),
            partial(wrappers.pillow_j2k, "rates"),
            wrappers.pillow_bands,
            "ratio to 16 bit; OpenJPEG, each band alone, irreversible wavelet, no JP2 box",
            packages=("pillow",),
        ),
        Baseline(
            "JPEG 2000 dB",
            "JPEG 2000",
            (44, 47, 50, 53, 56, 59, 62, 65),
            partial(wrappers.pillow_j2k, "dB"),
            wrappers.pillow_bands,
            "PSNR of 16 bit; OpenJPEG, each band alone, irreversible wavelet, no JP2 box",
            packages=("pillow",),
        ),
        Baseline(
            "JPEG 2000, all bands in one",
            "JPEG 2000, all bands in one",
            (44, 47, 50, 53, 56, 59, 62, 65),
            lambda dn, setting: [wrappers.j2k(dn, setting)],
            wrappers.j2k_decode,
            "PSNR of 16 bit; OpenJPEG, bands as components of one codestream (one rate allocation "
            "for all of them), irreversible wavelet, no component transform, comment taken out",
            flag="JPEG2K",
        ),
        Baseline(
            "HTJ2K",
            "HTJ2K",
            (0.04, 0.03, 0.02, 0.014, 0.01, 0.007, 0.005, 0.003, 0.002),
            wrappers.htj2k,
            wrappers.htj2k_decode,
            "quantiser step as a share of 16 bit; OpenJPH, bands as components of one codestream, "
            "irreversible wavelet",
            flag="HTJ2K",
        ),
        Baseline(
            "KLT + JPEG 2000",
            "KLT + JPEG 2000",
            (44, 47, 50, 53, 56, 59, 62, 65),
            wrappers.klt,
            wrappers.klt_decode,
            "PSNR of 16 bit; KLT over the bands of each chunk, matrix (int16) and means (float32) "
            "counted; components of one codestream as in 'JPEG 2000, all bands in one'",
            flag="JPEG2K",
        ),
        Baseline(
            "JPEG XL grey",
            "JPEG XL",
            (3.5, 2.2, 1.5, 1.0, 0.7, 0.5, 0.35, 0.2),
            partial(wrappers.jxl, False),
            partial(wrappers.jxl_decode, False),
            "distance; libjxl, each band alone, 16-bit samples of DN / 4, effort 5 (7 is no "
            "smaller at equal PSNR, 3 is 10 % larger; DN and 2 DN as samples are 2 to 5 % larger)",
            flag="JPEGXL",
        ),
        Baseline(
            "JPEG XL RGB",
            "JPEG XL",
            (3.5, 2.2, 1.5, 1.0, 0.6, 0.3, 0.15, 0.08),
            partial(wrappers.jxl, True),
            partial(wrappers.jxl_decode, True),
            "distance; libjxl, neighbouring bands in threes as RGB, 16-bit samples of DN / 4, "
            "effort 7 (better than grey up to some 38 dB)",
            flag="JPEGXL",
        ),
        Baseline(
            "WebP grey",
            "WebP",
            (0, 10, 20, 35, 55, 70, 80, 90, 97),
            partial(wrappers.webp, False),
            partial(wrappers.webp_decode, False),
            "quality; libwebp, method 6, 8 bits from each band's lowest to its highest DN in the "
            "frame (4 bytes a band), each band alone as grey",
            packages=("pillow",),
        ),
        Baseline(
            "WebP RGB",
            "WebP",
            (0, 10, 20, 40, 60, 75, 85, 95),
            partial(wrappers.webp, True),
            partial(wrappers.webp_decode, True),
            "quality; as WebP grey, but neighbouring bands in threes as RGB (better up to 38 dB; "
            "above, WebP's halved colour resolution caps it)",
            packages=("pillow",),
        ),
        Baseline(
            "HEVC, a video a band",
            "HEVC",
            _QP,
            partial(wrappers.hevc, False),
            wrappers.hevc_decode,
            "QP; x265 preset slow, tune psnr, no B frames, 12-bit grey from each band's lowest to "
            "its highest DN in the chunk (4 bytes a band), up to 4 dates a chunk",
            packages=("av",),
            series=True,
        ),
        Baseline(
            "HEVC, all in one video",
            "HEVC, all in one video",
            _QP,
            partial(wrappers.hevc, True),
            wrappers.hevc_decode,
            "QP; as 'HEVC, a video a band', but all bands and dates of a chunk in one video, band "
            "after band: motion compensation predicts bands from each other",
            packages=("av",),
            series=True,
        ),
        Baseline(
            "SZ3",
            "SZ3",
            (1600, 1000, 700, 450, 300, 200, 130, 80),
            wrappers.sz3,
            wrappers.sz3_decode,
            "largest error in DN; bands below each other as one float32 image (as a volume, or "
            "each band alone, is 5 to 15 % larger)",
            flag="SZ3",
        ),
        Baseline(
            "SPERR dB",
            "SPERR",
            (14, 18, 22, 26, 30, 34, 38, 43),
            partial(wrappers.sperr, "psnr"),
            wrappers.sperr_decode,
            "PSNR of the frame's own range; (band, y, x) as a float32 volume",
            flag="SPERR",
        ),
        Baseline(
            "SPERR rate",
            "SPERR",
            (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 1.6),
            partial(wrappers.sperr, "bpp"),
            wrappers.sperr_decode,
            "bits a sample; (band, y, x) as a float32 volume",
            flag="SPERR",
        ),
        Baseline(
            "ZFP",
            "ZFP",
            (64000, 32000, 16000, 11000, 8000, 5600, 4000, 2000, 1000),
            wrappers.zfp,
            wrappers.zfp_decode,
            "tolerance in DN (kept by far: errors are some 20 times smaller); fixed accuracy, "
            "(band, y, x) as a float32 volume (fixed rate and precision are larger)",
            flag="ZFP",
        ),
        Baseline(
            "LERC",
            "LERC",
            (2000, 1200, 800, 500, 330, 220, 140, 80),
            wrappers.lerc,
            wrappers.lerc_decode,
            "largest error in DN; bands interleaved, deflate (no or zstd compression is larger)",
            flag="LERC",
        ),
    )
}
