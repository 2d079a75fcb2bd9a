"""A teacher's answers stored once: the real cache of a real data set, and what a training then hears of it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset

from tests.compat.replays import ALL, PLAIN, corners, seed_all
from tests.helpers import panel as one_teacher
from tests.lively import save_lively
from yolokd import replaying
from yolokd.compat.boxes import anchor_points
from yolokd.compat.checkpoint import head_info, load_detector
from yolokd.compat.dataset import check_data, image_files
from yolokd.compat.larger import training_side
from yolokd.compat.replay import attach, landed
from yolokd.compat.training import AssignmentTap, branches
from yolokd.config import build_config
from yolokd.errors import UserError
from yolokd.losses.boxes import BoxIoUKD, LocalizationKD
from yolokd.losses.logits import ClassificationKD
from yolokd.predictions import HeadInfo, Predictions, SoftDetections
from yolokd.replaying import cached_teacher, fill_cache, fill_from, open_cache, recipe_of
from yolokd.teachers.cache import Cache
from yolokd.teachers.cache_file import Found, Recipe, encode, row_type, write
from yolokd.teachers.caching import image_hashes
from yolokd.teachers.extraction import extract
from yolokd.teachers.live import LiveTeacher
from yolokd.teachers.replay import ReplayTeacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lively(tmp_path_factory.mktemp("lively") / "teacher.pt")


def asked(teacher: Path | str, folder: Path, **ours: Any) -> Any:
    return build_config({"teacher": str(teacher), "teacher_cache": str(folder), **ours})


def test_filled_once_and_found_again(teacher: Path, toy_data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    config = asked(teacher, tmp_path / "new" / "cache")
    cache = fill_from(config, {"data": str(toy_data)}, 64)
    assert cache.imgsz == 64
    assert len(cache.index) == 8
    assert len(cache) > 8
    assert cache.recipe == recipe_of(config, 64) == open_cache(config, 64).recipe

    def no_teacher(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the teacher was opened")

    monkeypatch.setattr("yolokd.replaying.open_teacher", no_teacher)
    assert fill_from(config, {"data": str(toy_data), "fraction": 0.5}, 64).file == cache.file
    with pytest.raises(AssertionError, match="the teacher was opened"):  # another size is another cache
        fill_from(config, {"data": str(toy_data)}, 96)
    with pytest.raises(UserError, match="teacher_imgsz is 96, was 64"):
        open_cache(config, 96)
    with pytest.raises(UserError, match="There is no teacher's cache"):
        open_cache(replace(config, teacher_cache=str(tmp_path / "nowhere")), 64)


def test_only_the_images_that_are_used_and_then_the_others(teacher: Path, toy_data: Path, tmp_path: Path) -> None:
    config = asked(teacher, tmp_path)
    assert len(fill_from(config, {"data": str(toy_data), "fraction": 0.5}, 64).index) == 4
    files = image_files(check_data(str(toy_data), "train"), "train")
    cache, hashes = fill_cache(config, files, 64, 3, {"workers": 2})
    assert len(cache.index) == 8
    assert list(hashes) == files
    assert all(digest in cache for digest in hashes.values())


def test_the_teachers_size_is_its_own(teacher: Path, toy_data: Path, tmp_path: Path) -> None:
    config = asked(teacher, tmp_path, teacher_imgsz=96)
    cache = fill_from(config, {"data": str(toy_data)}, 64)
    assert cache.imgsz == 96


def test_what_an_exported_teacher_is_told_makes_another_cache(tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(b"onnx")
    keys = [
        recipe_of(asked(tmp_path / "t.onnx", tmp_path, **told), 64).key
        for told in ({}, {"teacher_names": "a,b"}, {"teacher_names": "b,a"}, {"teacher_boxes": "xyxy"})
    ]
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    ("ours", "problem"),
    [
        ({"teacher": "a.pt,b.pt"}, "one teacher that stays as it is, not of teacher=a.pt,b.pt"),
        ({"teacher": "self"}, "not of teacher=self"),
        ({"teacher": "self:levels"}, "not of teacher=self:levels"),
        ({"teacher": "peer:one"}, "not of teacher=peer:one"),
        ({"taps": "4,6,10", "losses": "cls,cwd"}, "taps= and teacher_cache= do not go together"),
        ({"teacher_compile": True, "teacher_precision": "bf16"}, "teacher_compile= and teacher_precision= and"),
        ({"teacher_device": "cpu"}, "teacher_device= and teacher_cache= do not go together"),
    ],
)
def test_what_cannot_be_stored(tmp_path: Path, ours: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        cached_teacher(asked(ours.pop("teacher", "a.pt"), tmp_path / "x", **ours))
    assert not (tmp_path / "x").exists()


def test_nothing_is_left_behind_by_a_teacher_that_is_none(toy_data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    bad.write_text("no checkpoint")
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):
        fill_from(asked(bad, tmp_path / "cache"), {"data": str(toy_data)}, 64)
    assert not (tmp_path / "cache").exists()


def test_a_file_is_no_folder(teacher: Path, toy_data: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="is no folder and cannot become one"):
        fill_from(asked(teacher, tmp_path / "taken"), {"data": str(toy_data)}, 64)


def copied(toy_data: Path, folder: Path) -> tuple[dict[str, Any], Path]:
    """The toy data set, to be spoilt, and its training images."""
    shutil.copytree(toy_data.parent, folder)
    content = {**yaml.safe_load(toy_data.read_text()), "path": str(folder)}
    (folder / "copy.yaml").write_text(yaml.safe_dump(content))
    return {"data": str(folder / "copy.yaml"), "device": "cpu"}, folder / "images" / "train"


def test_files_that_cannot_be_read_are_passed_over_with_one_word(
    teacher: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("yolokd.replaying.LOGGER.warning", lambda line: said.extend([line] * ("passed over" in line)))
    theirs, images = copied(toy_data, tmp_path / "set")
    (images / "3.png").write_bytes(b"nothing")
    (images / "5.png").write_bytes(b"")
    (images / "gone.png").symlink_to(images / "nowhere.png")
    config = asked(teacher, tmp_path / "cache")
    cache = fill_from(config, theirs, 64)
    assert len(cache.index) == 6
    named = ", ".join(str(images / name) for name in ("3.png", "5.png", "gone.png"))
    assert said == [f"3 of 9 images cannot be read and are passed over: {named}."]
    # What training takes is whole, and nobody has to be asked again, now or at the next start.
    monkeypatch.setattr("yolokd.replaying.open_teacher", None)
    data = check_data(theirs["data"], "train")
    files = dataset_of(data, 64, PLAIN).im_files
    assert len(files) == 6
    assert fill_cache(config, files, 64, 3, theirs)[0].file == cache.file
    assert fill_from(config, theirs, 64).file == cache.file
    assert said[1:] == said[:1]
    for i in (0, 1, 2):
        (images / f"{i}.png").write_bytes(b"%d" % i)
    fill_from(config, theirs, 64)
    assert said[2].endswith(f"{images / '3.png'}, {images / '5.png'} and others.")  # the first five


def test_a_set_of_a_training_that_cannot_be_read_is_refused(teacher: Path, toy_data: Path, tmp_path: Path) -> None:
    theirs, images = copied(toy_data, tmp_path / "set")
    files = image_files(check_data(theirs["data"], "train"), "train")
    (images / "3.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"3\.png is no image"):
        fill_cache(asked(teacher, tmp_path / "cache"), files, 64, 3, theirs)


def test_a_complete_cache_in_a_read_only_folder_is_used(
    teacher: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, images = copied(toy_data, tmp_path / "set")
    config = asked(teacher, tmp_path / "cache")
    cache = fill_from(config, theirs, 64)
    before = sorted(tmp_path.rglob("*"))

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("yolokd.teachers.caching.atomic_replace", refused)
    monkeypatch.setattr(FileLock, "acquire", refused)
    assert fill_from(config, theirs, 64).file == cache.file
    assert sorted(tmp_path.rglob("*")) == before
    image = cv2.imread(str(images / "0.png"))
    cv2.imwrite(str(images / "0.png"), image[::-1])
    with pytest.raises(UserError, match=r"cache cannot be written to: Permission denied"):
        fill_from(config, theirs, 64)


@pytest.mark.parametrize("device", [0, "cuda:7", "cuda", [0, 1], "1,2"])
def test_a_gpu_that_is_not_there_is_refused_before_the_teacher_is_asked(
    teacher: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="is not there: PyTorch sees no GPU here"):
        fill_from(asked(teacher, tmp_path / "cache"), {"data": str(toy_data), "device": device}, 64)
    assert not (tmp_path / "cache").exists()


def test_where_the_teacher_of_a_cache_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {str(replaying._device(asked)) for asked in (None, "", "cpu", "mps", -1, CPU)} == {"cpu"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    known = {
        None: "cuda:0",
        "cpu": "cpu",
        1: "cuda:1",
        "cuda:1": "cuda:1",
        "1,0": "cuda:1",
        "cuda": "cuda:0",
        -1: "cuda:0",
    }
    assert {asked: str(replaying._device(asked)) for asked in known} == known
    assert str(replaying._device([1, 0])) == "cuda:1"
    with pytest.raises(UserError, match="PyTorch sees 0, 1 here"):
        replaying._device(2)


@pytest.mark.parametrize(
    ("device", "theirs", "workers"),
    [("cpu", {}, 0), ("cpu", {"workers": 3}, 3), ("cuda", {}, 8), ("cuda", {"workers": 0}, 0)],
)
def test_how_many_processes_read(
    teacher: Path,
    toy_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    theirs: dict[str, Any],
    workers: int,
) -> None:
    """On a CPU the teacher takes nearly all of the time; on a GPU as many as Ultralytics' training has."""

    def spied(*_: object, workers: int, **__: object) -> None:
        raise LookupError(workers)

    monkeypatch.setattr(replaying, "_device", lambda asked: torch.device(device))
    monkeypatch.setattr(replaying, "open_teacher", lambda *_, **__: SimpleNamespace(name="t"))
    monkeypatch.setattr(replaying, "build_cache", spied)
    with pytest.raises(LookupError) as caught:
        fill_from(asked(teacher, tmp_path / "cache"), {"data": str(toy_data), **theirs}, 64)
    assert caught.value.args == (workers,)


# The way of the boxes through a real cache file -----------------------------------------------------------------


def dataset_of(data: Mapping[str, Any], imgsz: int, hyp: Mapping[str, Any], files: str | None = None) -> Any:
    args = get_cfg(overrides={"imgsz": imgsz, "task": "detect", **hyp})
    return build_yolo_dataset(args, files or data["train"], 4, dict(data), mode="train")


def labels_as_answers(dataset: Any, folder: Path) -> tuple[Cache, dict[str, str]]:
    """A cache file that says of each image what its labels say, and of its mirror image likewise."""
    info = HeadInfo({i: str(i) for i in range(3)}, (8, 16, 32), (), 1, False)
    recipe = Recipe("labels", 64)
    hashes = image_hashes(dataset.im_files, folder)
    records = []
    for label in dataset.labels:
        x, y, w, h = label["bboxes"].T.astype(np.float64) * 64  # the images are square
        scores = np.eye(3, dtype=np.float32)[label["cls"][:, 0].astype(int)]
        views = [
            Found(np.stack([left - w / 2, y - h / 2, left + w / 2, y + h / 2], 1).astype(np.float32), scores)
            for left in (x, 64 - x)
        ]
        digest = hashes[label["im_file"]]
        records.append(
            encode(digest, label["shape"], (64, 64), (0, 0), (views[0], views[1]), 64, row_type(info, recipe))
        )
    write(folder / f"{recipe.key}.soft", recipe, info, records)
    return Cache.open(folder, recipe, hashes), hashes


@pytest.mark.parametrize("seed", range(6))
def test_replayed_boxes_land_where_the_ground_truth_lands(toy_data: Path, tmp_path: Path, seed: int) -> None:
    """To the pixel, through every augmentation at once; the fixed-point numbers of the file cost .001 of one."""
    dataset = dataset_of(check_data(str(toy_data), "train"), 96, ALL | {"copy_paste": 0.0})
    cache, hashes = labels_as_answers(dataset, tmp_path)
    attach(dataset, cache, hashes)
    seed_all(seed)
    batch = dataset.collate_fn([dataset[i] for i in range(len(dataset))])
    said = ReplayTeacher(cache, (8, 16, 32))(batch).detections
    assert said is not None
    truth, left = corners(batch) * 96, len(said.boxes)
    # A box that is cut down to a sliver may be dropped on one side of Ultralytics' bounds and kept on the other.
    assert abs(left - len(truth)) <= 1
    labels, image = said.scores.argmax(1).numpy(), said.image.numpy()
    for box, label, where in zip(truth, batch["cls"][:, 0].numpy(), batch["batch_idx"].numpy(), strict=True):
        near = np.abs(said.boxes.numpy() - box).max(1) + 1e3 * ((labels != label) | (image != where))
        left -= near.min() < 0.1
    assert abs(left) <= 1


# The same loss, stored and live ----------------------------------------------------------------------------------


def same_image(folder: Path, files: list[Path], names: Mapping[int, str]) -> dict[str, Any]:
    """A data set of a few images, copied: Ultralytics writes beside them."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for file in files:
        shutil.copy(file, folder / "images")
        label = Path(str(file).replace("images", "labels")).with_suffix(".txt")
        shutil.copy(label, folder / "labels")
    yml = folder / "data.yaml"
    yml.write_text(yaml.safe_dump({"path": str(folder), "train": "images", "val": "images", "names": dict(names)}))
    return check_data(str(yml), "train")


def within(dataset: Any, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each image begins and ends in its square: ``(N, 4)`` least and greatest (x, y, x, y)."""
    sizes = torch.tensor([dataset.load_image(i)[2][::-1] for i in range(len(dataset))])  # (N, 2) width, height
    pad = ((side - sizes) / 2 - 0.1).round()
    return torch.cat([pad, pad], 1), torch.cat([pad + sizes, pad + sizes], 1)


def compared(
    folder: Path, data: Mapping[str, Any], teacher: Path, student: Any, side: int, **hyp: float
) -> tuple[dict[str, tuple[float, float]], SoftDetections, SoftDetections]:
    """Losses of a batch under what was stored, and under what the teacher says of that very batch."""
    config = asked(teacher, folder / "cache")
    cache, hashes = fill_cache(config, image_files(data, "train"), side, 3, {})
    dataset = dataset_of(data, side, PLAIN | hyp)
    attach(dataset, cache, hashes)
    batch = dataset.collate_fn([dataset[i] for i in range(len(dataset))])
    batch["img"] = batch["img"].float() / 255
    assert len(landed(batch).rows)
    live = LiveTeacher(load_detector(teacher, role="teacher"), CPU, "fp32")
    r, info = cache.recipe, head_info(student)
    found = extract(live(batch), live.info, side, len(batch["img"]), conf=r.conf, iou=r.iou, max_det=r.max_det)
    points, strides = anchor_points(tuple(torch.zeros(1, 1, side // s, side // s) for s in info.strides), info.strides)
    image = torch.arange(len(found)).repeat_interleave(torch.tensor([len(f.boxes) for f in found]))
    boxes, scores, bins, anchors = (
        torch.from_numpy(np.concatenate([getattr(f, key) for f in found]))
        for key in ("boxes", "scores", "bins", "anchors")
    )
    edges = torch.ones(len(boxes), 4, dtype=torch.bool)
    # Boxes are stored as far as their image goes; their bins say what the teacher said.
    low, high = within(dataset, side)
    boxes = boxes.maximum(low[image]).minimum(high[image])
    seen = SoftDetections(boxes, scores, image, edges, bins, points[anchors], strides[anchors])
    replayed = ReplayTeacher(cache, info.strides)(batch).detections
    assert replayed is not None
    student.train()
    student.args = get_cfg()
    student.criterion = student.init_criterion()
    tap = AssignmentTap(student.criterion)
    with torch.no_grad():
        preds = student(batch["img"])
        student.criterion(preds, batch)
        assigned, said = tap.take(strides), branches(preds)[0]
        terms: dict[str, tuple[float, float]] = {}
        answers = []
        for one in (replayed, seen):

            class Says:
                info, name = live.info, "told"

                def __call__(self, batch: Any, one: SoftDetections = one) -> Predictions:
                    return Predictions(None, None, None, detections=one)

            answers.append(one_teacher(Says(), info)(batch, said, assigned.anchors, assigned.strides))
        for name, loss in {"cls": ClassificationKD(), "box": LocalizationKD(), "iou": BoxIoUKD()}.items():
            terms[name] = (float(loss(said, answers[0], assigned)), float(loss(said, answers[1], assigned)))
    return terms, replayed, seen


def assert_same_loss(terms: Mapping[str, tuple[float, float]], replayed: SoftDetections, seen: SoftDetections) -> None:
    assert len(replayed.boxes) == len(seen.boxes)
    assert replayed.strides is not None
    assert (replayed.strides > 0).all()  # no bin was given up
    for name, (stored, live) in terms.items():
        # float16 keeps three digits of a probability; KL and 1 - IoU are small differences of larger numbers.
        assert stored == pytest.approx(live, rel=2e-3 if name == "cls" else 1e-2), name
        assert live > 0, name


@pytest.mark.parametrize("fliplr", [0.0, 1.0])
def test_replay_and_live_teacher_give_the_same_loss(
    teacher: Path, toy_data: Path, tmp_path: Path, fliplr: float
) -> None:
    files = sorted((toy_data.parent / "images" / "train").glob("*.png"))[:4]
    data = same_image(tmp_path / "set", files, check_data(str(toy_data))["names"])
    student = load_detector(save_lively(tmp_path / "student.pt", "yolo11n.yaml", seed=6), role="student")
    assert_same_loss(*compared(tmp_path, data, teacher, student, training_side(64, (32,)), fliplr=fliplr))


@pytest.mark.shared
@pytest.mark.parametrize("fliplr", [0.0, 1.0])
def test_replay_and_live_teacher_give_the_same_loss_on_photographs(shared: Path, tmp_path: Path, fliplr: float) -> None:
    root = shared / "data" / "tinycoco100"
    names = yaml.safe_load((root / "data.yaml").read_text())["names"]
    files = sorted((root / "images").rglob("*.jpg"))[:3]
    data = same_image(tmp_path / "set", files, dict(enumerate(names)) if isinstance(names, list) else names)
    weights = shared / "weights" / "yolov8n.pt"
    student = load_detector(shared / "weights" / "yolo11n_from_int8.pt", role="student")
    assert_same_loss(*compared(tmp_path, data, weights, student, 320, fliplr=fliplr))
