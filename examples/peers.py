"""Train models that teach one another, then each by itself: which of them gained?

python examples/peers.py A.yaml,B.yaml DATA.yaml [epochs] [imgsz]
"""

import sys

import yolokd


def main(peers: str, data: str, epochs: str = "100", imgsz: str = "640") -> None:
    keys = {"data": data, "epochs": int(epochs), "imgsz": int(imgsz)}
    together = yolokd.distill(peers=peers, name="peers", **keys)
    marks = []
    for model, peer in zip(peers.split(","), together.peers, strict=True):
        alone = yolokd.distill(model, losses="none", name="alone", **keys)
        marks.append((peer.save_dir.name, *(run.metrics["metrics/mAP50-95(B)"] for run in (peer, alone))))
    for name, with_peers, without in marks:
        print(f"{name:<16} mAP50-95 {with_peers:.3f} among peers, {without:.3f} alone")


if __name__ == "__main__":
    main(*sys.argv[1:])
