from __future__ import annotations

import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.results import image
from yolokd.compat.validation import ImageResult
from yolokd.errors import UserError
from yolokd.evaluation import detections
from yolokd.evaluation.detections import load, save

NAMES = {0: "cat", 7: "Kätzchen 猫"}
THIRD = 1 / 3
SPLIT = [
    image("a.jpg", found=[((THIRD, 1e-17, 5.1, 6.2), np.nextafter(0.5, 1), 7)], truth=[((0, 0, 5, 6), 0)] * 3),
    image("b.jpg"),  # nothing there, nothing found
    image("ü.jpg", found=[((1, 2, 3, 4), 0.25, 0), ((1, 2, 3, 4), THIRD, 7)]),
]


def same(a: ImageResult, b: ImageResult) -> bool:
    def equal(x: object, y: object) -> bool:
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            return x.dtype == y.dtype and x.shape == y.shape and bool((x == y).all())
        return type(x) is type(y) and x == y

    return all(equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


@pytest.mark.parametrize("split", [SPLIT, SPLIT[::-1], SPLIT[1:2], []])
def test_what_is_read_is_what_was_written(tmp_path: Path, split: list[ImageResult]) -> None:
    path = tmp_path / "best.npz"
    save(path, split, NAMES)
    images, names = load(path)
    assert names == NAMES
    assert len(images) == len(split)
    assert all(same(a, b) for a, b in zip(images, split, strict=True))
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_named_as_asked(tmp_path: Path) -> None:
    save(tmp_path / "best", SPLIT, NAMES)
    assert [p.name for p in tmp_path.iterdir()] == ["best"]  # NumPy would have made best.npz of it


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name, SPLIT, NAMES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_kill_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.npz"
    save(path, SPLIT, NAMES)

    def killed(file: object, **_: object) -> None:
        file.write(b"half a file")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(detections.np, "savez_compressed", killed)
    with pytest.raises(KeyboardInterrupt):
        save(path, SPLIT[:1], NAMES)
    assert len(load(path)[0]) == 3
    assert list(tmp_path.iterdir()) == [path]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(bytes(255 - b if 60 < i < 120 else b for i, b in enumerate(content)))
    elif how == "text":
        path.write_text("no numbers here")
    elif how == "pickle":
        path.write_bytes(pickle.dumps(SPLIT))
    elif how == "objects":
        with path.open("wb") as file:
            np.savez(file, version=np.array(detections.VERSION), boxes=np.array([{}], dtype=object))
    elif how == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif how == "other keys":
        with path.open("wb") as file:
            np.savez(file, version=np.array(detections.VERSION))


@pytest.mark.parametrize(
    "how", ["missing", "empty", "cut", "flipped", "text", "pickle", "objects", "array", "other keys"]
)
def test_a_damaged_file_is_said_in_words(tmp_path: Path, how: str) -> None:
    path = tmp_path / "best.npz"
    save(path, SPLIT, NAMES)
    damage(path, how)
    with pytest.raises(UserError, match=r"best\.npz"):
        load(path)


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detections, "VERSION", 0)
    save(tmp_path / "old.npz", SPLIT, NAMES)
    monkeypatch.undo()
    with pytest.raises(UserError, match="another version"):
        load(tmp_path / "old.npz")


def test_many_detections_stay_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, 50)
    split = [
        replace(
            image(f"{i}.jpg"),
            boxes=rng.random((n, 4)),
            scores=rng.random(n),
            classes=np.full(n, i),
            true_boxes=rng.random((3 - n, 4)),
            true_classes=np.full(3 - n, i),
        )
        for i, n in enumerate(counts)
    ]
    save(tmp_path / "many.npz", split, {i: str(i) for i in range(50)})
    assert all(same(a, b) for a, b in zip(load(tmp_path / "many.npz")[0], split, strict=True))
