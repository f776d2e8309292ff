"""Power within a band of frequencies, by a fast Fourier transform of a window."""

from __future__ import annotations

import numpy as np

from detectors.base import Floats
from detectors.kernels import compiled

__all__ = ["band_power", "taper", "twiddles"]


def taper(window: int) -> Floats:
    """Hann's, (window,): without it a strong line outside the band leaks into it."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window) / window)


def twiddles(longest: int) -> tuple[Floats, Floats]:
    """Cosines and sines (longest,) for transforms of at most this length, a power of two.

    Those of the stage that joins halves of n numbers are at n to 2n, for a transform of any length.
    """
    place = np.arange(longest)
    half = 2 ** np.floor(np.log2(np.maximum(place, 1)))
    angles = -np.pi * (place - half) / half
    return np.cos(angles), np.sin(angles)


@compiled("void(float64[::1], float64[::1], float64[::1], float64[::1])")
def _transform(re: Floats, im: Floats, cosines: Floats, sines: Floats) -> None:
    """In place, of a power of two complex numbers (Cooley and Tukey 1965)."""
    n, j = len(re), 0
    for i in range(1, n):
        bit = n >> 1
        while j & bit:
            j ^= bit
            bit >>= 1
        j ^= bit
        if i < j:
            re[i], re[j] = re[j], re[i]
            im[i], im[j] = im[j], im[i]
    half = 1
    while half < n:
        c, s = cosines[half : 2 * half], sines[half : 2 * half]
        for start in range(0, n, 2 * half):
            low_re, high_re = re[start : start + half], re[start + half : start + 2 * half]
            low_im, high_im = im[start : start + half], im[start + half : start + 2 * half]
            for k in range(half):
                a = high_re[k] * c[k] - high_im[k] * s[k]
                b = high_re[k] * s[k] + high_im[k] * c[k]
                high_re[k], high_im[k] = low_re[k] - a, low_im[k] - b
                low_re[k], low_im[k] = low_re[k] + a, low_im[k] + b
        half *= 2


@compiled(
    "float64(float64[::1], float64[::1], int64, int64, boolean, float64[::1], float64[::1], float64[::1],"
    " float64[::1])"
)
def band_power(
    x: Floats,
    weights: Floats,
    first: int,
    last: int,
    share: bool,
    re: Floats,
    im: Floats,
    cosines: Floats,
    sines: Floats,
) -> float:
    """Power of values (n,) in the frequencies `first` to `last` of the transform, as `Band` has it.

    `weights` (n,) is the taper; `re` and `im` (half of the transform,) are to work in; `share`: of all power, NaN
    where the line is flat.
    """
    n, half, mean, flat = len(x), len(re), 0.0, True
    for value in x:
        mean += value / n
        flat &= value == x[0]
    if flat:
        return np.nan if share else 0.0
    total = weight = 0.0
    for i in range(half):  # two real numbers make one complex one: half as much to transform
        re[i] = (x[2 * i] - mean) * weights[2 * i] if 2 * i < n else 0.0
        im[i] = (x[2 * i + 1] - mean) * weights[2 * i + 1] if 2 * i + 1 < n else 0.0
        total += re[i] * re[i] + im[i] * im[i]
    for i in range(n):
        weight += weights[i] * weights[i]
    _transform(re, im, cosines, sines)
    power = 0.0
    for k in range(first, last + 1):
        if k == half:
            power += (re[0] - im[0]) * (re[0] - im[0])
            continue
        even_re, even_im = (re[k] + re[half - k]) / 2, (im[k] - im[half - k]) / 2
        odd_re, odd_im = (im[k] + im[half - k]) / 2, (re[half - k] - re[k]) / 2
        c, s = cosines[half + k], sines[half + k]
        a, b = even_re + odd_re * c - odd_im * s, even_im + odd_re * s + odd_im * c
        power += 2 * (a * a + b * b)  # each frequency but the highest stands twice in the transform
    return power / (2 * half * (total if share else weight))
