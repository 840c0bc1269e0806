"""The card of a hub's folder: what the weights are, of which data, how good, under which terms, how to load them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from elsa.core import to_json
from elsa.engine import Recipe

TAGS = {"classification": "image-classification", "detection": "object-detection", "segmentation": "image-segmentation"}
MOST_NAMES = 20
BY_TIMM = """\
```python
import timm
import elsa.models  # registers the network's name

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()  # in a hub: "hf-hub:OWNER/{folder}"
transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg, model=model))
```
"""
BY_ELSA = """\
```bash
elsa evaluate {folder}               # over the validation split of the recipe, with --set for other data
elsa predict {folder} IMAGE|FOLDER
```
"""


def card(about: Mapping[str, Any], recipe: Recipe, parameters: int, figures: Mapping[str, Any], folder: str) -> str:
    """The text of README.md.

    Args:
        about: as beside an exported file. figures: names and numbers of an evaluation. folder: the folder's name.
    """
    return "\n".join(_lines(about, recipe, parameters, figures, folder)) + "\n"


def _lines(
    about: Mapping[str, Any], recipe: Recipe, parameters: int, figures: Mapping[str, Any], folder: str
) -> Iterator[str]:
    task = about["task"]
    yield from ("---", "tags:", f"- {TAGS[task]}", "- elsa", f"pipeline_tag: {TAGS[task]}")
    yield from (["library_name: timm"] if task == "classification" else [])
    yield from ("---", f"# {folder}", "")
    yield f"{about['model']} for {task}, {parameters / 1e6:.2f} M parameters. Enhanced Local Self-Attention for Vision"
    yield "Transformer, [arXiv 2112.12786](https://arxiv.org/abs/2112.12786)."
    yield from ("", "## Load", "")
    yield (BY_TIMM.format(folder=folder) if task == "classification" else "") + BY_ELSA.format(folder=folder)
    yield from ("## Data", "", *_data(about, recipe))
    yield from ("", "## Recipe", "", f"[{recipe.file}]({recipe.file}) is the whole recipe; `elsa train {recipe.file}")
    yield "--output DIR` trains by it."
    yield from ("", "## Figures", "", *_figures(figures))
    yield from ("", "## Images", "", "```json", to_json(about["input"], indent=2, ensure_ascii=False), "```")
    yield from ("", "## Limits", "")
    yield "The figures are of the data above; other cameras, other places or other classes may give worse ones."
    yield "No fairness, safety or robustness was measured. Classes that are not listed are never predicted."
    yield from ("", "## Licence", "")
    yield "The code is under Apache-2.0. The weights are under the terms that whoever publishes them writes here; the"
    yield "terms of the training data may bind them."
    yield from ("", "## Origin", "")
    yield f"Checkpoint `{about['checkpoint']['file']}`, sha256 `{about['checkpoint']['sha256']}`;"
    yield ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + "."


def _data(about: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    values, classes = recipe.values, about["classes"] or []
    named = values.get("DATA.DATASET") or values.get("train_dataloader.dataset.dataset.type")
    root = values.get("DATA.ROOT") or values.get("data_root")
    yield f"Trained on `{named}` at `{root}`" + (f", {len(classes)} classes: " if classes else ".")
    if classes:
        rest = len(classes) - MOST_NAMES
        yield ", ".join(json.dumps(str(name), ensure_ascii=False) for name in classes[:MOST_NAMES]) + (
            f" and {rest} more, in the weights' metadata." if rest > 0 else "."
        )


def _figures(figures: Mapping[str, Any]) -> Iterator[str]:
    numbers = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
    if not numbers:
        yield "Not measured: no results.json of `elsa evaluate` lay beside the checkpoint."
        return
    yield from ("| of the validation split | |", "|---|---|")
    yield from (f"| {name} | {value:.4g} |" for name, value in numbers.items())
