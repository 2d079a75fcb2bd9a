"""Where a training script with `YOLO(...).train(...)` exists already: name our trainer, add a teacher.

python examples/inside_ultralytics.py TEACHER.pt STUDENT.pt DATA.yaml [epochs] [imgsz]
"""

import sys

from ultralytics import YOLO

from yolokd import DistillationTrainer


def main(teacher: str, student: str, data: str, epochs: str = "100", imgsz: str = "640") -> None:
    model = YOLO(student)
    model.train(
        trainer=DistillationTrainer,
        teacher=teacher,
        losses={"cls": 0.5, "box": 5},  # without this line: the default recipe
        data=data,
        epochs=int(epochs),
        imgsz=int(imgsz),
    )
    print(model.val(data=data, imgsz=int(imgsz)).box.map)  # the model is the distilled student, a plain YOLO


if __name__ == "__main__":
    main(*sys.argv[1:])
