"""Images as a bad camera, bad weather or a bad cable would deliver them: six corruptions, three strengths each.

Source: Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019, https://arxiv.org/abs/1903.12261. Departures:

- six of their kinds: of the noises and blurs only the Gaussian one, of the weather only fog;
- three of their five severities, and not the worst ones: a small detector finds nothing under those, and between two
  models that find nothing there is no difference to see. Their 1, 3, 5 for brightness and haze, 1, 3, 4 for contrast
  and JPEG, 1, 2, 3 for blur; noise of .04 (as in their Tiny ImageNet-C), then 1 and 2;
- their blur is in pixels of 224 px images: here it grows with the image's longer side, as do the clouds of the haze;
- the haze is smooth noise summed over octaves (theirs is a diamond-square fractal), equally rough at all strengths;
- brightness is added to every channel (theirs to HSV's value).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Pixels = NDArray[np.floating[Any]]  # (H, W, 3), 0 to 1
_THEIR_SIDE = 224  # pixels, of the images that the blur's strengths were chosen for
_OCTAVES = 6  # of the haze: the finest patch is 1/64 of the image


def _noise(image: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    return image + rng.normal(0, deviation, image.shape)


def _blur(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    pixels = sigma * max(image.shape[:2]) / _THEIR_SIDE
    return np.asarray(cv2.GaussianBlur(image, (0, 0), pixels, borderType=cv2.BORDER_REPLICATE))


def _brightness(image: Pixels, added: float, rng: np.random.Generator) -> Pixels:
    return image + added


def _contrast(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    mean = image.mean((0, 1))
    return np.asarray((image - mean) * factor + mean)


def _jpeg(image: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    _, encoded = cv2.imencode(".jpg", _bytes(image), [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)) / 255


def _haze(image: Pixels, thickness: float, rng: np.random.Generator) -> Pixels:
    """Lay white clouds over the image, then bring it back to its own brightest value."""
    height, width = image.shape[:2]
    side = max(height, width)
    clouds = np.zeros((side, side), np.float32)
    for octave in range(1, _OCTAVES + 1):
        grid = rng.random((2**octave + 1, 2**octave + 1), np.float32)
        clouds += cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC) / 2**octave
    clouds = (clouds - clouds.min()) / (clouds.max() - clouds.min())
    brightest = image.max()
    hazy = (image + thickness * clouds[:height, :width, None]) * (brightest / (brightest + thickness))
    return np.asarray(hazy)


_CORRUPTIONS: dict[str, Callable[[Pixels, float, np.random.Generator], Pixels]] = {
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "haze": _haze,
}
# Strength 1, 2, 3 of each.
STRENGTHS: dict[str, tuple[float, float, float]] = {
    "noise": (0.04, 0.08, 0.12),  # standard deviation of a value from 0 to 1
    "blur": (1, 2, 3),  # standard deviation, 1/224 of the longer side
    "brightness": (0.1, 0.3, 0.5),  # added to a value from 0 to 1
    "contrast": (0.4, 0.2, 0.1),  # what is left of the distance from the mean colour
    "jpeg": (25, 15, 10),  # quality, percent
    "haze": (1.5, 2.5, 3),  # white of the thickest cloud, before the image is brought back to its own brightest value
}


def corrupt(image: Image, corruption: str, strength: int, *, name: str, seed: int = 0) -> Image:
    """Corrupt an image; the same call gives the same image, whatever was corrupted before it.

    So that every model that is compared sees the same images.

    Args:
        image: ``(H, W, 3)`` uint8, BGR, at the size that the model will see.
        corruption: a key of `STRENGTHS`.
        strength: 1, 2 or 3.
        name: the image's own; with ``seed`` it fixes what is random.
        seed: of the comparison.

    Returns:
        ``(H, W, 3)`` uint8, BGR; the image given stays as it is.

    Raises:
        KeyError: no such corruption.
        ValueError: no such strength.
    """
    if strength not in (1, 2, 3):
        raise ValueError(f"strength {strength} of {corruption} is not 1, 2 or 3")
    amount = STRENGTHS[corruption][strength - 1]
    digest = hashlib.sha256(f"{seed}/{name}/{corruption}/{strength}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    return _bytes(_CORRUPTIONS[corruption](image.astype(np.float32) / 255, amount, rng))


def _bytes(image: Pixels) -> Image:
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
