"""Codecs that keep a bound on the error of integers, each at the best settings that were found.

They see a band of a date by itself, as (y, x) uint16. Codecs of floats get half a DN more than the
bound, less a little: rounded to integers the error is the bound again. Everything runs on one
thread. Packages are imported where they are used.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from baselines import missing

#: What rounding to whole DN takes back.
_ROUNDING = 0.499


@dataclass(frozen=True)
class PlaneCodec:
    """A codec of one band of one date.

    Attributes
    ----------
    name : of the codec
    encode : (y, x) uint16, bound in DN -> bytes
    decode : bytes, shape -> (y, x) integers or floats
    how : what was chosen
    lossless, lossy : whether it is for bound 0, and for others
    stacked : whether it gets the bands of a date below each other as one plane
    package, flag : that it needs; imagecodecs may lack the codec
    """

    name: str
    encode: Callable[[np.ndarray, int], bytes]
    decode: Callable[[bytes, tuple[int, ...]], np.ndarray]
    how: str
    lossless: bool = False
    lossy: bool = False
    stacked: bool = False
    package: str = "imagecodecs"
    flag: str = ""

    def missing(self) -> str:
        """Why it cannot be run here; empty where it can."""
        return missing((self.package,), self.flag)

    def keeps(self, bound: int) -> bool:
        return self.lossy if bound else self.lossless

    def planes(self, date: np.ndarray) -> np.ndarray:
        """(band, y, x) as it takes them: (plane, y, x)."""
        return date.reshape(1, -1, date.shape[-1]) if self.stacked else date

    def there(self, dn: np.ndarray, bound: int) -> list[bytes]:
        """(time, band, y, x) uint16, plane by plane."""
        return [self.encode(plane, bound) for date in dn for plane in self.planes(date)]

    def back(self, parts: list[bytes], shape: tuple[int, ...]) -> np.ndarray:
        """(time, band, y, x) int64."""
        one = (shape[1] * shape[2], shape[3]) if self.stacked else shape[2:]
        planes = [np.rint(self.decode(part, one)).astype(np.int64) for part in parts]
        return np.stack(planes).reshape(shape)


def _jxl(effort: int) -> Callable[[np.ndarray, int], bytes]:
    def encode(plane: np.ndarray, bound: int) -> bytes:
        import imagecodecs

        return imagecodecs.jpegxl_encode(
            plane, lossless=True, effort=effort, usecontainer=False, numthreads=1
        )

    return encode


def _jxl_decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    import imagecodecs

    return imagecodecs.jpegxl_decode(data, numthreads=1)


def _j2k(plane: np.ndarray, bound: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(plane).save(file, "JPEG2000", irreversible=False, no_jp2=True, comment="-")
    return file.getvalue()


def _j2k_decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)))


def _jpegls(plane: np.ndarray, bound: int) -> bytes:
    import imagecodecs

    return imagecodecs.jpegls_encode(plane, level=bound)


def _jpegls_decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    import imagecodecs

    return imagecodecs.jpegls_decode(data)


def _sz3(plane: np.ndarray, bound: int) -> bytes:
    import imagecodecs

    return imagecodecs.sz3_encode(plane.astype(np.float32), mode="abs", abs=bound + _ROUNDING)


def _sz3_decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    import imagecodecs

    return imagecodecs.sz3_decode(data, shape, np.float32)


def _lerc(plane: np.ndarray, bound: int) -> bytes:
    import imagecodecs

    pixels, level = (plane.astype(np.float32), bound + _ROUNDING) if bound else (plane, 0)
    return imagecodecs.lerc_encode(pixels, level=level, compression="deflate")


def _lerc_decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    import imagecodecs

    return imagecodecs.lerc_decode(data)


def _zfp(plane: np.ndarray, bound: int) -> bytes:
    import imagecodecs

    pixels = plane.astype(np.float32)
    tolerance, kept = bound + _ROUNDING, b""
    while True:  # its errors are far smaller than the tolerance
        data = imagecodecs.zfp_encode(pixels, level=tolerance, mode="a", numthreads=1)
        if kept and np.abs(np.rint(_zfp_decode(data, plane.shape)) - plane).max() > bound:
            return kept
        if tolerance > 2**18:
            return data
        tolerance, kept = 2 * tolerance, data


def _zfp_decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    import imagecodecs

    return imagecodecs.zfp_decode(data, numthreads=1)


def _zstd(plane: np.ndarray, bound: int) -> bytes:
    from numcodecs import Delta, Shuffle, Zstd

    return bytes(Zstd(level=19).encode(Shuffle(2).encode(Delta("<u2").encode(plane))))


def _zstd_decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    from numcodecs import Delta, Shuffle, Zstd

    return Delta("<u2").decode(Shuffle(2).decode(Zstd().decode(data))).reshape(shape)


def _blosc(plane: np.ndarray, bound: int) -> bytes:
    from numcodecs import Blosc, Delta

    return bytes(Blosc("zstd", 9, Blosc.BITSHUFFLE).encode(Delta("<u2").encode(plane)))


def _blosc_decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    from numcodecs import Blosc, Delta

    pixels = np.frombuffer(Blosc("zstd").decode(data), "<u2")
    return Delta("<u2").decode(pixels).reshape(shape)


PLANE_CODECS = (
    PlaneCodec(
        "JPEG XL",
        _jxl(5),
        _jxl_decode,
        "libjxl, effort 5, bare codestream",
        lossless=True,
        flag="JPEGXL",
    ),
    PlaneCodec(
        "JPEG XL, effort 7",
        _jxl(7),
        _jxl_decode,
        "libjxl, its default",
        lossless=True,
        flag="JPEGXL",
    ),
    PlaneCodec(
        "JPEG 2000",
        _j2k,
        _j2k_decode,
        "OpenJPEG, reversible, no JP2 box, one letter of comment",
        lossless=True,
        package="pillow",
    ),
    PlaneCodec(
        "JPEG-LS",
        _jpegls,
        _jpegls_decode,
        "CharLS, NEAR = bound",
        lossless=True,
        lossy=True,
        flag="JPEGLS",
    ),
    PlaneCodec(
        "zstd, delta, shuffle",
        _zstd,
        _zstd_decode,
        "level 19, bytes shuffled",
        lossless=True,
        package="numcodecs",
    ),
    PlaneCodec(
        "Blosc zstd, delta",
        _blosc,
        _blosc_decode,
        "level 9, bits shuffled",
        lossless=True,
        package="numcodecs",
    ),
    PlaneCodec(
        "SZ3",
        _sz3,
        _sz3_decode,
        "float32, bound + 0.499 and rounded",
        lossy=True,
        flag="SZ3",
    ),
    PlaneCodec(
        "SZ3, bands in one plane",
        _sz3,
        _sz3_decode,
        "as SZ3, the bands of a date below each other",
        lossy=True,
        stacked=True,
        flag="SZ3",
    ),
    PlaneCodec(
        "LERC",
        _lerc,
        _lerc_decode,
        "deflate (smaller than zstd); with a bound float32, bound + 0.499 and rounded",
        lossless=True,
        lossy=True,
        flag="LERC",
    ),
    PlaneCodec(
        "ZFP",
        _zfp,
        _zfp_decode,
        "float32, fixed accuracy; by trial the largest tolerance (a power of two times the "
        "bound + 0.499) that keeps the bound after rounding",
        lossy=True,
        flag="ZFP",
    ),
)
