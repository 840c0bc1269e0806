"""What a training leaves in its folder, without the training."""

from __future__ import annotations

import json
from pathlib import Path


def write_run(folder: Path, task: str, metric: str, scores: list[float], finished: bool = True) -> Path:
    """Twenty steps an evaluation, five a line; images/s 100, 110, …"""
    folder.mkdir(parents=True)
    steps = range(5, 20 * len(scores) + 1, 5)
    lines = [
        {"kind": "train", "step": step, "elapsed_s": step * 36.0, "epoch": step / 20, "loss": 5 / step, "lr": 1e-3,
         "images_per_s": 100.0 + 2 * step, "data_wait": 0.25, "memory_gb": step / 10}
        for step in steps
    ]  # fmt: skip
    lines += [{"kind": "eval", "step": 20 * n, "epoch": n, metric: score, "loss": None}
              for n, score in enumerate(scores, 1)]  # fmt: skip
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "plan.json").write_text(json.dumps({"total_steps": 100}))
    if task == "classification":
        (folder / "config.yaml").write_text("MODEL:\n  NAME: elsa_swin_tiny\n")
    else:
        scope = {"detection": "mmdet", "segmentation": "mmseg"}[task]
        (folder / "config.py").write_text(
            f"default_scope = {scope!r}\nmodel = dict(backbone=dict(type='X'), type='MaskRCNN')\n"
            f"run = dict(metric={metric!r})\nraise SystemExit('it was executed')\n"
        )
    if finished:
        (folder / "summary.json").write_text(json.dumps({"metric": metric}))
    return folder
