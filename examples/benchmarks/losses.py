"""Every loss alone at its balanced gain, and combinations, beside the rows of aquarium.py; a CSV row a run, continued.

python examples/benchmarks/losses.py DATA.yaml TEACHER.pt STUDENT.pt out.csv seeds=0,1 [arms=cls,pkd,cls+box+pkd]
An arm is losses joined by +, at gains that are set to ``balance`` (0.3) each; plain and native are aquarium.py's arms,
so that one CSV holds them all. Several processes may work on one CSV: each takes runs that nobody has begun.
"""

import os
import sys
from pathlib import Path

from aquarium import keys_of, run

from yolokd.losses.base import LOSSES
from yolokd.trainer import DistillationTrainer

TOGETHER = ("cls+box+cwd", "cls+box+sl2", "cls+box+at")


def claimed(claim: Path) -> bool:
    """Take a run for this process, unless one that is alive has it; a run whose row is there ends at once anyway."""
    try:
        with claim.open("x") as file:  # atomic
            file.write(str(os.getpid()))
        return True
    except FileExistsError:
        owner = claim.read_text()
        alive = owner.isdecimal() and Path(f"/proc/{owner}").exists()
        if alive and int(owner) != os.getpid():
            return False
        claim.write_text(str(os.getpid()))  # it was killed there
        return True


def main(data: str, teacher: str, student: str, out: str, *options: str) -> None:
    asked = {"arms": ",".join(["plain", "native", *LOSSES, *TOGETHER]), "seeds": "0,1", "epochs": "20", "imgsz": "256"}
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
            if not claimed(claims / f"{name}-{seed}"):
                print(f"{name}, seed {seed}: another process has it", flush=True)
                continue
            run(name, keys, seed, (data, student), Path(out), int(asked["epochs"]), int(asked["imgsz"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
