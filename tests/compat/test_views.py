"""A data set that shows the teacher another image than the student, moved by the same augmentation."""

from __future__ import annotations

import pickle
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader, build_yolo_dataset
from ultralytics.data.augment import Mosaic, RandomHSV
from ultralytics.data.dataset import YOLODataset

from tests.compat.replays import ALL, IMGSZ, PLAIN, SETTINGS, assert_same_sample, make_images, seed_all
from yolokd.compat import views as module
from yolokd.compat.replay import ReplayDataset
from yolokd.compat.transforms import exchange
from yolokd.compat.views import STUDENT_VIEWS, TEACHER_VIEW, Strong, Views, ViewsDataset, attach_views, stacked
from yolokd.errors import UserError

COLOURLESS = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}
SEEDS = 3


def build(folder: Path, hyp: dict[str, Any] | None = None, channels: int = 3, mode: str = "train", **more: Any) -> Any:
    data = {"names": {i: str(i) for i in range(100)}, "nc": 100, "channels": channels}
    args = get_cfg(overrides={"imgsz": IMGSZ, "task": "detect", **(ALL if hyp is None else hyp), **more})
    return build_yolo_dataset(args, str(folder), 4, data, mode=mode, rect=mode == "val")


def attached(folder: Path, hyp: dict[str, Any] | None = None, views: Views | None = None, **more: Any) -> Any:
    dataset = build(folder, hyp, **more)
    attach_views(dataset, views or Views())
    return dataset


def samples(dataset: Any, seed: int) -> list[dict[str, Any]]:
    """All samples after one seed, one after the other; the last entry tells where the random streams stand."""
    seed_all(seed)
    found = [dataset[i] for i in range(len(dataset))]
    return [*found, {"streams": torch.tensor([random.random(), np.random.rand(), torch.rand(1).item()])}]


def each(dataset: Any) -> Iterator[dict[str, Any]]:
    for seed in range(SEEDS):
        yield from samples(dataset, seed)[:-1]


def assert_same_but_for_the_view(wanted: list[dict[str, Any]], got: list[dict[str, Any]]) -> None:
    assert len(wanted) == len(got)
    for a, b in zip(wanted, got, strict=True):
        b.pop(TEACHER_VIEW, None)
        assert_same_sample(a, b)


def negatives(images: Path, root: Path) -> dict[str, str]:
    """A copy of a data set in which each image is its negative, and which image belongs to which."""
    shutil.copytree(images.parent, root, ignore=shutil.ignore_patterns("*.cache", "*.npy"))
    pairs = {}
    for file in sorted(images.glob("*.png")):
        pairs[str(file)] = str(root / "images" / file.name)
        cv2.imwrite(pairs[str(file)], 255 - cv2.imread(str(file), cv2.IMREAD_UNCHANGED))
    return pairs


@pytest.fixture(scope="module")
def partners(polygons: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return negatives(polygons, tmp_path_factory.mktemp("partners") / "set")


# The student does not notice.


@pytest.mark.parametrize("kind", ["boxes", "polygons"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_images_labels_and_random_streams_are_those_of_a_run_without(
    setting: str, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    plain, dataset = build(folder, SETTINGS[setting]), attached(folder, SETTINGS[setting])
    for seed in range(SEEDS):
        assert_same_but_for_the_view(samples(plain, seed), samples(dataset, seed))


READ = [{"rect": True}, {"cache": "ram"}, {"cache": "disk"}, {"bgr": 0.5}, {"single_cls": True}, {"task": "segment"}]


@pytest.mark.parametrize("more", READ, ids=str)
def test_nor_with_partners_however_the_images_are_read(polygons: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    folder = tmp_path / "data" / "images"
    shutil.copytree(polygons.parent, tmp_path / "data")
    pairs = negatives(folder, tmp_path / "negative")
    plain, dataset = build(folder, **more), attached(folder, views=Views(pairs), **more)
    for seed in range(SEEDS):
        assert_same_but_for_the_view(samples(plain, seed), samples(dataset, seed))
    assert len(list(folder.glob("*.npy"))) == (len(dataset) if more == {"cache": "disk"} else 0)
    assert not list((tmp_path / "negative").rglob("*.npy"))


def test_attaching_draws_no_random_number(polygons: Path, partners: dict[str, str]) -> None:
    dataset = build(polygons, cache="ram")
    seed_all(0)
    attach_views(dataset, Views(partners))
    left = random.random(), np.random.rand()
    seed_all(0)
    assert left == (random.random(), np.random.rand())


@pytest.mark.skipif(int(cv2.__version__[0]) < 5, reason="OpenCV 5 has code of its own for 3 channels")
def test_to_stack_both_images_would_change_the_students() -> None:
    """Why each is warped by itself: with 6 channels OpenCV takes another way than with 3."""
    both = np.random.default_rng(0).integers(0, 256, (64, 64, 6), dtype=np.uint8)
    turn = cv2.getRotationMatrix2D((32, 32), 20, 0.8)
    alone = cv2.warpAffine(np.ascontiguousarray(both[..., :3]), turn, (64, 64), borderValue=(114,) * 4)
    together = cv2.warpAffine(both, turn, (64, 64), borderValue=(114,) * 4)[..., :3]
    assert (alone != together).mean() > 0.05


# The teacher's image goes where the student's goes.


@pytest.mark.parametrize("more", [{}, {"rect": True}, {"cache": "ram"}], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_without_a_change_of_colours_both_see_the_same(polygons: Path, setting: str, more: dict[str, Any]) -> None:
    dataset = attached(polygons, SETTINGS[setting] | COLOURLESS, **more)
    for sample in each(dataset):
        view = sample[TEACHER_VIEW]
        assert (view.dtype, view.is_contiguous()) == (torch.uint8, True)
        assert torch.equal(view, sample["img"])


def draw_only(self: RandomHSV, labels: dict[str, Any], params: Any = None) -> dict[str, Any]:
    """RandomHSV that takes its random numbers and changes nothing."""
    if self.hgain or self.sgain or self.vgain:
        np.random.uniform(-1, 1, 3)
    return labels


def test_the_teacher_sees_what_the_student_saw_before_its_colours_changed(
    polygons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = list(each(attached(polygons)))
    monkeypatch.setattr(RandomHSV, "apply_image", draw_only)
    changed = 0
    for a, b in zip(each(build(polygons)), got, strict=True):
        assert torch.equal(a["img"], b[TEACHER_VIEW])
        changed += not torch.equal(b["img"], b[TEACHER_VIEW])
    assert changed > len(got) / 2


@pytest.mark.parametrize("more", [{}, {"rect": True}, {"cache": "ram"}], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_partner_is_seen_as_a_data_set_of_the_partners_would_show_it(
    polygons: Path, partners: dict[str, str], setting: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    got = list(each(attached(polygons, SETTINGS[setting], Views(partners), **more)))
    monkeypatch.setattr(RandomHSV, "apply_image", draw_only)
    wanted = each(build(Path(next(iter(partners.values()))).parent, SETTINGS[setting], **more))
    for a, b in zip(wanted, got, strict=True):
        assert torch.equal(a["img"], b[TEACHER_VIEW])
        assert torch.equal(a["bboxes"], b["bboxes"])


def test_pixel_by_pixel_in_mosaics_cut_pasted_and_mirrored(tmp_path: Path) -> None:
    """Nothing is scaled here, so each pixel is one of a file, or border: 114 for both."""
    folder = make_images(tmp_path / "square", polygons=True)
    for i, file in enumerate(sorted(folder.glob("*.png"))):
        cv2.imwrite(str(file), np.random.default_rng(i).integers(150, 256, (IMGSZ, 60, 3), dtype=np.uint8))
    moves = PLAIN | {"mosaic": 0.7, "cutmix": 0.5, "copy_paste": 0.5, "fliplr": 0.5, "flipud": 0.5}
    dataset = attached(folder, moves, Views(negatives(folder, tmp_path / "negative")))
    borders = 0
    for sample in each(dataset):
        student = sample["img"]
        border = student == 114
        borders += int(border.sum())
        assert torch.equal(sample[TEACHER_VIEW], torch.where(border, student, 255 - student))
    assert borders > 0


def test_a_mosaic_of_nine(polygons: Path, partners: dict[str, str]) -> None:
    wanted = build(Path(next(iter(partners.values()))).parent, PLAIN)
    dataset = attached(polygons, PLAIN, Views(partners))
    list(each(dataset)), list(each(wanted))  # a mosaic takes its images from the buffer
    ours, theirs = (Mosaic(one, imgsz=IMGSZ, p=1.0, n=9) for one in (dataset, wanted))
    exchange(ours, module._MOVING, "apply_image", "", "")
    for i in range(len(dataset)):
        seed_all(i)
        a = theirs(wanted.get_image_and_label(i))
        seed_all(i)
        b = ours(dataset.get_image_and_label(i))
        assert b["img"].shape == (2 * IMGSZ, 2 * IMGSZ, 3)
        assert np.array_equal(a["img"], b[TEACHER_VIEW])
        assert not np.array_equal(b["img"], b[TEACHER_VIEW])


def test_close_mosaic_keeps_both(polygons: Path, partners: dict[str, str]) -> None:
    wanted = build(Path(next(iter(partners.values()))).parent)
    dataset = attached(polygons, views=Views(partners, strong=True))
    for one in (wanted, dataset):
        one.close_mosaic(hyp=get_cfg(overrides={"imgsz": IMGSZ, **ALL, **COLOURLESS}))
    assert dataset.transforms[0][0].p == 0
    assert [type(step).__name__ for step in dataset.transforms.transforms[-2:]] == ["Strong", "_Format"]
    for i in range(len(dataset)):
        seed_all(i)
        a = wanted[i]
        seed_all(i)
        b = dataset[i]
        assert torch.equal(a["bboxes"], b["bboxes"])
        assert torch.equal(a["img"], b[TEACHER_VIEW])


# Channels.


def test_the_teacher_always_sees_rgb(polygons: Path) -> None:
    for sample in each(attached(polygons, PLAIN | {"bgr": 1.0})):
        assert torch.equal(sample["img"].flip(0), sample[TEACHER_VIEW])
        assert not torch.equal(sample["img"], sample[TEACHER_VIEW])


def test_a_grey_student_of_a_coloured_file(polygons: Path) -> None:
    dataset = attached(polygons, ALL, Views(channels=3), channels=1)
    plain, coloured = build(polygons, channels=1), build(polygons, ALL | COLOURLESS)
    for seed in range(SEEDS):
        got = samples(dataset, seed)
        for a, b in zip(samples(coloured, seed)[:-1], got[:-1], strict=True):
            assert b["img"].shape == (1, IMGSZ, IMGSZ)
            assert torch.equal(a["img"], b[TEACHER_VIEW])
        assert_same_but_for_the_view(samples(plain, seed), got)


def test_a_grey_teacher(polygons: Path) -> None:
    dataset = attached(polygons, ALL | COLOURLESS, Views(channels=1))
    for a, b in zip(each(build(polygons, channels=1)), each(dataset), strict=True):
        assert torch.equal(a["img"], b[TEACHER_VIEW])


def test_a_student_with_four_channels(polygons: Path, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "four", polygons=True)
    for file in folder.glob("*.png"):
        image = cv2.imread(str(file))
        cv2.imwrite(str(file), np.dstack([image, 255 - image[..., :1]]))
    pairs = {str(file): str(polygons / file.name) for file in folder.glob("*.png")}
    plain, dataset = build(folder, channels=4), attached(folder, ALL, Views(pairs), channels=4)
    if plain.load_image(0)[0].shape[2] != 4:
        pytest.skip("this Ultralytics reads a PNG of four channels as one of three")
    coloured = build(polygons, ALL | COLOURLESS)
    for seed in range(SEEDS):
        got = samples(dataset, seed)
        for a, b in zip(samples(coloured, seed)[:-1], got[:-1], strict=True):
            assert b["img"].shape == (4, IMGSZ, IMGSZ)
            assert torch.equal(a["img"], b[TEACHER_VIEW])
        assert_same_but_for_the_view(samples(plain, seed), got)


def test_an_npy_beside_a_partner_is_neither_read_nor_written(polygons: Path, tmp_path: Path) -> None:
    pairs = negatives(polygons, tmp_path / "negative")
    stale = Path(next(iter(pairs.values()))).with_suffix(".npy")
    np.save(stale, np.zeros((80, 80), np.uint8))
    before = stale.read_bytes()
    got = list(each(attached(polygons, PLAIN, Views(pairs))))
    assert stale.read_bytes() == before
    assert all(sample[TEACHER_VIEW].float().std() > 20 for sample in got)


# What the student sees of its image.


@pytest.mark.parametrize("cache", [False, "ram", "disk"])
@pytest.mark.parametrize("view", STUDENT_VIEWS)
def test_the_view_is_the_students_alone(polygons: Path, tmp_path: Path, view: str, cache: Any) -> None:
    shutil.copytree(polygons.parent, tmp_path / "data")
    folder = tmp_path / "data" / "images"
    plain = build(folder, ALL | COLOURLESS, cache=cache)
    dataset = attached(folder, ALL | COLOURLESS, Views(student_view=view), cache=cache)
    for seed in range(SEEDS):
        wanted, got = samples(plain, seed), samples(dataset, seed)
        assert torch.equal(wanted.pop()["streams"], got.pop()["streams"])
        for a, b in zip(wanted, got, strict=True):
            assert torch.equal(a["img"], b[TEACHER_VIEW])
            assert torch.equal(a["bboxes"], b["bboxes"])
            assert not torch.equal(a["img"], b["img"])
    assert len(dataset.seen) <= dataset.max_buffer_length


@pytest.mark.parametrize("view", STUDENT_VIEWS)
@pytest.mark.parametrize("channels", [1, 3])
def test_validation_shows_the_same_view_to_the_student(polygons: Path, view: str, channels: int) -> None:
    plain, dataset = build(polygons, mode="val", channels=channels), build(polygons, mode="val", channels=channels)
    attach_views(dataset, Views(student_view=view, strong=True, channels=3))
    assert dataset.rect
    for i in range(len(dataset)):
        seen = STUDENT_VIEWS[view](plain.load_image(i)[0], dataset.im_files[i])
        a, b = plain[i], dataset[i]
        assert list(a) == list(b)
        assert a["img"].shape == b["img"].shape
        left, top = a["ratio_pad"][1]
        inside = b["img"][:, top : top + seen.shape[0], left : left + seen.shape[1]]
        assert np.array_equal(inside.numpy(), seen[..., ::-1].transpose(2, 0, 1))
        inside[:] = 114
        assert (b["img"] == 114).all()


def test_grey_is_luminance() -> None:
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], np.uint8)  # BGR
    assert module._gray(image)[0].tolist() == [[29] * 3, [150] * 3, [76] * 3, [90] * 3]


def test_half_keeps_no_detail_of_one_pixel() -> None:
    board = np.indices((7, 10)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 200
    seen = module._half(board[:6], "")
    assert seen.shape == (6, 10, 3)
    assert np.abs(seen.astype(int) - 100).max() <= 1
    flat = np.full((9, 9, 1), 77, np.uint8)
    assert np.array_equal(module._half(flat, ""), flat)


def test_dark_is_darker_and_noisy_and_always_the_same() -> None:
    flat = np.full((200, 200, 3), 200, np.uint8)
    seen = module._dark(flat, "a/1.png")
    light = 0.5 * (200 / 255) ** 2
    assert abs(seen.mean() - 255 * light) < 0.2
    assert abs(seen.std() - 255 * (light / 250 + 0.01**2) ** 0.5) < 0.2
    assert np.array_equal(seen, module._dark(flat, "elsewhere/1.png"))
    assert not np.array_equal(seen, module._dark(flat, "a/2.png"))
    assert module._dark(flat * 0, "1.png").mean() < 2


def test_a_buffered_view_is_made_once(polygons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def view(image: Any, file: str) -> Any:
        made.append(file)
        return 255 - image

    monkeypatch.setitem(STUDENT_VIEWS, "gray", view)
    dataset = attached(polygons, ALL, Views(student_view="gray"))
    dataset.max_buffer_length = len(dataset) + 1  # of images as of views, so nothing is dropped
    list(each(dataset))
    assert sorted(made) == sorted(dataset.im_files)


# Weak for the teacher, strong for the student.


@pytest.mark.parametrize("channels", [1, 3])
def test_the_strong_view_is_the_students_alone_and_repeatable(polygons: Path, channels: int) -> None:
    hyp = ALL | COLOURLESS
    plain = build(polygons, hyp, channels)
    dataset = attached(polygons, hyp, Views(strong=True, channels=channels), channels=channels)
    differ = []
    for seed in range(2 * SEEDS):
        for i in range(len(dataset)):
            seed_all(seed)
            a = plain[i]
            seed_all(seed)
            b = dataset[i]
            assert torch.equal(a["img"], b[TEACHER_VIEW])
            assert torch.equal(a["bboxes"], b["bboxes"])
            differ.append(not torch.equal(a["img"], b["img"]))
    assert np.mean(differ) > 0.85
    first, second = samples(dataset, 1), samples(dataset, 1)
    assert all(torch.equal(a["img"], b["img"]) for a, b in zip(first[:-1], second[:-1], strict=True))


def test_the_strong_chain_acts_as_often_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    done: Counter[str] = Counter()

    def count(name: str) -> Any:
        def step(image: Any, *rest: Any, **more: Any) -> Any:
            done.update([name, *map(str, rest)])
            return image

        return step

    for name in ("_jitter", "_gray", "_erase"):
        monkeypatch.setattr(module, name, count(name))
    monkeypatch.setattr(cv2, "GaussianBlur", count("blur"))
    seed_all(0)
    runs = 4000
    for _ in range(runs):
        Strong()({"img": np.zeros((8, 8, 3), np.uint8)})
    wanted = {"_jitter": 0.8, "_gray": 0.2, "blur": 0.5, "(0.05, 0.2)": 0.7, "(0.1, 6.0)": 0.5, "(0.05, 8.0)": 0.3}
    assert {name: done[name] / runs for name in wanted} == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize(("share", "ratio"), [rest for _, *rest in module._ERASED])
def test_what_is_erased_is_one_rectangle_of_noise(share: tuple[float, float], ratio: tuple[float, float]) -> None:
    seed_all(0)
    for _ in range(20):
        image = np.zeros((120, 150, 3), np.uint8)
        module._erase(image, share, ratio)
        rows, columns = np.nonzero(image.any(2))
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert share[0] * 0.9 < h * w / (120 * 150) < share[1] * 1.1
        assert ratio[0] * 0.85 < h / w < ratio[1] * 1.15
        assert abs(image[image.any(2)].mean() - 127.5) < 10


def test_jitter_stays_in_its_ranges() -> None:
    seed_all(0)
    grey, red = np.full((4, 4, 3), 100, np.uint8), np.full((4, 4, 3), (80, 80, 120), np.uint8)
    values, hues = [], []
    for _ in range(200):
        out = module._jitter(grey)
        assert np.ptp(out) <= 1  # grey stays grey, whatever saturation and hue do
        values.append(float(out.mean()))
        hues.append(int(cv2.cvtColor(module._jitter(red), cv2.COLOR_BGR2HSV)[0, 0, 0]))
    assert 58 <= min(values) < 66  # brightness alone moves a flat image: it has no contrast
    assert 134 < max(values) <= 142
    assert {hue < 90 for hue in hues} == {True, False}
    assert 12 < max(min(hue, 180 - hue) for hue in hues) <= 21  # a tenth of the circle is 18, and rounding
    assert module._jitter(grey[..., :1]).shape == (4, 4, 1)


# Loaders.


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(polygons: Path, partners: dict[str, str], workers: int) -> None:
    def batches(dataset: Any) -> list[Any]:
        seed_all(0)
        loader = build_dataloader(dataset, 4, workers, shuffle=True, device="cpu")
        found = list(loader)
        loader.close()
        return found

    wanted = batches(build(polygons, ALL | COLOURLESS))
    both = batches(attached(polygons, ALL | COLOURLESS))
    paired = batches(attached(polygons, ALL | COLOURLESS, Views(partners)))
    assert len(wanted) == 2
    for a, b, c in zip(wanted, both, paired, strict=True):
        assert stacked(a) is None
        view, negative = stacked(b), stacked(c)
        assert torch.equal(a["img"], b["img"])
        assert torch.equal(a["img"], c["img"])
        assert torch.equal(a["img"], view)
        assert negative.shape == view.shape == (len(a["im_file"]), 3, IMGSZ, IMGSZ)
        assert negative.dtype == torch.uint8
        assert stacked({TEACHER_VIEW: view}) is view


def test_a_pickled_data_set_gives_the_same_samples(polygons: Path, partners: dict[str, str]) -> None:
    dataset = attached(polygons, views=Views(partners, "dark", strong=True), cache="ram")
    copy = pickle.loads(pickle.dumps(dataset))
    assert isinstance(copy, ViewsDataset)
    for seed in range(3):
        for a, b in zip(samples(dataset, seed)[:-1], samples(copy, seed)[:-1], strict=True):
            assert torch.equal(a["img"], b["img"])
            assert torch.equal(a[TEACHER_VIEW], b[TEACHER_VIEW])


# Refusals.


class Listed(YOLODataset):  # type: ignore[misc]
    """Lists its files otherwise; what it adds is its own."""

    def get_img_files(self, img_path: Any) -> list[str]:
        return super().get_img_files(img_path)[:5]  # type: ignore[no-any-return]

    def extra(self) -> int:
        return 1


class Brighter(Listed):
    def load_image(self, i: int, *args: Any) -> Any:
        return super().load_image(i, *args)


def of_kind(kind: type, folder: Path) -> Any:
    hyp = get_cfg(overrides={"imgsz": IMGSZ, **ALL})
    return kind(str(folder), imgsz=IMGSZ, hyp=hyp, data={"names": {i: str(i) for i in range(100)}})


def test_a_data_set_may_list_its_files_otherwise(polygons: Path, partners: dict[str, str]) -> None:
    dataset = of_kind(Listed, polygons)
    attach_views(dataset, Views(partners))
    assert len(dataset) == 5
    assert all(TEACHER_VIEW in sample for sample in samples(dataset, 0)[:-1])


def test_other_data_sets_are_refused(polygons: Path) -> None:
    replayed = build(polygons)
    replayed.__class__ = ReplayDataset
    for dataset in (of_kind(Brighter, polygons), attached(polygons), replayed, SimpleNamespace(augment=True)):
        with pytest.raises(UserError, match=type(dataset).__name__):
            attach_views(dataset, Views())


def test_what_cannot_be_shown_is_refused(polygons: Path, partners: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"student_view=blue is not known(.|\n)*gray, dark, half"):
        attached(polygons, views=Views(student_view="blue"))
    for views in (Views(student_view="gray"), Views(strong=True)):
        with pytest.raises(UserError, match="1 or 3 channels, not 4"):
            attached(polygons, views=views, channels=4)
    few = dict(list(partners.items())[:-2])
    with pytest.raises(UserError, match="2 training images have no partner"):
        attached(polygons, views=Views(few))


def test_a_partner_of_another_size_is_refused_when_it_is_read(polygons: Path, partners: dict[str, str]) -> None:
    files = list(partners)
    dataset = attached(polygons, PLAIN, Views({file: partners[files[0]] for file in files}))
    assert dataset[0][TEACHER_VIEW].shape == dataset[0]["img"].shape
    with pytest.raises(UserError, match="is not as large as"):
        dataset[1]


def test_augmentations_of_colours_are_the_students_and_spatial_ones_are_refused(polygons: Path) -> None:
    for spatial in (False, True):
        dataset = build(polygons, ALL | COLOURLESS)
        (step,) = [t for t in dataset.transforms.transforms if type(t).__name__ == "Albumentations"]
        step.transform, step.contains_spatial = lambda image: {"image": 255 - image}, spatial
        if spatial:
            with pytest.raises(UserError, match="Albumentations"):
                attach_views(dataset, Views())
        else:
            attach_views(dataset, Views())
            assert all(torch.equal(255 - sample["img"], sample[TEACHER_VIEW]) for sample in each(dataset))


@pytest.mark.shared
def test_photographs(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "data" / "bccd416", tmp_path / "data", copy_function=shutil.copyfile)
    folder = tmp_path / "data" / "images" / "val"
    hyp = {"mosaic": 1.0, "degrees": 5.0, "fliplr": 0.5, "mixup": 0.3, "cutmix": 0.3}
    plain = build(folder, hyp, imgsz=160)
    dark = attached(folder, hyp, Views(student_view="dark"), imgsz=160)
    colourless = attached(folder, hyp | COLOURLESS, imgsz=160)
    for i in range(12):
        seen = []
        for one in (plain, dark, colourless):
            seed_all(i)
            seen.append(one[i])
        assert torch.equal(seen[0]["bboxes"], seen[1]["bboxes"])
        assert seen[1]["img"].float().mean() < 0.8 * seen[1][TEACHER_VIEW].float().mean()
        assert torch.equal(seen[2]["img"], seen[2][TEACHER_VIEW])
