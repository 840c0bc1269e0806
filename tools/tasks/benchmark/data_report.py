"""What was measured of loading: lines for people, JSON, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from elsa.core import make_folder, write_json

COLOURS = {"elsa": "#4477aa", "timm": "#cc6677"}


def tell(result: dict[str, Any], folder: Path) -> None:
    for line in lines(result):
        print(line)
    make_folder(folder)
    write_json(folder / "data.json", result)
    draw(result, folder / "data.png")
    print(f"wrote {folder / 'data.json'} and {folder / 'data.png'}")


def lines(result: dict[str, Any]) -> list[str]:
    stages, advice = result["milliseconds"], result["advice"]
    told = [f"per image, one process: {', '.join(f'{name} {value:.2f} ms' for name, value in stages.items())}"]
    told.append(f"one core loads {result['images_per_s_per_core']:.1f} images/s, there are {result['cores']} cores")
    if decoding := result["decoding"]:
        ours, theirs = decoding["elsa"], decoding["timm"]
        told.append(f"from a file to pixels: {ours:.2f} ms, timm's data set {theirs:.2f}, ratio {theirs / ours:.2f}")
    for row in result["loading"]:
        line = f"{row['workers']:>4} loader processes: {row['elsa']:8.1f} images/s"
        if "timm" in row:
            line += f", timm's loader {row['timm']:8.1f}, ratio {row['elsa'] / row['timm']:.2f}"
        told.append(line)
    told.append(f"the model trains {result['model_images_per_s']:.1f} images/s on {result['device']}, without loading")
    told.append(
        f"loader processes: {advice['workers']}; what holds training up: {advice['bottleneck']} ({advice['do']})"
    )
    return told


def draw(result: dict[str, Any], path: Path) -> None:
    """Stages as bars; images per second over the number of processes, beside the model's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    stages = result["milliseconds"]
    left.barh(list(stages)[::-1], list(stages.values())[::-1], color=COLOURS["elsa"])
    left.set_xlabel("milliseconds per image, one process")
    rows = result["loading"]
    for name, colour in COLOURS.items():
        if name in rows[0]:
            counts = [row["workers"] for row in rows]
            right.plot(counts, [row[name] for row in rows], "o-", color=colour, label=f"{name}'s loader")
    right.axhline(result["model_images_per_s"], color="black", linewidth=0.8, label="the model")
    right.set_xlabel("loader processes")
    right.set_xticks([row["workers"] for row in rows])
    right.set_ylabel("images per second")
    right.set_ylim(bottom=0)
    right.legend()
    figure.suptitle(f"{Path(result['recipe']).stem} on {result['device']}")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
