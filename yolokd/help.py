"""What ``yolokd --help``, ``yolokd MODE --help`` and ``yolokd losses`` print."""

from __future__ import annotations

from collections.abc import Mapping

from yolokd.keys import COMPARE_KEYS, OUR_KEYS, PEERS, STEP_KEYS

# Mode: what it does, the keys it needs, examples.
MODES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "train": (
        "distil: train the student under the teacher",
        "teacher= student= data=, or peers= data=, and any of yolokd's and Ultralytics' train keys; or resume=",
        (
            "yolokd train teacher=yolo11x.pt student=yolo11n.pt data=coco8.yaml epochs=100 imgsz=640",
            "yolokd train teacher=yolo11x.pt student=yolo11n.yaml data=my.yaml losses=cls:0.5,cwd cwd.temperature=2",
            "yolokd train recipe=mine.yaml epochs=50",
            "yolokd train teacher=yolo11x.pt via=yolo11m.pt,yolo11s.pt student=yolo11n.pt data=my.yaml",
            "yolokd train teacher=born-again generations=2 student=yolo11n.pt data=my.yaml",
            "yolokd train peers=yolo11n.yaml,yolo11s.yaml data=my.yaml",
            "yolokd train teacher=best_x.pt student=yolo11n.pt data=few_labels.yaml unlabelled=images/,clip.mp4",
            "yolokd train resume=runs/detect/train/weights/last.pt",
        ),
    ),
    "val": (
        "mAP by Ultralytics and by pycocotools, side by side",
        "model= data= [teacher= annotations= split= backend= student_view=] and Ultralytics' val keys",
        (
            "yolokd val model=best.pt data=coco8.yaml",
            "yolokd val model=best.pt data=coco.yaml teacher=yolo11x.pt annotations=instances_val2017.json",
        ),
    ),
    "export": (
        "edge formats, each loaded again and compared with the PyTorch model",
        "model= format= [data=] and Ultralytics' export keys",
        ("yolokd export model=best.pt format=onnx,openvino,torchscript,ncnn data=coco8.yaml",),
    ),
    "checks": (
        "before training: does the pair work, is the teacher better on your data, what does it cost",
        "teacher= student= data= and the keys of train; without keys: what is installed here",
        ("yolokd checks teacher=yolo11x.pt student=yolo11n.pt data=my.yaml imgsz=640",),
    ),
    "cache": (
        "run the teacher once over the training images, for train teacher_cache=",
        "teacher= data= [teacher_cache= imgsz= teacher_imgsz= teacher_names= teacher_boxes= device= workers= batch= "
        "fraction= unlabelled= trust=]",
        ("yolokd cache teacher=yolo11x.pt data=my.yaml teacher_cache=answers imgsz=640",),
    ),
    "compare": (
        "was it worth it: every arm with every seed, judged on images that training never saw",
        "teacher= student= data= [arms= seeds= eval_split= jobs= robustness= backend=] and train's keys; or resume=",
        (
            "yolokd compare teacher=yolo11x.pt student=yolo11n.pt data=my.yaml seeds=5 name=worth",
            "yolokd compare resume=runs/detect/worth",
        ),
    ),
    "report": (
        "a comparison or a training as one HTML file",
        "the folder of a comparison, or of a run",
        ("yolokd report runs/detect/worth",),
    ),
    "losses": ("the table of losses, with papers and options", "no keys", ("yolokd losses",)),
    "demo": ("all of it on generated images, offline, in minutes", "all keys may be left out", ("yolokd demo",)),
}

# What a loss needs, in words.
_NEEDS = {
    "scores": "class logits",
    "boxes": "box logits",
    "feats": "features",
    "truth": "ground truth",
    "reenter": "the teacher's head",
}


def overview() -> str:
    """The text of ``yolokd --help``; reads nothing of torch, so that it comes at once."""
    width = max(map(len, MODES))
    modes = [f"  {name:<{width}}  {summary}" for name, (summary, _, _) in MODES.items()]
    examples = [f"  {MODES[name][2][0]}" for name in ("train", "val", "export", "checks")]
    return "\n".join(
        [
            "yolokd MODE key=value ...        train a small Ultralytics detector under a large one",
            "",
            "Modes (`yolokd MODE --help` says more, `yolokd version` the version)",
            *modes,
            "",
            "Keys of yolokd; every key of `yolo train` works beside them (`yolo cfg` lists those)",
            *_table(OUR_KEYS),
            "",
            "Examples",
            *examples,
        ]
    )


def of_mode(mode: str) -> str:
    """The text of ``yolokd MODE --help``."""
    summary, keys, examples = MODES[mode]
    lines = [f"yolokd {mode}: {summary}", "", f"Keys: {keys}"]
    of_one = {key: text for key, text in OUR_KEYS.items() if key not in (*STEP_KEYS, PEERS)}
    if mode in ("train", "checks"):
        lines += ["", *_table(OUR_KEYS if mode == "train" else of_one), "", "Losses", losses_list()]
    if mode == "compare":
        del of_one["recipe"]  # an arm there
        lines += ["", *_table({**of_one, **COMPARE_KEYS})]
    return "\n".join([*lines, "", "Examples", *(f"  {example}" for example in examples)])


def losses_table() -> str:
    """The table of losses: name, family, gain, what it needs, options, paper, and what it gained where we measured."""
    from yolokd.losses.base import DEFAULT_LOSSES, LOSSES
    from yolokd.losses.measured import HOW, MEASURED, in_words

    blocks = []
    for info in LOSSES.values():
        options = ", ".join(f"{info.name}.{option}={default}" for option, default in info.options.items()) or "none"
        needs = [word for need, word in _NEEDS.items() if need in info.needs]
        needs += [f"{info.batch} images a batch"] if info.batch > 1 else []
        needs += [f"{info.classes} shared classes"] if info.classes > 1 else []
        marks = ["on by default"] if info.name in DEFAULT_LOSSES else []
        marks += ["works with taps="] if info.taps else []
        blocks.append(
            f"  {info.name:<8} {info.family:<12} gain {info.gain:<5g} needs {', '.join(needs)}"
            f"{'   ' if marks else ''}{', '.join(marks)}\n"
            f"           {info.summary}\n"
            f"           {info.paper}\n"
            f"           {info.link}   options: {options}\n"
            f"           alone, on our benchmark: {in_words(MEASURED.get(info.name, ()))}"
        )
    return "\n".join([*blocks, "", *HOW])


def losses_list() -> str:
    """The losses, a line each."""
    from yolokd.losses.base import LOSSES

    lines = _table({name: info.summary for name, info in LOSSES.items()})
    return "\n".join([*lines, "  `yolokd losses` says more: papers, needs, options, and what each gained"])


def _table(rows: Mapping[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [f"  {key:<{width}}  {text}" for key, text in rows.items()]
