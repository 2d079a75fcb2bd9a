from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from ultralytics.data.utils import check_det_dataset

from yolokd.data import shapes
from yolokd.errors import UserError

FEW = (3, 2, 2)
DATASETS = Path(__file__).parents[2] / "datasets"


def digest(folder: Path, pattern: str) -> str:
    total = hashlib.sha256()
    for file in sorted(folder.rglob(pattern)):
        total.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def test_same_seed_gives_the_same_pixels_and_labels_and_another_seed_does_not(tmp_path: Path) -> None:
    one, two = (shapes.generate(tmp_path / name, images=FEW) for name in ("one", "two"))
    other = shapes.generate(tmp_path / "other", images=FEW, seed=1)
    pictures = [[cv2.imread(str(p)) for p in sorted(root.rglob("*.png"))] for root in (one, two, other)]
    assert len(pictures[0]) == sum(FEW)
    assert all(np.array_equal(a, b) for a, b in zip(pictures[0], pictures[1], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(pictures[0], pictures[2], strict=True))
    assert digest(one, "*.txt") == digest(two, "*.txt") != digest(other, "*.txt")


def test_labels_of_the_default_seed_never_change(tmp_path: Path) -> None:
    """The demo's published numbers and its teacher belong to these very labels."""
    root = shapes.generate(tmp_path / "set", images=FEW)
    assert digest(root, "*.txt") == "ae1702beccdf218b05d196781e31fa9d1a01df5a2b129c7b138c60fef332d187"


def test_an_image_does_not_depend_on_how_many_others_are_drawn(tmp_path: Path) -> None:
    more = shapes.generate(tmp_path / "more", images=(1, 4, 1))
    assert (more / "images/val/00001.png").read_bytes() == cv2.imencode(".png", shapes.draw(0, "val", 1)[0])[
        1
    ].tobytes()


def test_boxes_lie_inside_the_image_and_no_shape_is_almost_hidden() -> None:
    rows = np.concatenate([shapes.draw(7, "train", i)[1] for i in range(40)])
    assert set(rows[:, 0].astype(int)) == set(range(len(shapes.NAMES)))
    corners = np.concatenate([rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2])
    assert corners.min() >= 0
    assert corners.max() <= 1
    sides = rows[:, 3:5] * shapes.IMAGE_SIZE
    assert sides.min() >= 2, "a shape was left with a sliver of its pixels"
    assert np.median(sides) < 32, "the set is meant to be of small shapes"


def test_a_box_is_drawn_around_the_visible_pixels_only() -> None:
    back, front = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    back[10:20, 10:30] = 255
    front[0:64, 20:40] = 255  # covers the right half of the shape behind it
    (_, x, y, w, h), _ = shapes._labels([(3, back), (1, front)], 64)
    assert (x * 64, y * 64, w * 64, h * 64) == (15, 15, 10, 10)


@pytest.mark.parametrize("name", shapes.NAMES)
def test_every_class_fills_a_plausible_area(name: str) -> None:
    mask = shapes._mask(np.random.default_rng(0), name, np.array([40.0, 40.0]), 20.0, 80)
    share = np.count_nonzero(mask) / (np.pi * 20**2)
    assert 0.25 < share < 1.1, share
    assert set(np.unique(mask)) == {0, 255}


def test_hollow_shapes_are_hollow() -> None:
    rng = np.random.default_rng(0)
    assert shapes._mask(rng, "ring", np.array([40.0, 40.0]), 20.0, 80)[40, 40] == 0
    assert shapes._mask(rng, "circle", np.array([40.0, 40.0]), 20.0, 80)[40, 40] == 255


def test_a_whole_set_is_left_alone_and_one_with_missing_files_is_drawn_anew(tmp_path: Path) -> None:
    root = shapes.generate(tmp_path / "set", images=FEW)
    picture, label = root / "images/train/00000.png", root / "labels/val/00001.txt"
    before = picture.stat().st_mtime_ns
    shapes.generate(root, images=FEW)
    assert picture.stat().st_mtime_ns == before
    label.unlink()
    shapes.generate(root, images=FEW)
    assert label.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"], "a temporary folder was left behind"


def test_a_killed_generation_is_not_taken_for_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = shapes.draw, []

    def killed(*args: object) -> object:
        drawn.append(args)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shapes, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        shapes.generate(tmp_path / "set", images=FEW)
    assert not (tmp_path / "set").exists()
    monkeypatch.undo()
    assert len(list(shapes.generate(tmp_path / "set", images=FEW).rglob("*.png"))) == sum(FEW)


def test_a_set_of_an_older_version_is_drawn_anew(tmp_path: Path) -> None:
    root = shapes.generate(tmp_path / "set", images=FEW)
    old = json.loads((root / shapes.MARKER).read_text()) | {"version": 0}
    (root / shapes.MARKER).write_text(json.dumps(old))
    (root / "images/train/00000.png").write_bytes(b"old")
    shapes.generate(root, images=FEW)
    assert (root / "images/train/00000.png").stat().st_size > 1000


def test_files_of_someone_else_are_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something other"):
        shapes.generate(tmp_path / "mine", images=FEW)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_a_folder_with_another_seed_is_refused(tmp_path: Path) -> None:
    shapes.generate(tmp_path / "set", images=FEW)
    with pytest.raises(UserError, match="another recipe"):
        shapes.generate(tmp_path / "set", images=FEW, seed=5)


@pytest.mark.parametrize("wrong", [{"images": (0, 1, 1)}, {"size": 32}])
def test_impossible_requests_are_errors(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="at least"):
        shapes.generate(tmp_path / "set", **wrong)  # type: ignore[arg-type]


def test_the_yaml_in_datasets_is_the_one_in_the_package() -> None:
    text = (DATASETS / "shapes.yaml").read_text(encoding="utf-8")
    assert text == shapes.DATASET_YAML
    assert tuple(yaml.safe_load(text)["names"].values()) == shapes.NAMES


def test_ultralytics_generates_the_set_through_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes.generate, "__kwdefaults__", shapes.generate.__kwdefaults__ | {"images": FEW})
    file = shapes.write_yaml(tmp_path / "shapes.yaml", tmp_path / "a folder: with colon")
    data = check_det_dataset(str(file))
    assert len(list(Path(data["test"]).glob("*.png"))) == FEW[2]
    assert (tmp_path / "a folder: with colon" / shapes.MARKER).exists()
    assert data["names"][0] == "circle"
    assert data["nc"] == 8
