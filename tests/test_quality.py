"""Measures of quality against values worked out by hand, and against other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from scenes import scene

from xtec import quality


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """(2, 12, 192, 192) DN and the same with noise."""
    dn = scene(2, 12, 192, 192).astype(np.float64)
    return dn, dn + np.random.default_rng(1).normal(0, 60, dn.shape)


def test_psnr_of_a_known_error() -> None:
    a = xr.DataArray(np.full((2, 3, 4), 500), dims=("band", "y", "x"))
    b = a + xr.DataArray([1, 100], dims="band")
    np.testing.assert_allclose(quality.psnr(a, b), [80, 40])
    np.testing.assert_allclose(quality.psnr(a, b, band="none"), 10 * math.log10(1e8 / 5000.5))


def test_spectral_angle_of_known_spectra() -> None:
    a = np.array([[1.0, 1, 0, 3, 0], [0, 1, 0, 4, 7]]).reshape(2, 1, 5)
    b = np.array([[0.0, 5, 1, 3, 0], [2, 5, 1, 4, 0]]).reshape(2, 1, 5)
    np.testing.assert_allclose(
        quality.spectral_angle(a, b), [[90, 0, np.nan, 0, 90]], rtol=0, atol=1e-12
    )


def test_small_spectral_angles_keep_their_figures() -> None:
    a = np.array([1000.0, 0]).reshape(2, 1, 1)
    b = np.array([1000.0, 1e-6]).reshape(2, 1, 1)
    np.testing.assert_allclose(quality.spectral_angle(a, b), np.degrees(1e-9), rtol=1e-6)


def test_spectral_angle_does_not_depend_on_brightness(pair: tuple) -> None:
    a, b = pair
    angle = quality.spectral_angle(a, b)
    assert angle.shape == (2, 192, 192)
    assert 0.1 < angle.mean() < 10
    np.testing.assert_allclose(quality.spectral_angle(a, 2 * b), angle, atol=1e-9)
    dot = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    np.testing.assert_allclose(angle, np.degrees(np.arccos(dot)), atol=1e-5)


def test_ndvi_error_of_known_pixels() -> None:
    a = np.array([[500, 0, 1000], [1500, 0, 1000]]).reshape(2, 1, 3)
    b = np.array([[1500, 9, -5], [2500, 9, -5]]).reshape(2, 1, 3)
    np.testing.assert_allclose(quality.ndvi_error(a, b, red=0, nir=1), [[0.25, np.nan, 0]])
    np.testing.assert_allclose(quality.ndvi(np.array([900, -1]), np.array([100, 5])), [-0.8, 1])


def test_ndwi_error_of_known_pixels() -> None:
    a = np.array([[1500, 0, 1000], [500, 0, 1000]]).reshape(2, 1, 3)
    b = np.array([[2500, 9, -5], [1500, 9, -5]]).reshape(2, 1, 3)
    np.testing.assert_allclose(quality.ndwi_error(a, b, green=0, nir=1), [[0.25, np.nan, 0]])
    np.testing.assert_allclose(quality.ndwi(np.array([900, -1]), np.array([100, 5])), [0.8, -1])


def test_overshoot_counts_both_ends_of_each_band() -> None:
    a = np.array([[[1, 5]], [[10, 20]], [[3, 4]]])
    b = np.array([[[2, 5]], [[7, 22]], [[3, 9]]])
    np.testing.assert_array_equal(quality.overshoot(a, b), [0, 3, 5])


def test_ms_ssim_is_one_for_equal_images_and_falls_with_noise(pair: tuple) -> None:
    a, b = pair
    np.testing.assert_array_equal(quality.ms_ssim(a, a), np.ones((2, 12)))
    little, much = quality.ms_ssim(a, b), quality.ms_ssim(a, a + 5 * (b - a))
    assert (much < little).all()
    assert (little < 1).all()
    np.testing.assert_allclose(quality.ms_ssim(b, a), little)


def test_ms_ssim_of_a_constant_shift_is_its_luminance_term() -> None:
    # Contrast and structure are those of equal images; what is left is luminance to the 0.1333.
    a, b = np.full((176, 176), 1000.0), np.full((176, 176), 3000.0)
    luminance = (2 * 1000 * 3000 + 100**2) / (1000**2 + 3000**2 + 100**2)
    np.testing.assert_allclose(quality.ms_ssim(a, b), luminance**0.1333)


@pytest.mark.parametrize(
    ("side", "share"),
    [(175, 0.2363 * 1.0001 / 0.8668), (96, 0.2363 * 1.0001 / 0.8668), (11, 1.0001)],
)
def test_ms_ssim_of_small_images_takes_the_scales_that_fit(side: int, share: float) -> None:
    a, b = np.full((side, side), 1000.0), np.full((side, side), 3000.0)
    luminance = (2 * 1000 * 3000 + 100**2) / (1000**2 + 3000**2 + 100**2)
    np.testing.assert_allclose(quality.ms_ssim(a, b), luminance**share)


def test_ms_ssim_equals_pytorch_msssim(pair: tuple) -> None:
    oracle = pytest.importorskip("pytorch_msssim", reason="pytorch-msssim is not installed")
    import torch

    a, b = (torch.from_numpy(x) for x in pair)
    expected = oracle.ms_ssim(a, b, data_range=10000, size_average=False).numpy()
    np.testing.assert_allclose(quality.ms_ssim(*pair).mean(axis=1), expected, rtol=1e-6)


@pytest.mark.parametrize("measure", ["spectral_angle", "overshoot", "ms_ssim"])
def test_shapes_that_do_not_fit_are_refused(measure: str) -> None:
    function = getattr(quality, measure)
    with pytest.raises(ValueError, match=r"cannot compare \(2, 16, 16\) with \(1, 16, 16\)"):
        function(np.ones((2, 16, 16)), np.ones((1, 16, 16)))
    with pytest.raises(ValueError, match=r"need arrays \(\.\.\., .*these have shape \(16,\)"):
        function(np.ones(16), np.ones(16))


def test_ms_ssim_of_tiny_images_is_refused() -> None:
    with pytest.raises(ValueError, match="11 x 11 pixels or more, these have 10 x 40"):
        quality.ms_ssim(np.ones((10, 40)), np.ones((10, 40)))
