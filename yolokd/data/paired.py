"""Which image of another folder belongs to an image: the same scene, seen by another camera."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePath

from PIL import Image

from yolokd.compat.dataset import image_files
from yolokd.errors import UserError

_ORIENTATION, _TURNED = 0x0112, 5  # EXIF; from 5 on width and height are exchanged
_SHOWN = 10


def find_partners(
    files: Sequence[str], folder: str | Path, channels: int = 3, among: Sequence[str] = ()
) -> dict[str, str]:
    """Find the partner of each image in ``teacher_images=``: the image of the same name, without regard to its ending.

    Where a name is there several times, the partner is the one whose path below ``folder`` is that of the image below
    the common folder of all images; else the one whose sub-folders, read from the file upwards, agree furthest with the
    image's.

    Args:
        files: the student's images.
        folder: where the teacher's are, in sub-folders or not.
        channels: of the teacher's images; other than 1 or 3, its files must have exactly these.
        among: other images of the data set, which need no partner: theirs is not taken for that of a namesake.

    Returns:
        Image file, as it was given, to partner.

    Raises:
        UserError: no such folder, no images in it, or images without a partner, with several, with that of another
            image, or with one that cannot be read or has another size or other channels.
    """
    candidates = _by_name(folder)
    files = list(dict.fromkeys(files))
    every = list(dict.fromkeys([*files, *among]))
    root = _common_folder(every)
    found = {file: _matches(file, root, candidates) for file in every}
    wrong = {file: reason for file, reason in _unpaired(found).items() if file in set(files)}
    found = {file: found[file] for file in files}
    pairs = {file: matches[0] for file, matches in found.items() if file not in wrong}
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        reasons = pool.starmap(_difference, [(file, partner, channels) for file, partner in pairs.items()])
    wrong |= {file: reason for file, reason in zip(pairs, reasons, strict=True) if reason}
    if wrong:
        raise _refusal(folder, files, wrong)
    return pairs


def _unpaired(found: dict[str, list[str]]) -> dict[str, str]:
    """The images that do not have exactly one partner for themselves, and why."""
    owners = Counter(matches[0] for matches in found.values() if len(matches) == 1)
    wrong = {}
    for file, matches in found.items():
        if not matches:
            wrong[file] = "none"
        elif len(matches) > 1:
            wrong[file] = "several"
        elif owners[matches[0]] > 1:
            wrong[file] = "that of another image"
    return wrong


def _by_name(folder: str | Path) -> dict[str, list[tuple[str, str]]]:
    """All images of a folder: name without ending to (path, sub-folder)."""
    if not Path(folder).is_dir():
        raise UserError(f"teacher_images={folder} is no folder.", "Name the folder that holds what the teacher sees.")
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for file in image_files({"here": str(folder)}, "here"):
        found[Path(file).stem].append((file, os.path.relpath(os.path.dirname(file), folder)))
    if not found:
        raise UserError(
            f"teacher_images={folder} holds no images.", "Name the folder that holds what the teacher sees."
        )
    return found


def _common_folder(files: Iterable[str]) -> str:
    try:
        return os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    except ValueError:  # none at all, or on several drives
        return ""


def _matches(file: str, root: str, candidates: dict[str, list[tuple[str, str]]]) -> list[str]:
    """The files that may be the partner; of several of one name those in the sub-folders of the image."""
    same = candidates.get(Path(file).stem, [])
    if len(same) < 2:
        return [path for path, _ in same]
    folders = os.path.dirname(os.path.abspath(file))
    inside = os.path.relpath(folders, root) if root else folders
    exact = [path for path, place in same if os.path.normpath(place) == os.path.normpath(inside)]
    if exact:
        return exact
    agreeing = {path: _agreeing(folders, place) for path, place in same}
    return [path for path, parts in agreeing.items() if parts == max(agreeing.values())]


def _agreeing(a: str, b: str) -> int:
    """How many of the last folders of two paths are the same."""
    pairs = zip(reversed(PurePath(a).parts), reversed(PurePath(b).parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _difference(file: str, partner: str, channels: int) -> str:
    """Why two images do not go together, by what their headers say; empty where they do."""
    try:
        (width, height, _), (w, h, bands) = _header(file), _header(partner)
    except (OSError, SyntaxError, ValueError, ImportError):  # the last where Ultralytics' Pillow tries HEIC
        return "unreadable"
    if (w, h) != (width, height):
        return f"{w}x{h} instead of {width}x{height}"
    return f"{bands} channels instead of {channels}" if channels not in (1, 3, bands) else ""


def _header(file: str) -> tuple[int, int, int]:
    """Width and height as they are shown, and the number of channels."""
    with Image.open(file) as image:
        width, height = image.size
        bands = max(len(image.getbands()), getattr(image, "n_frames", 1))  # a TIFF may hold its channels as pages
        if image.format == "JPEG" and image.getexif().get(_ORIENTATION, 1) >= _TURNED:
            width, height = height, width
    return width, height, bands


def _refusal(folder: str | Path, files: Sequence[str], wrong: dict[str, str]) -> UserError:
    shown = ", ".join(f"{Path(file).name} ({why})" for file, why in list(wrong.items())[:_SHOWN])
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return UserError(
        f"teacher_images={folder}: {len(wrong)} of {len(files)} images have no partner of their own: {shown}{more}.",
        "Each image needs one of the same name and size there (sub-folders as beside the images).",
    )
