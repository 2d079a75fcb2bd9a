"""What a person names with ``unlabelled=``: images, and videos of which frames are taken. It is read, never written."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from ultralytics.data.utils import IMG_FORMATS, VID_FORMATS
from ultralytics.utils import NUM_THREADS
from ultralytics.utils.patches import imread

from yolokd.compat.dataset import image_files
from yolokd.compat.files import PARTIAL, atomic_replace, locked, written_in
from yolokd.errors import UserError

MARKER = "sampled.json"  # in a folder of frames; written last, so that a folder without it is not whole
_FPS = 25.0  # of a video that does not say
_SMALLEST = 10  # pixels a side; Ultralytics drops smaller training images
_CV2_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}  # as in Ultralytics' data set
_FORMATS = f"Images are {', '.join(sorted(IMG_FORMATS))}; videos are {', '.join(sorted(VID_FORMATS))}."
_KINDS = "Give a folder, a .txt list of image files, a video or an image; commas part several."


@dataclass(frozen=True)
class Sources:
    """Files that somebody named, as absolute paths, sorted, each once."""

    images: tuple[str, ...]
    videos: tuple[str, ...]


def find_sources(asked: str | Sequence[str]) -> Sources:
    """Find the images and videos that ``unlabelled=`` names, as Ultralytics lists the images of a data set.

    Of folders, subfolders and linked folders count, hidden files do not. A file that two links lead to counts once. In
    a list, ``./`` means the folder of the list; other relative paths begin where we stand.

    Args:
        asked: folders, ``.txt`` lists of image files, videos and images: a text with commas, or a list.

    Raises:
        UserError: nothing is named, it does not exist, it is of another kind, nothing is in it, or a list names files
            that do not exist or are no images.
    """
    parts = asked.split(",") if isinstance(asked, str) else asked
    paths = [part.strip() for part in parts if part.strip()]
    if not paths:
        raise UserError("unlabelled= names nothing.", _KINDS)
    files = [file for path in paths for file in _files_of(path)]
    return Sources(*(_each_once(files, formats) for formats in (IMG_FORMATS, VID_FORMATS)))


def sample_frames(video: str, folder: str | Path, seconds: float = 1.0) -> list[str]:
    """Write frames of a video as PNG, so that sampling it again gives the same bytes.

    Frames that are there are used again, where they are all there and of this very file and distance. Else, as after a
    kill, it begins anew. Of several processes one samples, the others wait.

    Args:
        video: the file, in any format that OpenCV decodes.
        folder: where to make a folder for the frames of this video.
        seconds: distance between two frames; 0 takes every frame.

    Returns:
        absolute paths of the frames, in their order; the number of a frame in the video is its name.

    Raises:
        UserError: the video cannot be opened or holds no frame, or the folder cannot be written to.
    """
    path = os.path.abspath(video)
    place = Path(os.path.abspath(folder), f"{Path(path).stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}")
    try:
        state = os.stat(path)
    except OSError as error:
        raise _no_video(video, error.strerror or str(error)) from error
    recipe = {"bytes": state.st_size, "modified_ns": state.st_mtime_ns, "seconds": seconds}
    lock, remedy = place.with_name(f".{place.name}.lock"), "Make room there, or see to it that you may write."
    with written_in(place, remedy), locked(lock) as refusal:
        if refusal:
            raise refusal
        done = _sampled(place, recipe)
        return done if done is not None else _sample(path, place, recipe)


def refuse_video(video: str) -> None:
    """Look whether a video can be sampled; nothing is written.

    Raises:
        UserError: it cannot be opened or holds no frame.
    """
    for _ in _frames(os.path.abspath(video), 0):
        return
    raise _no_video(video, "it holds no frame that OpenCV can decode")


def readable(files: Sequence[str], channels: int = 3, workers: int = NUM_THREADS) -> tuple[list[str], list[str]]:
    """Part the files that Ultralytics can train on from those that it cannot read or drops.

    The demands are those of its own check of a data set (``ultralytics.data.utils.check_image``), which cannot be asked
    itself: it writes a JPEG with a wrong end anew, in place, and installs a package where a file is no image. A JPEG
    with bytes behind its end is readable here, but a training that is given the file itself would still mend it.

    Args:
        files: image files. They are read only.
        channels: of the data set; an image of a multispectral one must have just as many.
        workers: threads that read.

    Returns:
        those that can be read, and those that cannot: missing, unreadable, damaged, or below 10 pixels a side. Both are
        in the order of ``files``.
    """
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        fine = list(pool.map(lambda file: _is_readable(file, channels), files))
    parted = [[file for file, good in zip(files, fine, strict=True) if good is wanted] for wanted in (True, False)]
    return parted[0], parted[1]


def _files_of(path: str) -> list[str]:
    """All images and videos behind one path."""
    ending = _ending(path)
    if not os.path.exists(path):
        raise UserError(f"unlabelled={path}: no such file or folder.", _KINDS)
    if os.path.isdir(path):
        videos = glob.glob(os.path.join(glob.escape(path), "**", "*.*"), recursive=True)
        found = image_files({"folder": [path]}, "folder") + [file for file in videos if _ending(file) in VID_FORMATS]
        found = [file for file in found if os.path.isfile(file)]  # a folder may be called x.jpg
    elif ending in IMG_FORMATS | VID_FORMATS:
        return [path]
    elif ending == "txt":
        found = _listed(path)
    else:
        raise UserError(f"unlabelled={path} is neither a list of images nor a video nor an image.", _KINDS)
    if not found:
        raise UserError(f"unlabelled={path} holds no image{'' if ending == 'txt' else ' and no video'}.", _FORMATS)
    return found


def _listed(path: str) -> list[str]:
    """The image files that a list names."""
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"unlabelled={path} cannot be read as a list ({type(error).__name__}).",
            "A list is a text file in UTF-8 with one image file a line.",
        ) from error
    if others := [line for line in lines if _ending(line) not in IMG_FORMATS]:
        raise UserError(
            f"unlabelled={path}: {len(others)} of {len(lines)} lines name no image, such as {_first(others)}.",
            f"A list has one image file a line ({', '.join(sorted(IMG_FORMATS))}); name videos in unlabelled= itself.",
        )
    found = image_files({"list": [path]}, "list")
    if missing := [file for file in found if not os.path.isfile(file)]:
        raise UserError(
            f"unlabelled={path}: {len(missing)} of {len(found)} files do not exist, such as {_first(missing)}.",
            "Mend the list; a relative path begins at the working folder, or at the list's with ./ before it.",
        )
    return found


def _each_once(files: Sequence[str], formats: set[str]) -> tuple[str, ...]:
    paths = {os.path.abspath(file) for file in files if _ending(file) in formats}
    longest_first = sorted(paths, key=lambda path: (-path.count(os.sep), path))
    once = {os.path.realpath(path): path for path in longest_first}  # of several links to a file the shortest remains
    return tuple(sorted(once.values()))


def _ending(file: str) -> str:
    return file.rpartition(".")[-1].lower()  # as Ultralytics tells formats


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3])


def _sampled(place: Path, recipe: dict[str, float]) -> list[str] | None:
    """The frames of a sampling that was finished, or None."""
    try:
        found = json.loads((place / MARKER).read_text(encoding="utf-8"))
        frames = [str(place / name) for name in found.pop("frames")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return frames if found == recipe and all(os.path.isfile(frame) for frame in frames) else None


def _sample(video: str, place: Path, recipe: dict[str, float]) -> list[str]:
    """Decode and write; frames of another sampling are taken away first."""
    stale = [place / MARKER, *place.glob("*.png"), *place.glob(f".*{PARTIAL}")]
    for file in stale:
        file.unlink(missing_ok=True)
    names = []
    for number, image in _frames(video, recipe["seconds"]):
        place.mkdir(exist_ok=True)
        names.append(f"{number:06d}.png")
        _write(place / names[-1], cv2.imencode(".png", image)[1].tobytes())
    if not names:
        raise _no_video(video, "it holds no frame")
    _write(place / MARKER, json.dumps({**recipe, "frames": names}).encode())
    return [str(place / name) for name in names]


def _write(file: Path, data: bytes) -> None:
    atomic_replace(file, lambda partial: partial.write_bytes(data))


def _frames(video: str, seconds: float) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Number and BGR picture of each frame that is due; a damaged one is due again at the next."""
    capture = cv2.VideoCapture(video)
    try:
        if not capture.isOpened():
            raise _no_video(video, "OpenCV cannot open it")
        fps = capture.get(cv2.CAP_PROP_FPS)
        step = max(1.0, seconds * (fps if math.isfinite(fps) and fps > 0 else _FPS))
        number, due = 0, 0.0
        while capture.grab():  # frame after frame: to jump is inexact in most formats
            if number >= due:
                whole, image = capture.retrieve()
                if whole:
                    yield number, image
                    while due <= number:
                        due += step
            number += 1
    finally:
        capture.release()


def _no_video(video: str, why: str) -> UserError:
    return UserError(
        f"unlabelled={video} is not a video that can be read: {why}.",
        "Check that the file is whole and plays, or convert it, e.g. to .mp4 with H.264.",
    )


def _is_readable(file: str, channels: int) -> bool:
    try:
        image = imread(file, flags=_CV2_FLAGS.get(channels, cv2.IMREAD_UNCHANGED))
        if image is None or min(image.shape[:2]) < _SMALLEST or image.shape[2] != channels:
            return False
        with Image.open(file) as header:
            kind = str(header.format).lower()
            header.verify()
        return kind in IMG_FORMATS | {"jpeg2000"} and (kind != "jpeg" or _is_whole_jpeg(file))
    except Exception:  # a damaged file ends in any of Python's errors
        return False


def _is_whole_jpeg(file: str) -> bool:
    """OpenCV may fill what is missing with grey; Ultralytics decodes what has a wrong end, and drops it on an error."""
    with open(file, "rb") as stream:
        stream.seek(-2, os.SEEK_END)
        if stream.read() == b"\xff\xd9":
            return True
    with Image.open(file) as image:
        image.load()  # fails where data is missing
    return True
