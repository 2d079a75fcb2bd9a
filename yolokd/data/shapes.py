"""A small detection set that draws itself: overlapping, textured shapes on textured ground.

The demo needs images that everyone has, on every machine and without a network. Each image is drawn from
``(seed, split, index)`` alone, so the same seed gives the same pixels and labels, whatever was drawn before.
It is meant to be hard for a nano that starts from random weights: the shapes are small, turned, cover each
other, share textures and colours with the ground, and several of the eight look alike when they are 14 pixels wide.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from yolokd.errors import UserError

Image = NDArray[np.uint8]
Rng = np.random.Generator

NAMES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring", "hexagon", "crescent")
SPLITS: tuple[str, ...] = ("train", "val", "test")
IMAGE_SIZE = 160  # pixels; a multiple of 32, so that imgsz=160 neither scales nor pads
IMAGES: tuple[int, int, int] = (200, 40, 60)  # train, val, test
SEED = 0
VERSION = 1  # raise it when the drawing changes: a folder of an older version is then drawn anew
MARKER = "shapes.json"  # written last, inside the temporary folder: a folder without it is not ours or not whole
_SHIFT = 4  # polygon corners are drawn with 1/16 pixel
_VISIBLE = 0.35  # a shape of which less is left uncovered carries no label, and so is not drawn at all

DATASET_YAML = """\
# 300 images of 8 small, overlapping, textured shapes, drawn offline by yolokd itself at the first use.
# Needs yolokd installed: Ultralytics runs the `download:` step below where the images are missing.
path: yolokd-shapes # relative to Ultralytics' datasets_dir (`yolo settings`)
train: images/train
val: images/val
test: images/test
names:
{names}

download: |
  from yolokd.data.shapes import generate

  generate(yaml["path"])
""".format(names="\n".join(f"  {i}: {name}" for i, name in enumerate(NAMES)))


def generate(
    root: str | Path, *, images: tuple[int, int, int] = IMAGES, seed: int = SEED, size: int = IMAGE_SIZE
) -> Path:
    """Draw the set into ``root``, or leave it alone where it is there already.

    Everything is drawn into a temporary folder beside ``root`` and renamed at the end, so a killed run leaves
    no folder that could be taken for a whole set.

    Args:
        root: the folder that will hold ``images/SPLIT/*.png`` and ``labels/SPLIT/*.txt``.
        images: how many images train, val and test get, each at least 1.
        seed: another seed gives another set.
        size: height and width of an image in pixels, at least 64.

    Returns:
        The absolute path of ``root``.

    Raises:
        UserError: ``root`` holds something else: files of someone, or a set with another seed or size.
        ValueError: a count is below 1 or the size below 64.
    """
    if min(images) < 1 or size < 64:
        raise ValueError(f"images={images} needs at least 1 image a split, size={size} at least 64 pixels")
    root = Path(root).resolve()
    recipe = {"version": VERSION, "images": list(images), "seed": seed, "size": size}
    if _is_whole(root, recipe):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        for split, count in zip(SPLITS, images, strict=True):
            _write_split(work, split, count, seed, size)
        (work / MARKER).write_text(json.dumps(recipe), encoding="utf-8")
        work.chmod(0o755)  # mkdtemp makes it private to the user
        _move_into_place(work, root, recipe)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def write_yaml(path: str | Path, root: str | Path) -> Path:
    """Write a data YAML for the set in ``root``: `datasets/shapes.yaml` with an absolute ``path:``.

    Args:
        path: the YAML file to write.
        root: where the set is, or will be drawn by the ``download:`` step.

    Returns:
        ``path``.
    """
    lines = DATASET_YAML.splitlines()
    lines = [f"path: {json.dumps(str(Path(root).resolve()))}" if x.startswith("path:") else x for x in lines]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Path(path)


def draw(seed: int, split: str, index: int, size: int = IMAGE_SIZE) -> tuple[Image, NDArray[np.float64]]:
    """Draw one image and its labels.

    Args:
        seed: seed of the set.
        split: ``train``, ``val`` or ``test``.
        index: number of the image in its split.
        size: height and width in pixels.

    Returns:
        The BGR image ``(size, size, 3)`` and ``(N, 5)`` rows of class index, then the centre, width and height
        of the box around the *visible* pixels, as shares of the image.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    canvas = _texture(rng, size, *_colours(rng))
    canvas = cv2.addWeighted(canvas, 0.7, _clouds(rng, size), 0.3, 0).astype(np.uint8)
    shapes = _place(rng, size)
    for _, mask in shapes:
        ink = _texture(rng, size, *_colours(rng))
        canvas = np.where(mask[..., None], ink, canvas)
        if rng.random() < 0.4:  # an outline in another tone, so that neither fill nor edge alone tells the class
            contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, contours, -1, rng.integers(0, 256, 3).tolist(), 1)
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (3, 3), 0).astype(np.uint8)
    noise = rng.normal(0.0, rng.uniform(4.0, 20.0), canvas.shape)
    picture = np.clip(np.rint(canvas + noise), 0, 255).astype(np.uint8)
    return picture, _labels(shapes, size)


def _place(rng: Rng, size: int) -> list[tuple[int, Image]]:
    """Return 6 to 14 (class, mask) from back to front, none covered by more than ``1 - _VISIBLE``."""
    shapes: list[tuple[int, Image]] = []
    for _ in range(int(rng.integers(6, 15))):
        label = int(rng.integers(len(NAMES)))
        radius = float(np.exp(rng.uniform(math.log(7.0), math.log(24.0)))) * size / IMAGE_SIZE  # many small, few large
        centre = rng.uniform(radius * 0.6, size - radius * 0.6, 2)
        mask = _mask(rng, NAMES[label], centre, radius, size)
        candidate = [*shapes, (label, mask)]
        if all(seen >= _VISIBLE for seen in _visible_shares(candidate)):
            shapes = candidate
    return shapes


def _visible(shapes: list[tuple[int, Image]]) -> list[Image]:
    """Return the mask of each shape without what the shapes in front of it cover."""
    seen = []
    front = np.zeros_like(shapes[0][1])
    for _, mask in reversed(shapes):
        seen.append(mask & ~front)
        front = front | mask
    return seen[::-1]


def _visible_shares(shapes: list[tuple[int, Image]]) -> list[float]:
    pairs = zip(shapes, _visible(shapes), strict=True)
    return [np.count_nonzero(seen) / max(int(np.count_nonzero(mask)), 1) for (_, mask), seen in pairs]


def _labels(shapes: list[tuple[int, Image]], size: int) -> NDArray[np.float64]:
    rows = []
    for (label, _), seen in zip(shapes, _visible(shapes), strict=True):
        ys, xs = np.nonzero(seen)
        x1, x2, y1, y2 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1  # whole pixels: the right edge is outside
        rows.append([label, (x1 + x2) / 2 / size, (y1 + y2) / 2 / size, (x2 - x1) / size, (y2 - y1) / size])
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def _mask(rng: Rng, name: str, centre: NDArray[np.float64], radius: float, size: int) -> Image:
    """Rasterise one turned, slightly stretched shape: ``(size, size)``, 255 inside."""
    angle, stretch = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.25)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    warp = turn @ np.diag([stretch, 1 / stretch])

    def fill(points: NDArray[np.float64], value: int) -> None:
        corners = (points @ warp.T) * radius + centre
        cv2.fillPoly(mask, [np.rint(corners * 2**_SHIFT).astype(np.int32)], (value,), shift=_SHIFT)

    mask: Image = np.zeros((size, size), np.uint8)
    fill(_OUTLINES[name](), 255)
    if name == "ring":
        fill(_regular(32) * 0.55, 0)
    elif name == "crescent":
        fill(_regular(32) * 0.85 + np.array([0.5, 0.0]), 0)
    return mask


def _regular(corners: int) -> NDArray[np.float64]:
    angles = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> NDArray[np.float64]:
    return _regular(10) * np.where(np.arange(10) % 2, 0.45, 1.1)[:, None]


def _cross() -> NDArray[np.float64]:
    arm = 0.32
    quarter = np.array([[1.0, -arm], [1.0, arm], [arm, arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # a row vector times this is turned by a quarter
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


_OUTLINES: dict[str, Callable[[], NDArray[np.float64]]] = {
    "circle": lambda: _regular(32),
    "square": lambda: _regular(4) * 1.15,
    "triangle": lambda: _regular(3) * 1.2,
    "star": _star,
    "cross": _cross,
    "ring": lambda: _regular(32),
    "hexagon": lambda: _regular(6),
    "crescent": lambda: _regular(32),
}


def _colours(rng: Rng) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two BGR colours of a texture, the second never far from the first."""
    first = rng.uniform(20, 235, 3)
    return first, np.clip(first + rng.uniform(-70, 70, 3), 0, 255)


def _texture(rng: Rng, size: int, first: NDArray[np.float64], second: NDArray[np.float64]) -> Image:
    """Return ``(size, size, 3)`` of stripes, checks, dots, grain or one tone between two colours."""
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float64)
    angle, period = rng.uniform(0, math.pi), rng.uniform(3.0, 12.0)
    u = (xs * math.cos(angle) + ys * math.sin(angle)) * (2 * math.pi / period)
    v = (ys * math.cos(angle) - xs * math.sin(angle)) * (2 * math.pi / period)
    kind = int(rng.integers(5))
    if kind == 0:
        mix = np.sin(u) > 0
    elif kind == 1:
        mix = np.sin(u) * np.sin(v) > 0
    elif kind == 2:
        mix = np.sin(u) + np.sin(v) > 0.8
    elif kind == 3:
        mix = rng.random((size, size)) > 0.5
    else:
        mix = np.zeros((size, size), dtype=bool)
    return np.where(mix[..., None], second, first).astype(np.uint8)


def _clouds(rng: Rng, size: int) -> Image:
    coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _write_split(work: Path, split: str, count: int, seed: int, size: int) -> None:
    pictures, labels = work / "images" / split, work / "labels" / split
    pictures.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(count):
        picture, rows = draw(seed, split, index, size)
        data = cv2.imencode(".png", picture)[1].tobytes()  # imwrite cannot say why it failed, write_bytes can
        (pictures / f"{index:05d}.png").write_bytes(data)
        text = "".join(f"{int(r[0])} {r[1]:.6f} {r[2]:.6f} {r[3]:.6f} {r[4]:.6f}\n" for r in rows)
        (labels / f"{index:05d}.txt").write_text(text, encoding="utf-8")


def _is_whole(root: Path, recipe: dict[str, object]) -> bool:
    """Tell whether ``root`` holds this very set; refuse to touch it where it holds anything that we did not draw."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{root} is there already and holds something other than the generated shapes",
            "move it away, or generate into another folder",
        ) from None
    if {**found, "version": VERSION} != recipe:
        raise UserError(f"{root} holds the shapes of another recipe: {found}, wanted {recipe}", "use another folder")
    counts = dict(zip(SPLITS, recipe["images"], strict=True))  # type: ignore[call-overload]
    complete = all(
        len(list((root / kind / split).glob(pattern))) == count
        for split, count in counts.items()
        for kind, pattern in (("images", "*.png"), ("labels", "*.txt"))
    )
    return complete and found == recipe


def _move_into_place(work: Path, root: Path, recipe: dict[str, object]) -> None:
    if (root / MARKER).exists() and not _is_whole(root, recipe):
        shutil.rmtree(root)  # ours (the marker says so), but files are missing or of an older version
    try:
        os.replace(work, root)  # replaces an empty folder too; fails on one that holds files
    except OSError:
        if not _is_whole(root, recipe):  # else another process was faster, with the same pictures
            raise
