from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.models.rtdetr import RTDETRPredictor
from ultralytics.nn.tasks import RTDETRDetectionModel

from yolokd.compat.exporting import example_images
from yolokd.teachers.detr import DetrTeacher

CPU = torch.device("cpu")


def build(**settings: object) -> DetrTeacher:
    torch.manual_seed(0)
    model = RTDETRDetectionModel("rtdetr-l.yaml", nc=3, verbose=False)
    model.names = {0: "red", 1: "green", 2: "blue"}
    for module in model.modules():  # random weights say the same everywhere; a spread makes the boxes differ
        if isinstance(module, torch.nn.Linear) and module.out_features in (3, 4):
            torch.nn.init.normal_(module.weight, std=0.3)
    return DetrTeacher(model, CPU, "fp32", **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def teacher() -> DetrTeacher:
    return build()


def test_the_answer_has_the_shapes_that_predictions_promise(teacher: DetrTeacher) -> None:
    said = teacher({"img": torch.rand(2, 3, 64, 96)})
    assert said.scores is None
    assert said.boxes is None
    assert said.feats is not None
    assert said.detections is not None
    assert [tuple(f.shape) for f in said.feats] == [(2, 256, 8, 12), (2, 256, 4, 6), (2, 256, 2, 3)]
    assert teacher.info.names == {0: "red", 1: "green", 2: "blue"}
    found = said.detections
    assert found.boxes.shape == (len(found.image), 4)
    assert found.scores.shape == (len(found.image), 3)
    assert found.image.unique().tolist() == [0, 1]
    assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
    assert (found.scores.amax(1) >= 0.05).all()
    assert found.edges.all()
    assert found.bins is None


@pytest.mark.parametrize("which", [0, 1])
def test_against_ultralytics_own_predict_on_a_photograph(teacher: DetrTeacher, tmp_path: Path, which: int) -> None:
    image = cv2.resize(cv2.imread(str(example_images()[which])), (160, 160))  # square: nothing is stretched or padded
    predictor = RTDETRPredictor(overrides={"imgsz": 160, "conf": 0.05, "save": False, "verbose": False, "max_det": 900})
    predictor.args.save_dir = str(tmp_path)
    predictor.setup_model(teacher.model, verbose=False)
    theirs = predictor(image)[0].boxes.data  # a row a query and class
    pixels = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)[None] / 255
    found = build(max_det=300).forward(pixels).detections
    assert found is not None
    row, label = (found.scores > 0.05).nonzero(as_tuple=True)
    ours = torch.cat([found.boxes[row], found.scores[row, label, None], label[:, None].float()], 1)
    assert len(ours) > 20
    assert len(theirs) == min(len(ours), 300)  # Ultralytics keeps 300 rows
    ours = ours[ours[:, 4].argsort(descending=True)][: len(theirs)]
    assert ours[:, 4].tolist() == pytest.approx(theirs[:, 4].tolist(), abs=1e-4)
    apart = (ours[:20, None, :4] - theirs[None, :, :4]).abs().amax(2) + (ours[:20, None, 5] != theirs[None, :, 5]) * 1e3
    assert apart.amin(1).max() < 0.05  # pixels


def test_the_surest_are_kept() -> None:
    images = torch.rand(2, 3, 64, 64)
    many, few = (build(confidence=c, max_det=n).forward(images).detections for c, n in ((0.0, 300), (0.5, 5)))
    assert many is not None
    assert few is not None
    for i in range(2):
        scores = few.scores[few.image == i].amax(1)
        best = many.scores[many.image == i].amax(1).topk(5).values
        assert torch.equal(scores, best[best >= 0.5])


def test_no_gradient_and_no_inference_tensor(teacher: DetrTeacher) -> None:
    said = teacher.forward(torch.rand(1, 3, 64, 64, requires_grad=True))
    assert said.detections is not None
    assert said.feats is not None
    assert not said.detections.boxes.requires_grad
    assert not said.feats[0].requires_grad
    (torch.ones_like(said.feats[0], requires_grad=True) * said.feats[0]).sum().backward()
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not any(m.training for m in teacher.model.modules())


def test_taps_come_beside_the_features(teacher: DetrTeacher) -> None:
    images = torch.rand(1, 3, 64, 64)
    plain = teacher.forward(images)
    teacher.open([3, 21])
    tapped = teacher.forward(images)
    teacher.open()
    assert plain.taps is None
    assert tapped.feats is not None
    assert plain.feats is not None
    assert tapped.taps is not None
    assert all(torch.equal(a, b) for a, b in zip(tapped.feats, plain.feats, strict=True))
    assert [t.shape[1] for t in tapped.taps] == [512, 256]
    assert torch.equal(tapped.taps[1], tapped.feats[0])
    with pytest.raises(ValueError, match="cannot be entered"):
        teacher.open(depth=1)


def test_bf16_is_near_fp32_in_the_encoder_and_gives_float32_detections(teacher: DetrTeacher) -> None:
    images = torch.rand(1, 3, 64, 64)
    exact = teacher.forward(images)
    rough = build()
    rough.to_precision(torch.bfloat16)
    said = rough.forward(images)
    assert said.feats is not None
    assert exact.feats is not None
    assert said.detections is not None
    assert said.feats[0].dtype == torch.bfloat16
    assert said.detections.boxes.dtype == said.detections.scores.dtype == torch.float32
    for a, b in zip(said.feats, exact.feats, strict=True):
        assert (a.float() - b).norm() / b.norm() < 0.05
