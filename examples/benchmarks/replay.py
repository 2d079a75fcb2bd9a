"""No teacher, a live one and a replayed one: accuracy, seconds, and the room that its answers take on the disk.

python examples/benchmarks/replay.py DATA.yaml TEACHER.pt STUDENT.pt out.csv arms=plain,live,replay seeds=0,1
A CSV row a run, continued where it stopped. `live` and `replay` have the same losses, those that need no features;
`live-default` has the default ones. Ultralytics writes a label cache beside the labels: copy a data set first.
"""

import sys
import time
from pathlib import Path

from aquarium import run

from yolokd import api
from yolokd.losses.base import DEFAULT_LOSSES, LOSSES
from yolokd.teachers.cache import Cache
from yolokd.trainer import DistillationTrainer

SHARED = {name: LOSSES[name].gain for name in DEFAULT_LOSSES if "feats" not in LOSSES[name].needs}


def keys_of(arm: str, teacher: str, cache: Path) -> dict:
    """What makes a run this arm."""
    live = {"trainer": DistillationTrainer, "teacher": teacher}
    arms = {"plain": {}, "live-default": live, "live": {**live, "losses": SHARED}}
    return {**arms, "replay": {**live, "losses": SHARED, "teacher_cache": str(cache)}}[arm]


def fill(data: str, teacher: str, cache: Path, imgsz: int) -> None:
    """Store the teacher's answers before the runs, so that none of these pays for it; say what it took."""
    start = time.time()
    print(api.cache(teacher, data, cache, imgsz=imgsz))
    (file,) = cache.glob("*.soft")
    images = len(Cache(file).index)
    print(f"{time.time() - start:.0f} s; {file.stat().st_size / images:.0f} bytes an image")


def main(data: str, teacher: str, student: str, out: str, *options: str) -> None:
    asked = {"arms": "plain,live,replay", "seeds": "0,1", "epochs": "20", "imgsz": "256"}
    asked |= dict(option.split("=", 1) for option in options)
    cache = Path(out).resolve().with_suffix(".teacher_cache")
    if "replay" in asked["arms"].split(","):
        fill(data, teacher, cache, int(asked["imgsz"]))
    for seed in asked["seeds"].split(","):
        for arm in asked["arms"].split(","):
            keys = keys_of(arm, teacher, cache)
            run(arm, keys, seed, (data, student), Path(out), int(asked["epochs"]), int(asked["imgsz"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
