import pytest
import torch
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils.loss import v8DetectionLoss

from tests.helpers import grid
from tests.test_criterion import detector
from yolokd.compat import detr
from yolokd.compat.detr import assign, detr_info, encoder_levels, freeze_detr, lower_encoder, queries


@pytest.fixture(scope="module")
def model() -> RTDETRDetectionModel:
    torch.manual_seed(0)
    return freeze_detr(RTDETRDetectionModel("rtdetr-l.yaml", nc=3, verbose=False))


def test_the_assigner_has_the_settings_of_the_detection_loss() -> None:
    loss = v8DetectionLoss(detector("yolo11n.yaml", 0))
    assert (loss.assigner.topk, loss.assigner.alpha, loss.assigner.beta) == (detr.TOPK, detr.ALPHA, detr.BETA)
    assert loss.assigner.topk2 == detr.TOPK


def test_assigned_as_the_detection_loss_assigns() -> None:
    anchors, strides = grid()
    torch.manual_seed(1)
    scores, centre = torch.rand(2, 20, 3), anchors + torch.randn(2, 20, 2)
    boxes = torch.cat([centre - 8, centre + 8], -1)
    targets = torch.tensor([[[2.0, 2, 20, 22], [14, 12, 31, 30]], [[5, 5, 25, 25], [0, 0, 0, 0]]])
    labels = torch.tensor([[2, 0], [1, 0]])
    valid = torch.tensor([[True, True], [True, False]])
    row, aligned = assign(scores, boxes, anchors, strides, labels, targets, valid)
    loss = v8DetectionLoss(detector("yolo11n.yaml", 0))
    loss.assigner.stride = [8, 16]
    _, _, wanted, foreground, index = loss.assigner(
        scores, boxes, anchors, labels[..., None], targets, valid[..., None].float()
    )
    assert torch.equal(row >= 0, foreground)
    assert torch.equal(row[foreground], index[foreground])
    assert torch.equal(aligned, wanted.sum(-1))
    assert row[0].max() == 1  # both boxes were given away
    assert row[1].max() == 0  # padding was not


def test_the_levels_of_an_rtdetr(model: RTDETRDetectionModel) -> None:
    info = detr_info(model)
    assert encoder_levels(model) == [21, 24, 27]
    assert info.strides == (8, 16, 32)
    assert info.widths == (256, 256, 256)
    assert info.names == {0: "0", 1: "1", 2: "2"}
    assert (info.reg_max, info.end2end, info.hidden) == (1, False, ())


def test_the_queries_are_those_that_ultralytics_decodes(model: RTDETRDetectionModel) -> None:
    with torch.no_grad():
        output = model(torch.rand(2, 3, 64, 96))
    boxes, scores = queries(output, 64, 96)
    best = scores.flatten(1).topk(5).values
    assert torch.equal(best, output[0][:, :5, 4])
    x, y, w, h = (output[0][0, 0, :4] * torch.tensor([96.0, 64, 96, 64])).tolist()
    query = scores[0].amax(1).argmax()
    assert boxes[0, query].tolist() == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], abs=1e-3)


def test_the_decoder_stays_in_float32(model: RTDETRDetectionModel) -> None:
    for p in model.model[-1].parameters():
        p.data += torch.rand_like(p) * 1e-3  # many are round numbers, which bfloat16 holds
    before = {name: p.clone() for name, p in model.model[-1].named_parameters()}
    lower_encoder(model, torch.bfloat16)
    assert all(torch.equal(p, before[name]) for name, p in model.model[-1].named_parameters())
    with torch.no_grad():
        boxes, _ = queries(model(torch.rand(1, 3, 64, 64).bfloat16()), 64, 64)
    assert boxes.dtype == torch.float32
    assert {p.dtype for p in model.model[-1].parameters()} == {torch.float32}
    assert {p.dtype for layer in model.model[:-1] for p in layer.parameters()} == {torch.bfloat16}
    lower_encoder(model, torch.float32)
