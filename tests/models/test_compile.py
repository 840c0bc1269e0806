"""torch.compile of the networks: one graph of each, none more for other sizes, the same numbers as without."""

import copy
import functools

import pytest
import timm
import torch

from elsa.engine import TokenLabelLoss
from elsa.engine.compiling import compile_parts
from elsa.models.elsa import ELSABlock
from elsa.models.layers import WindowBlock

SMALL_SWIN = dict(depths=(1, 2), embed_dim=16, num_heads=(1, 2))
SMALL_VOLO = dict(layers=(1, 1, 1, 1), embed_dims=(16, 32), num_heads=(1, 2), stem_hidden_dim=8)
# Made small, the others differ from these in numbers alone.
NAMES = ("elsa_swin_base", "elsa_volo_d1", "swin_tiny_patch4_window7_224", "volo_d1_224")


def small(name):
    """The network with its own kinds of blocks, few of them; windows of the last stage are shifted."""
    common = dict(num_classes=5, img_size=64, drop_path_rate=0.3)
    if name.startswith("elsa_swin"):
        return timm.create_model(name, attention=("elsa", "window"), **SMALL_SWIN, **common).train()
    if name.startswith("swin"):
        return timm.create_model(name, **SMALL_SWIN, **common).train()
    if name.startswith("elsa_volo"):
        return timm.create_model(name, **SMALL_VOLO, **common).train()
    model = timm.create_model(name, **common)
    model.network = torch.nn.ModuleList(  # timm's VOLO has fixed depths
        part[:1] if isinstance(part, torch.nn.Sequential) else part for part in model.network
    )
    return model.train()


def computed(network, *inputs):
    """Output and gradients, with stochastic depth of the same random numbers."""
    torch.manual_seed(3)
    out = network(*inputs)
    out = out if isinstance(out, torch.Tensor) else out[0]  # timm's VOLO gives more while it trains
    network.zero_grad()
    out.square().sum().backward()
    return [out.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_one_graph(name, counter):
    network, x = small(name), torch.randn(2, 3, 64, 64)
    expected = computed(network, x)
    compile_parts([network], backend=counter)
    assert all(torch.equal(a, b) for a, b in zip(computed(network, x), expected, strict=True))
    assert counter.graphs == 1


def test_smaller_last_batches_of_an_evaluation_share_a_graph(counter):
    network = small("elsa_swin_nano")
    compile_parts([network], backend=counter)
    network(torch.randn(4, 3, 64, 64)).sum().backward()
    assert counter.since() == 1
    network.eval()
    with torch.no_grad():
        network(torch.randn(6, 3, 64, 64))
        assert counter.since() == 1
        with torch.compiler.set_stance("fail_on_recompile"):
            for batch in (6, 5, 3, 2):
                network(torch.randn(batch, 3, 64, 64))
    network.train()
    with torch.compiler.set_stance("fail_on_recompile"):
        network(torch.randn(4, 3, 64, 64)).sum().backward()


@pytest.mark.parametrize(
    "block",
    [
        functools.partial(ELSABlock, group_width=4, kernel_size=3),
        functools.partial(WindowBlock, window_size=3, shifted=True, shift_small_maps=True),
    ],
    ids=("elsa", "window"),
)
def test_blocks_take_maps_of_any_size(block, counter):
    block = block(16, 2, mlp_ratio=1, drop_path=0.3)
    compile_parts([block], dynamic=True, backend=counter)
    block(torch.randn(2, 9, 13, 16)).sum().backward()
    assert counter.graphs == 1
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in ((2, 14, 10), (3, 11, 20), (4, 7, 25)):
            x = torch.randn(*size, 16)
            torch.manual_seed(3)
            found = block(x)
            with torch.compiler.set_stance("force_eager"):
                torch.manual_seed(3)
                assert torch.equal(found, block(x))


def test_token_labels_and_any_box_are_one_graph(counter):
    network, criterion = small("elsa_volo_nano"), TokenLabelLoss(ground_truth=True)
    plain = copy.deepcopy(network)
    compile_parts([network], backend=counter)
    compile_parts([criterion], backend="eager")
    x, own, tokens = torch.randn(4, 3, 64, 64), torch.eye(5)[:4], torch.rand(4, 16, 5).softmax(-1)
    for box, kept in (((0, 0, 1, 1), 0.75), ((1, 0, 2, 2), 0.5), ((0, 0, 0, 0), 1.0)):
        losses = []
        for model, loss in ((network, criterion), (plain, TokenLabelLoss(ground_truth=True))):
            torch.manual_seed(3)
            losses.append(loss(*model(x, mix_box=torch.tensor(box), token_logits=True), (own, own, tokens), kept))
        torch.testing.assert_close(*losses)
    assert counter.graphs == 1


def test_blocks_are_computed_again_with_the_same_stochastic_depth(counter):
    network, x = small("elsa_swin_nano"), torch.randn(2, 3, 64, 64)
    expected = computed(network, x)
    network.set_grad_checkpointing()
    compile_parts([network], backend="aot_eager")
    for found, gradient in zip(computed(network, x), expected, strict=True):
        torch.testing.assert_close(found, gradient)


def test_the_compiler_gives_the_same_losses():
    """Trained by the real compiler, forward and backward pass, with random numbers for stochastic depth."""
    torch.manual_seed(0)
    x, losses = torch.randn(4, 6, 5, 8), {}
    block = ELSABlock(8, 2, mlp_ratio=1, drop_path=0.4, group_width=4, kernel_size=3, lam=1)
    for how, network in (("eager", block), ("compiled", copy.deepcopy(block))):
        if how == "compiled":
            compile_parts([network])
        optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
        torch.manual_seed(1)
        losses[how] = []
        for _ in range(4):
            loss = (network(x) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[how].append(loss.item())
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-5)
    assert losses["eager"][-1] < losses["eager"][0]
