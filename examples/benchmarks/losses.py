"""Every loss alone at its balanced gain, and combinations, beside the rows of aquarium.py; a CSV row a run, continued.

python examples/benchmarks/losses.py DATA.yaml TEACHER.pt STUDENT.pt out.csv seeds=0,1 [arms=cls,pkd,cls+box+pkd]
An arm is losses joined by +, at gains that are set to ``balance`` (0.3) each; plain and native are aquarium.py's arms,
so that one CSV holds them all. Several processes may work on one CSV: each takes runs that nobody has begun.
"""

import sys
from pathlib import Path

from aquarium import keys_of, run

from yolokd.losses.base import LOSSES
from yolokd.trainer import DistillationTrainer


def main(data: str, teacher: str, student: str, out: str, *options: str) -> None:
    asked = {"arms": ",".join(["plain", "native", *LOSSES]), "seeds": "0,1", "epochs": "20", "imgsz": "256"}
    asked |= {"balance": "0.3"} | dict(option.split("=", 1) for option in options)
    claims = Path(f"{out}.claims")
    claims.mkdir(exist_ok=True)
    for seed in asked["seeds"].split(","):
        for arm in asked["arms"].split(","):
            if arm in ("plain", "native"):
                name, keys = arm, keys_of(arm, teacher)
            else:
                name = f"{arm}@{asked['balance']}"
                keys = {"trainer": DistillationTrainer, "teacher": teacher, "losses": arm.replace("+", ",")}
                keys |= {"balance": float(asked["balance"])}
            claim = claims / f"{name}-{seed}"
            try:
                claim.touch(exist_ok=False)  # atomic: another process has it, or it stopped there
            except FileExistsError:
                continue
            try:
                run(name, keys, seed, (data, student), Path(out), int(asked["epochs"]), int(asked["imgsz"]))
            except BaseException:
                claim.unlink()  # interrupted: to be run again
                raise


if __name__ == "__main__":
    main(*sys.argv[1:])
