"""Token labeling's loss, equal to the published one, and its step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from elsa.engine import ConfigError, Precision, TokenLabelLoss, TokenLabelStep, load_config

FLOAT32 = Precision("cpu", None)


@pytest.mark.parametrize("ground_truth", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 0, 0), (1, 0, 3, 4)])
def test_losses_and_gradients_equal_the_authors(golden, ground_truth, box):
    stored = golden.npz("token_label_loss")
    name = f"gt{int(ground_truth)}_box{''.join(map(str, box))}"
    of_class = golden.tensor("tl/cls", 4, 10).requires_grad_()
    of_patches = golden.tensor("tl/aux", 4, 16, 10).requires_grad_()
    target = golden.tensor("tl/target", 4, 10, 18).softmax(1)
    targets = target[:, :, 0], target[:, :, 1], target[:, :, 2:].transpose(1, 2)
    kept = 1 - (box[2] - box[0]) * (box[3] - box[1]) / 16
    loss = TokenLabelLoss(ground_truth=ground_truth)(of_class, of_patches, targets, kept)
    loss.backward()
    assert loss.item() == pytest.approx(float(stored[f"{name}/loss"]), rel=1e-5)
    for tensor, key in ((of_class, "dcls"), (of_patches, "daux")):
        expected = stored[f"{name}/{key}"]
        assert np.abs(tensor.grad.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_golden_file_has_no_other_case(golden):
    cases = {key.split("/")[0] for key in golden.npz("token_label_loss").files}
    assert cases == {f"gt{gt}_box{box}" for gt in (0, 1) for box in ("0000", "1034")}


def test_the_weights_are_those_of_the_two_terms():
    of_class, of_patches = torch.randn(2, 3), torch.randn(2, 4, 3)
    targets = torch.rand(2, 3).softmax(1), torch.rand(2, 3).softmax(1), torch.rand(2, 4, 3).softmax(2)
    alone = [TokenLabelLoss(*weights)(of_class, of_patches, targets) for weights in ((1, 0), (0, 1), (2, 3))]
    torch.testing.assert_close(alone[2], 2 * alone[0] + 3 * alone[1])


class Recorder(nn.Module):
    """Two logits per token of 2×3 tokens; remembers the box that it was given."""

    def __init__(self):
        super().__init__()
        self.weight, self.box = nn.Parameter(torch.randn(2)), None

    def forward(self, images, mix_box=None, token_logits=False):
        assert token_logits
        self.box = mix_box
        logits = images.mean((1, 2, 3))[:, None] * self.weight
        return logits, logits[:, None].expand(-1, 6, -1)


def step_of(model, draw_box):
    torch.manual_seed(0)
    own, token = torch.eye(2)[[0, 1]], torch.eye(2)[[1, 1]]
    targets = own, token, token[:, None].expand(2, 6, 2)
    step = TokenLabelStep(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        TokenLabelLoss(),
        FLOAT32,
        source=model,
        token_targets=lambda batch, device: targets,
        draw_box=draw_box,
    )
    batch = SimpleNamespace(images=torch.randn(2, 1, 2, 2), targets=torch.tensor([0, 1]))
    return step, batch, targets


@pytest.mark.parametrize(
    ("box", "kept"), [((0, 1, 2, 2), 4 / 6), ((0, 0, 0, 0), 1.0), ((0, 0, 2, 3), 0.0), (None, 1.0)]
)
def test_a_step_gives_the_box_to_the_model_and_its_share_to_the_loss(box, kept):
    model = Recorder()
    step, batch, targets = step_of(model, None if box is None else lambda: torch.tensor(box))
    record = step([batch])
    assert (model.box is None) == (box is None)
    assert box is None or tuple(model.box.tolist()) == box
    expected = TokenLabelLoss()(*model(batch.images, token_logits=True), targets, kept)
    torch.testing.assert_close(record.loss, expected.detach())
    assert record.images == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["TOKENS.ENABLED=true"], "TOKENS.ENABLED mixes tokens: AUG.MIXUP and AUG.CUTMIX must be 0"),
        (["TOKENS.LABELS=somewhere"], "TOKENS.LABELS somewhere has no effect unless TOKENS.ENABLED is true"),
        (["TOKENS.MIX=-1"], "TOKENS.MIX must be at least 0"),
        (["TOKENS.LABEL=x"], "did you mean TOKENS.LABELS"),
        (["TOKEN.ENABLED=true"], "TOKENS.ENABLED"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(root, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(root / "configs/classification/elsa_swin_tiny.yaml", overrides)
