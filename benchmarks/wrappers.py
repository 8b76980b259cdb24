"""Other codecs, one pair of functions each: a frame and a setting to bytes, and back.

A frame is (band, y, x) uint16, for HEVC (time, band, y, x). What a decoder needs beside the coded
bytes and the shape is among the bytes. Everything runs on one thread. Packages are imported where
they are used, so that one that is absent stops nothing else.
"""

from __future__ import annotations

import io
import math
import struct
from fractions import Fraction

import numpy as np

Parts = list[bytes]
Shape = tuple[int, ...]


def _whole(values: np.ndarray) -> np.ndarray:
    """The nearest DN."""
    return np.rint(np.clip(values, 0, 65535)).astype(np.int32)


# JPEG 2000, JPEG XL, WebP ------------------------------------------------------------------------


def pillow_j2k(mode: str, dn: np.ndarray, setting: float) -> Parts:
    from PIL import Image

    parts = []
    for band in dn:
        file = io.BytesIO()
        Image.fromarray(band).save(
            file,
            "JPEG2000",
            quality_mode=mode,
            quality_layers=[setting],
            irreversible=True,
            no_jp2=True,
        )
        parts.append(file.getvalue())
    return parts


def pillow_bands(parts: Parts, shape: Shape) -> np.ndarray:
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(part)), np.int32) for part in parts])


def j2k(planes: np.ndarray, setting: float) -> bytes:
    """(band, y, x) uint16 as components of one codestream, without the comment that names
    OpenJPEG."""
    import imagecodecs

    data = imagecodecs.jpeg2k_encode(
        planes, level=setting, codecformat="j2k", planar=True, mct=False, reversible=False
    )
    at = data.find(b"\xff\x64", 0, data.find(b"\xff\x90"))
    return data if at < 0 else data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]


def j2k_decode(parts: Parts, shape: Shape) -> np.ndarray:
    import imagecodecs

    return imagecodecs.jpeg2k_decode(parts[0], planar=True).reshape(shape).astype(np.int32)


def htj2k(dn: np.ndarray, setting: float) -> Parts:
    import imagecodecs

    return [imagecodecs.htj2k_encode(dn, level=setting, reversible=False, planar=True)]


def htj2k_decode(parts: Parts, shape: Shape) -> np.ndarray:
    import imagecodecs

    return imagecodecs.htj2k_decode(parts[0], planar=True).reshape(shape).astype(np.int32)


def klt(dn: np.ndarray, setting: float) -> Parts:
    """Components over the bands of this chunk, as JPEG 2000; means and matrix (int16) beside."""
    pixels = dn.reshape(len(dn), -1).astype(np.float64)
    mean = pixels.mean(axis=1).astype("<f4")
    _, vectors = np.linalg.eigh(np.cov(pixels))
    matrix = np.rint(vectors.T[::-1] * 32767).astype("<i2")
    components = matrix / 32767 @ (pixels - mean[:, None])
    low = math.floor(components.min())
    step = max(1.0, (components.max() - low) / 65535)  # 1 unless there are very bright clouds
    planes = np.rint((components - low) / step).astype(np.uint16).reshape(dn.shape)
    head = struct.pack("<fi", step, low) + mean.tobytes() + matrix.tobytes()
    return [j2k(planes, setting + 20 * math.log10(step)), head]


def klt_decode(parts: Parts, shape: Shape) -> np.ndarray:
    step, low = struct.unpack_from("<fi", parts[1])
    bands = shape[0]
    mean = np.frombuffer(parts[1], "<f4", bands, 8)
    matrix = np.frombuffer(parts[1], "<i2", bands**2, 8 + 4 * bands).reshape(bands, bands) / 32767
    components = j2k_decode(parts, shape).reshape(bands, -1) * step + low
    return _whole(np.linalg.solve(matrix, components) + mean[:, None]).reshape(shape)


#: JPEG XL sees DN / 4: its opsin curve is nearly straight so near to black, as squared error wants.
_JXL_SCALE = 4
#: By whether bands are taken in threes; 7 is no better for single bands, 3 is worse for both.
_JXL_EFFORT = {False: 5, True: 7}


def _triples(planes: np.ndarray) -> list[np.ndarray]:
    """(band, y, x) as images (y, x, 3) of neighbouring bands; the last bands may come twice."""
    last = len(planes) - 3
    starts = [min(i, last) for i in range(0, len(planes), 3)]
    return [np.ascontiguousarray(np.moveaxis(planes[i : i + 3], 0, -1)) for i in starts]


def _from_triples(images: list[np.ndarray], bands: int) -> np.ndarray:
    out = np.empty((bands, *images[0].shape[:2]), images[0].dtype)
    for i, image in enumerate(images):
        start = min(3 * i, bands - 3)
        out[start : start + 3] = np.moveaxis(image, -1, 0)
    return out


def jxl(rgb: bool, dn: np.ndarray, setting: float) -> Parts:
    import imagecodecs

    planes = np.rint(dn / _JXL_SCALE).astype(np.uint16)
    return [
        imagecodecs.jpegxl_encode(
            image, effort=_JXL_EFFORT[rgb], distance=setting, usecontainer=False, numthreads=1
        )
        for image in (_triples(planes) if rgb else planes)
    ]


def jxl_decode(rgb: bool, parts: Parts, shape: Shape) -> np.ndarray:
    import imagecodecs

    images = [imagecodecs.jpegxl_decode(part, numthreads=1) for part in parts]
    planes = _from_triples(images, shape[0]) if rgb else np.stack(images)
    return planes.astype(np.int32) * _JXL_SCALE


def _ranges(dn: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(..., band, y, x) from each band's lowest and highest DN to 0 and ``levels``; and these."""
    axes = tuple(i for i in range(dn.ndim) if i != dn.ndim - 3)
    low, high = dn.min(axis=axes), dn.max(axis=axes)
    gain = levels / np.maximum(high.astype(float) - low, 1)[:, None, None]
    return np.rint((dn - low[:, None, None].astype(float)) * gain).astype(np.uint16), low, high


def _head(low: np.ndarray, high: np.ndarray) -> bytes:
    return low.astype("<u2").tobytes() + high.astype("<u2").tobytes()


def _unrange(values: np.ndarray, head: bytes, levels: int) -> np.ndarray:
    low, high = np.frombuffer(head, "<u2").reshape(2, -1, 1, 1).astype(float)
    return _whole(values * (np.maximum(high - low, 1) / levels) + low)


def webp(rgb: bool, dn: np.ndarray, setting: float) -> Parts:
    from PIL import Image

    planes, low, high = _ranges(dn, 255)
    planes = planes.astype(np.uint8)
    parts = []
    for image in _triples(planes) if rgb else planes:
        file = io.BytesIO()
        Image.fromarray(image).convert("RGB").save(file, "WEBP", quality=setting, method=6)
        parts.append(file.getvalue())
    return [*parts, _head(low, high)]


def webp_decode(rgb: bool, parts: Parts, shape: Shape) -> np.ndarray:
    from PIL import Image

    images = [np.asarray(Image.open(io.BytesIO(part))) for part in parts[:-1]]
    planes = _from_triples(images, shape[0]) if rgb else np.stack([i.mean(axis=-1) for i in images])
    return _unrange(planes, parts[-1], 255)


# HEVC --------------------------------------------------------------------------------------------


def _x265(frames: np.ndarray, setting: float) -> bytes:
    """(frame, y, x) uint16 of 12 bits as one bare stream of grey frames."""
    import av

    codec = av.CodecContext.create("libx265", "w")
    codec.height, codec.width = frames.shape[1:]
    codec.pix_fmt, codec.time_base, codec.framerate = "gray12le", Fraction(1, 25), 25
    # No text about the encoder, no B frames (better here), nothing tuned to the eye, one thread.
    options = f"qp={setting:g}:bframes=0:info=0:pools=none:frame-threads=1:log-level=none"
    codec.options = {"preset": "slow", "tune": "psnr", "x265-params": options}
    out = b""
    for i, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "gray12le")
        frame.pts = i
        out += b"".join(bytes(packet) for packet in codec.encode(frame))
    return out + b"".join(bytes(packet) for packet in codec.encode(None))


def _x265_decode(data: bytes) -> np.ndarray:
    import av

    codec = av.CodecContext.create("hevc", "r")
    codec.thread_count = 1
    packets = [*codec.parse(data), *codec.parse(None), None]
    return np.stack([frame.to_ndarray() for packet in packets for frame in codec.decode(packet)])


def hevc(together: bool, dn: np.ndarray, setting: float) -> Parts:
    values, low, high = _ranges(dn, 4095)
    videos = values.swapaxes(0, 1)  # (band, time, y, x)
    if together:
        videos = videos.reshape(1, -1, *dn.shape[2:])
    return [*(_x265(video, setting) for video in videos), _head(low, high)]


def hevc_decode(parts: Parts, shape: Shape) -> np.ndarray:
    time, band, y, x = shape
    videos = np.concatenate([_x265_decode(part) for part in parts[:-1]])
    return _unrange(videos.reshape(band, time, y, x).swapaxes(0, 1), parts[-1], 4095)


# Codecs of scientific data -----------------------------------------------------------------------


def sz3(dn: np.ndarray, setting: float) -> Parts:
    import imagecodecs

    stacked = dn.reshape(-1, dn.shape[-1]).astype(np.float32)
    return [imagecodecs.sz3_encode(stacked, mode="abs", abs=setting)]


def sz3_decode(parts: Parts, shape: Shape) -> np.ndarray:
    import imagecodecs

    stacked = (math.prod(shape[:-1]), shape[-1])
    return _whole(imagecodecs.sz3_decode(parts[0], stacked, np.float32)).reshape(shape)


def sperr(mode: str, dn: np.ndarray, setting: float) -> Parts:
    import imagecodecs

    return [imagecodecs.sperr_encode(dn.astype(np.float32), setting, mode=mode, numthreads=1)]


def sperr_decode(parts: Parts, shape: Shape) -> np.ndarray:
    import imagecodecs

    return _whole(imagecodecs.sperr_decode(parts[0], shape=shape, dtype=np.float32, numthreads=1))


def zfp(dn: np.ndarray, setting: float) -> Parts:
    import imagecodecs

    return [imagecodecs.zfp_encode(dn.astype(np.float32), level=setting, mode="a", numthreads=1)]


def zfp_decode(parts: Parts, shape: Shape) -> np.ndarray:
    import imagecodecs

    return _whole(imagecodecs.zfp_decode(parts[0], numthreads=1))


def lerc(dn: np.ndarray, setting: float) -> Parts:
    import imagecodecs

    pixels = np.ascontiguousarray(np.moveaxis(dn, 0, -1))
    return [imagecodecs.lerc_encode(pixels, level=setting, compression="deflate")]


def lerc_decode(parts: Parts, shape: Shape) -> np.ndarray:
    import imagecodecs

    return np.moveaxis(imagecodecs.lerc_decode(parts[0]), -1, 0).astype(np.int32)
