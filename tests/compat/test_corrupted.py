from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.conftest import NAMES, save_detector
from yolokd.compat.corrupted import Attack, validate_changed
from yolokd.compat.validation import validate
from yolokd.errors import UserError

RUN = {"split": "val", "imgsz": 96, "batch": 3, "device": "cpu", "conf": 1e-5}


# Small enough for the loss of a random network to be a plane.
EPSILON = 5e-4


def save_lively(cfg: str, path: Path) -> Path:
    """A random detector that has seen a few images: else each of its layers makes what it sees ever fainter."""
    from ultralytics import YOLO

    model = YOLO(save_detector(cfg, path, NAMES))
    network = model.model.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what is seen
            module.reset_running_stats()
    with torch.no_grad():
        for seed in range(3):
            network(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
    model.save(path)
    return path


@pytest.fixture(scope="module")
def oblong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of other shapes than the batch, each lossless, coloured, with one box."""
    root = tmp_path_factory.mktemp("oblong")
    for part in ("images", "labels"):
        (root / part / "val").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i, (height, width) in enumerate([(48, 96), (96, 60), (33, 80), (100, 130)]):
        image = cv2.resize(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8), (width, height))
        cv2.imwrite(str(root / "images" / "val" / f"{i}.png"), image)
        (root / "labels" / "val" / f"{i}.txt").write_text(f"{i % 3} 0.5 0.5 0.4 0.6")
    file = root / "data.yaml"
    file.write_text(yaml.safe_dump({"path": str(root), "train": "images/val", "val": "images/val", "names": NAMES}))
    return file


def test_images_come_as_they_lie_in_the_batch_without_their_border(oblong: Path, toy_student: Path) -> None:
    seen: dict[str, np.ndarray] = {}

    def look(image: np.ndarray, name: str) -> np.ndarray:
        seen[name] = image.copy()
        return image

    changed = validate_changed(toy_student, oblong, corrupt=look, **RUN)
    assert sorted(seen) == ["0.png", "1.png", "2.png", "3.png"]
    for name, image in seen.items():
        file = cv2.imread(str(oblong.parent / "images" / "val" / name))
        scale = 96 / max(file.shape[:2])
        size = tuple(min(int(np.ceil(side * scale)), 96) for side in (file.shape[1], file.shape[0]))
        assert (image == cv2.resize(file, size, interpolation=cv2.INTER_LINEAR)).all()
    plain = validate(toy_student, oblong, **RUN)
    for one, other in zip(changed.images, plain.images, strict=True):  # an image that was not changed is judged alike
        assert (one.boxes == other.boxes).all()
        assert (one.scores == other.scores).all()
        assert (one.true_boxes == other.true_boxes).all()
    assert changed.map == plain.map


def test_the_model_sees_the_changed_image(oblong: Path, toy_student: Path, tmp_path: Path) -> None:
    """Turned grey on the way in, or grey on disk: the same detections."""
    grey = tmp_path / "grey"
    for part in ("images", "labels"):
        (grey / part / "val").mkdir(parents=True)
    for file in sorted((oblong.parent / "images" / "val").iterdir()):
        image = cv2.imread(str(file))
        image[:] = (10, 100, 200)
        cv2.imwrite(str(grey / "images" / "val" / file.name), image)
        label = oblong.parent / "labels" / "val" / f"{file.stem}.txt"
        (grey / "labels" / "val" / label.name).write_text(label.read_text())
    data = tmp_path / "grey.yaml"
    data.write_text(yaml.safe_dump({**yaml.safe_load(oblong.read_text()), "path": str(grey)}))

    def paint(image: np.ndarray, name: str) -> np.ndarray:
        return np.full_like(image, (10, 100, 200))

    painted = validate_changed(toy_student, oblong, corrupt=paint, **RUN)
    on_disk = validate(toy_student, data, **RUN)
    for one, other in zip(painted.images, on_disk.images, strict=True):
        assert one.scores.tolist() == other.scores.tolist()


def batch_of(images: torch.Tensor) -> dict[str, torch.Tensor]:
    count = len(images)
    box = torch.tensor([[0.5, 0.5, 0.4, 0.5]])
    return {
        "img": images,
        "cls": torch.arange(count).float()[:, None] % 3,
        "bboxes": box.repeat(count, 1),
        "batch_idx": torch.arange(count).float(),
    }


class Once:
    """An assigner that keeps its first answer."""

    def __init__(self, assigner: torch.nn.Module) -> None:
        self.assigner, self.answer = assigner, None

    def __call__(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.answer = self.answer or self.assigner(*args)
        return self.answer


@pytest.mark.parametrize("cfg", ["yolo11n.yaml", "yolo26n.yaml"])  # the second has two branches
def test_the_attack_raises_the_loss(cfg: str, tmp_path: Path) -> None:
    attack = Attack(save_lively(cfg, tmp_path / "model.pt"), EPSILON)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=generator) * 0.8 + 0.1  # no pixel is clipped
    alone = attack(batch_of(images[:1].clone()))
    criterion = attack.network.criterion
    for branch in (criterion.one2many, criterion.one2one) if hasattr(criterion, "one2many") else (criterion,):
        branch.assigner = Once(branch.assigner)  # the gradient takes the targets as given, as in training
    with torch.inference_mode():
        batch = batch_of(images.clone())
        moved = attack(batch)
        assert (batch["img"] == images).all()
    step = (moved - images).abs()
    assert step.max() == pytest.approx(EPSILON, rel=1e-3)
    assert (step > 0).float().mean() > 0.99
    chance = images + EPSILON * torch.randn(images.shape, generator=generator).sign()

    def loss(at: torch.Tensor) -> float:
        with torch.no_grad():
            return float(attack.network.loss(batch_of(at))[0].sum())

    before = loss(images)
    assert loss(moved) - before > 3 * abs(loss(chance) - before)
    assert loss(2 * images - moved) < before
    # An attack on an image does not depend on the others of its batch.
    assert ((alone[0] - moved[0]).abs() < 1e-6).float().mean() > 0.99


def test_the_attack_leaves_the_border_and_goes_through_the_validator(
    oblong: Path, toy_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Attack, "__call__", lambda self, batch: torch.zeros_like(batch["img"]))
    seen: list[torch.Tensor] = []
    from yolokd.compat.corrupted import ChangingValidator

    original = ChangingValidator.preprocess

    def look(self: ChangingValidator, batch: dict) -> dict:
        result = original(self, batch)
        seen.extend(result["img"].clone())
        return result

    monkeypatch.setattr(ChangingValidator, "preprocess", look)
    validate_changed(toy_student, oblong, epsilon=0.1, **RUN)
    assert len(seen) == 4
    for image in seen:
        inside = (image == 0).all(0)
        assert inside.any()
        assert torch.isclose(image[:, ~inside], torch.tensor(114 / 255)).all()  # Ultralytics' grey


def test_an_attack_changes_what_is_found_and_writes_nothing(
    toy_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    model = save_lively("yolo11n.yaml", tmp_path_factory.mktemp("lively") / "model.pt")
    monkeypatch.chdir(tmp_path)
    plain = validate_changed(model, toy_data, **RUN)
    attacked = validate_changed(model, toy_data, epsilon=8 / 255, **RUN)
    assert [i.file for i in plain.images] == [i.file for i in attacked.images]
    assert any(a.scores.tolist() != b.scores.tolist() for a, b in zip(plain.images, attacked.images, strict=True))
    assert list(tmp_path.iterdir()) == []
    assert "Class" not in capsys.readouterr().out


def test_what_cannot_be_attacked_is_said_in_words(toy_data: Path, toy_student: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(toy_data.read_text())
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**content, "names": ["blue", "red", "green"]}))
    validate_changed(toy_student, other, **RUN)
    with pytest.raises(UserError, match="other classes"):
        validate_changed(toy_student, other, epsilon=0.1, **RUN)
    one = tmp_path / "one.yaml"
    one.write_text(yaml.safe_dump({**content, "channels": 1}))
    with pytest.raises(UserError, match="1 channels"):
        validate_changed(toy_student, one, **RUN)
