from __future__ import annotations

import numpy as np
import pytest

from yolokd.evaluation.corruptions import STRENGTHS, corrupt

EVERY = [(kind, strength) for kind in STRENGTHS for strength in (1, 2, 3)]


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A dark gradient with a bright rectangle and a few lines, 96 x 64, BGR."""
    image = np.linspace(20, 120, 64 * 96 * 3).reshape(64, 96, 3)
    image[20:40, 30:60] = (200, 180, 40)
    image[::9] = 10
    return image.astype(np.uint8)


@pytest.mark.parametrize(("kind", "strength"), EVERY)
def test_the_same_call_gives_the_same_image(scene: np.ndarray, kind: str, strength: int) -> None:
    given = scene.copy()
    first = corrupt(given, kind, strength, name="a.jpg", seed=1)
    np.random.seed(0)  # nothing depends on the global stream
    for other in STRENGTHS:
        corrupt(given, other, 1, name="b.jpg", seed=1)
    assert (corrupt(given, kind, strength, name="a.jpg", seed=1) == first).all()
    assert (given == scene).all()
    assert first.shape == scene.shape
    assert first.dtype == np.uint8
    assert (first != scene).any()


@pytest.mark.parametrize("kind", ["noise", "haze"])
def test_chance_depends_on_seed_and_name(scene: np.ndarray, kind: str) -> None:
    first = corrupt(scene, kind, 1, name="a.jpg", seed=1)
    assert (corrupt(scene, kind, 1, name="a.jpg", seed=2) != first).any()
    assert (corrupt(scene, kind, 1, name="b.jpg", seed=1) != first).any()


@pytest.mark.parametrize("kind", STRENGTHS)
def test_a_greater_strength_changes_more(scene: np.ndarray, kind: str) -> None:
    far = [
        np.abs(corrupt(scene, kind, s, name=f"{i}.jpg").astype(float) - scene).mean()
        for i in range(8)
        for s in (1, 2, 3)
    ]
    weak, middle, strong = np.reshape(far, (8, 3)).mean(0)
    assert 0 < weak < middle < strong


def test_values_that_a_person_can_compute() -> None:
    grey = np.full((40, 50, 3), 100, np.uint8)
    assert corrupt(grey, "brightness", 2, name="a") == pytest.approx(100 + 0.3 * 255, abs=0.51)
    assert corrupt(grey, "brightness", 3, name="a") == pytest.approx(100 + 0.5 * 255, abs=0.51)
    assert (corrupt(grey, "contrast", 3, name="a") == 100).all()
    half = grey.copy()
    half[:20] = 200  # the mean is 150
    assert np.unique(corrupt(half, "contrast", 1, name="a")).tolist() == [130, 170]  # 150 +- .4 * 50
    noise = corrupt(grey, "noise", 2, name="a").astype(float) / 255
    assert noise.std() == pytest.approx(0.08, rel=0.05)
    assert noise.mean() == pytest.approx(100 / 255, abs=0.005)
    white = corrupt(np.full((8, 8, 3), 250, np.uint8), "brightness", 3, name="a")
    assert (white == 255).all()  # clipped, not wrapped


def test_blur_grows_with_the_image() -> None:
    """A point's light spreads to 1/224 of the side (strength 1): 1 px at 224, 2 px at 448."""
    for side in (224, 448):
        point = np.zeros((side, side, 3), np.uint8)
        middle = side // 2
        point[:, middle] = 255
        row = corrupt(point, "blur", 1, name="a")[middle, :, 0].astype(float)
        spread = np.sqrt((row * (np.arange(side) - middle) ** 2).sum() / row.sum())
        assert spread == pytest.approx(side / 224, rel=0.1)


def test_haze_is_brightest_where_it_is_thick_and_lies_differently_everywhere() -> None:
    dark = np.zeros((60, 90, 3), np.uint8)
    dark[0, 0] = 255  # so that the image has a brightest value
    haze = corrupt(dark, "haze", 3, name="a")[1:, 1:]
    assert (haze[..., 0] == haze[..., 2]).all()  # white
    assert haze.max() > 150
    assert haze.min() < 60
    columns = haze[..., 0].astype(float)
    assert np.abs(np.diff(columns, axis=1)).mean() < 5  # clouds, not noise


@pytest.mark.parametrize("strength", [0, 4, -1])
def test_no_other_strength(scene: np.ndarray, strength: int) -> None:
    with pytest.raises(ValueError, match=f"strength {strength} of blur"):
        corrupt(scene, "blur", strength, name="a")
