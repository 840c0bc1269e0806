"""Checkpoints: what is read, which weights are chosen, what does not fit, and that nothing pickled is run."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resize_rel_pos_bias_table
from torch import nn

from elsa.models import CheckpointError, load_pretrained, read_checkpoint
from elsa.models.pretrained import select_weights


class TouchFile:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def tiny_model(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def wrapped(model, prefix="module."):
    return {f"{prefix}{name}": value for name, value in model.state_dict().items()}


def timm_file(model, ema=None, prefix="module."):
    """The dictionary that timm 0.4 writes."""
    content = {
        "epoch": 309,
        "arch": "elsa_swin_base",
        "state_dict": wrapped(model, prefix),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]},
        "args": argparse.Namespace(model="elsa_swin_base", lr=0.001, aa=None, betas=[0.9, 0.999], amp=True),
        "version": 2,
        "metric": np.float64(82.7),
    }
    if ema is not None:
        content["state_dict_ema"] = wrapped(ema, prefix)
    return content


def same_weights(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def rewritten(path, old, new):
    """The torch file with other bytes in its pickle."""
    target = path.with_name(f"rewritten_{path.name}")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert old in content
                content = content.replace(old, new)
            copy.writestr(name, content)
    return target


# ---- reading


@pytest.mark.parametrize("zipped", [True, False], ids=["zip file", "file of old torch"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_published_classification_file(tmp_path, prefix, zipped):
    source, path = tiny_model(1), tmp_path / "model_best.pth.tar"
    torch.save(timm_file(source, prefix=prefix), path, _use_new_zipfile_serialization=zipped)
    content = read_checkpoint(path)
    assert content["args"].model == "elsa_swin_base"
    assert content["metric"] == 82.7
    model = tiny_model(2)
    report = load_pretrained(model, path)
    assert same_weights(model, source)
    total = len(model.state_dict())
    assert (report.entry, report.loaded, report.total, report.ignored) == ("state_dict", total, total, ())
    assert f"{total} of {total}" in str(report)
    assert "'state_dict'" in str(report)


NUMBERS = [np.float64(1.5), np.float32(1.5), np.float16(1.5), np.int64(3), np.int32(3), np.uint8(3), np.bool_(True)]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.dtype.name)
def test_numpy_scalars_are_read(tmp_path, number):
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": tiny_model().state_dict(), "metric": number}, path)
    read = read_checkpoint(path)["metric"]
    assert type(read) is type(number)
    assert read == number


@pytest.mark.parametrize("written_with", ["numpy.core", "numpy._core"], ids=["numpy 1", "numpy 2"])
def test_numpy_scalars_of_either_numpy_are_read(tmp_path, written_with):
    """Published files were written with NumPy 1, which calls the module numpy.core."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": tiny_model().state_dict(), "metric": np.float64(1.5)}, path)
    with zipfile.ZipFile(path) as archive:
        found = re.search(rb"numpy\.\w*core", archive.read(f"{path.stem}/data.pkl"))[0]
    assert read_checkpoint(rewritten(path, found, written_with.encode()))["metric"] == 1.5


def test_our_own_forms(tmp_path):
    source = tiny_model(1)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    torch.save(source.state_dict(), tmp_path / "bare.pt")
    torch.save({"model": source.state_dict(), "optimizer": {}, "epoch": 3}, tmp_path / "last.pt")
    for name, entry in (("weights.safetensors", ""), ("bare.pt", ""), ("last.pt", "model")):
        model = tiny_model(2)
        assert load_pretrained(model, tmp_path / name).entry == entry
        assert same_weights(model, source), name


def test_a_dictionary_already_read_can_be_given():
    source, model = tiny_model(1), tiny_model(2)
    load_pretrained(model, {"state_dict": wrapped(source)})
    assert same_weights(model, source)


def test_a_whole_model_of_the_registry(tmp_path):
    source, path = timm.create_model("elsa_swin_nano", num_classes=3, ape=True, img_size=64), tmp_path / "nano.pth"
    torch.save(timm_file(source), path)
    model = timm.create_model("elsa_swin_nano", num_classes=3, ape=True, img_size=64)
    report = load_pretrained(model, str(path))
    assert report.loaded == len(source.state_dict())
    assert same_weights(model, source)


# ---- which weights


@pytest.mark.parametrize("with_ema", [True, False])
@pytest.mark.parametrize("weights", ["auto", "model", "ema"])
@pytest.mark.parametrize("names", [("state_dict", "state_dict_ema"), ("model", "model_ema")], ids=["timm", "ours"])
def test_choice_of_weights_is_made_and_reported(weights, with_ema, names):
    plain, average, model = tiny_model(1), tiny_model(2), tiny_model(3)
    content = {names[0]: wrapped(plain), "epoch": 1}
    if with_ema:
        content[names[1]] = wrapped(average)
    if weights == "ema" and not with_ema:
        with pytest.raises(CheckpointError, match=f"{names[1]}.*{names[0]}, epoch"):
            load_pretrained(model, content, weights=weights)
        return
    report = load_pretrained(model, content, weights=weights)
    expects_ema = with_ema and weights != "model"
    assert report.entry == names[expects_ema]
    assert repr(report.entry) in str(report)
    assert same_weights(model, average if expects_ema else plain)


def test_unknown_choice_of_weights():
    with pytest.raises(ValueError, match=r"auto.*model.*ema.*'EMA'"):
        select_weights({"model": {}}, "EMA")


def test_an_empty_average_is_not_taken():
    """Some trainers write the entry although they keep no average."""
    entry, _ = select_weights({"state_dict": tiny_model().state_dict(), "state_dict_ema": None})
    assert entry == "state_dict"


def test_a_name_that_only_looks_wrapped_is_kept():
    tensors = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert select_weights(dict(tensors))[1].keys() == tensors.keys()


def swin(**changes):
    torch.manual_seed(0)
    small = dict(num_classes=3, depths=(1, 1, 2, 1), embed_dim=24, num_heads=(1, 2, 4, 8))
    model = timm.create_model("swin_tiny_patch4_window7_224", **{**small, **changes}).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def as_its_authors(state):
    """The file of Swin Transformer's authors: patches are merged a stage earlier, the head has no layer within."""
    merging = {name: f"layers.{int(name[7]) - 1}.{name[9:]}" for name in state if ".downsample." in name}
    theirs = {merging.get(name, name).replace("head.fc.", "head."): value for name, value in state.items()}
    return {**theirs, "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}


def test_a_plain_swin_starts_from_its_authors_weights():
    source = swin()
    model, image = swin(), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report = load_pretrained(model, {"model": as_its_authors(source.state_dict())})
    assert report.loaded == report.total and report.resized == ()
    with torch.no_grad():
        assert torch.equal(model(image), source(image))


def test_a_plain_swin_of_another_window_says_what_it_resized():
    report = load_pretrained(swin(), swin(window_size=12, img_size=384).state_dict())
    assert "layers.0.blocks.0.attn.relative_position_bias_table 529×1 → 169×1" in report.resized


def test_a_plain_swin_of_another_depth_is_told_by_name():
    with pytest.raises(CheckpointError, match=r"unexpected: layers\.2\.blocks\.2"):
        load_pretrained(swin(), as_its_authors(swin(depths=(1, 1, 4, 1)).state_dict()))


@pytest.mark.parametrize("entry", ["model_state_dict", "teacher"])
def test_entries_of_other_trainers(entry):
    source, model = tiny_model(1), tiny_model(2)
    assert load_pretrained(model, {entry: wrapped(source), "student": {}, "epoch": 3}).entry == entry
    assert same_weights(model, source)


# ---- what does not fit


def changed_state(model, **changes):
    state = {**model.state_dict(), **changes}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"0.weight": None}, ["1 missing", "0.weight"]),
        ({"0.weight": None, "3.bias": None}, ["2 missing", "0.weight", "3.bias"]),
        ({"extra": torch.ones(1)}, ["1 unexpected", "extra"]),
        ({"3.bias": torch.ones(7)}, ["1 of another shape", "3.bias", "(7,)", "(3,)"]),
        (
            {"0.weight": None, "extra": torch.ones(1), "3.bias": torch.ones(7)},
            ["missing", "unexpected", "another shape"],
        ),
        ({f"extra.{i}": torch.ones(1) for i in range(20)}, ["20 unexpected", "extra.0", "14 more"]),
    ],
    ids=["missing", "two missing", "unexpected", "misshaped", "all three", "many"],
)
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path, changes, said):
    path, model, untouched = tmp_path / "wrong.pth", tiny_model(2), tiny_model(2)
    torch.save(changed_state(tiny_model(1), **changes), path)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(model, path)
    for word in (*said, str(path)):
        assert word in str(caught.value)
    assert same_weights(model, untouched)


def test_another_number_of_classes_names_the_head():
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(tiny_model(classes=3), tiny_model(classes=5).state_dict())
    for word in ("3.weight", "(5, 4)", "(3, 4)", "3.bias"):
        assert word in str(caught.value)


def test_another_model():
    other = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, depths=(1, 1, 1, 1)).state_dict()
    with pytest.raises(CheckpointError, match=r"does not fit ELSASwin.*missing.*unexpected"):
        load_pretrained(timm.create_model("elsa_swin_nano"), other)


def test_ignored_tensors_stay_as_they_were():
    model, head = tiny_model(2, classes=3), tiny_model(2, classes=3)[3].state_dict()
    source = tiny_model(1, classes=5)
    report = load_pretrained(model, source.state_dict(), ignore=["3.*"])
    assert report.ignored == ("3.bias", "3.weight")
    assert report.loaded == report.total - 2
    assert "3.weight" in str(report)
    assert torch.equal(model[0].weight, source[0].weight)
    assert torch.equal(model[1].running_mean, source[1].running_mean)
    assert all(torch.equal(value, model[3].state_dict()[key]) for key, value in head.items())


def test_ignored_tensors_may_be_absent_but_others_may_not():
    model = tiny_model(2)
    load_pretrained(model, changed_state(tiny_model(1), **{"3.weight": None, "3.bias": None}), ignore=["3.*"])
    with pytest.raises(CheckpointError, match=r"1 missing: 0\.weight"):
        load_pretrained(model, changed_state(tiny_model(1), **{"0.weight": None}), ignore=["3.*"])
    with pytest.raises(CheckpointError, match=r"1 unexpected: 4\.weight"):
        load_pretrained(model, changed_state(tiny_model(1), **{"4.weight": torch.ones(1)}), ignore=["3.*"])


def test_an_ignore_pattern_must_match_something():
    with pytest.raises(CheckpointError, match=r"'haed\.\*'"):
        load_pretrained(tiny_model(), tiny_model().state_dict(), ignore=["haed.*"])


# ---- what cannot be read


@pytest.mark.parametrize("place", ["in the weights", "beside them"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip file", "file of old torch"])
def test_pickled_code_is_refused_and_not_run(tmp_path, zipped, place):
    path, touched = tmp_path / "evil.pth", tmp_path / "touched"
    state, evil = wrapped(tiny_model(1)), TouchFile(touched)
    content = {"state_dict": {**state, "x": evil}} if place == "in the weights" else {"state_dict": state, "args": evil}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for read in (read_checkpoint, lambda path: load_pretrained(tiny_model(), path)):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        for word in (str(path), "not executed", "--trust-checkpoint", "open"):
            assert word in str(caught.value)
    assert not touched.exists()
    read_checkpoint(path, trust=True)
    assert touched.exists()


def test_trusted_file_loads(tmp_path):
    path, touched, model, source = tmp_path / "odd.pth", tmp_path / "touched", tiny_model(2), tiny_model(1)
    torch.save({"state_dict": wrapped(source), "args": TouchFile(touched)}, path)
    load_pretrained(model, path, trust=True)
    assert same_weights(model, source)


def test_a_bare_pickle_with_code_is_refused_and_not_run(tmp_path):
    path, touched = tmp_path / "evil.pkl", tmp_path / "touched"
    path.write_bytes(pickle.dumps({"state_dict": TouchFile(touched)}, protocol=2))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not touched.exists()


def test_refusal_names_the_class_that_is_not_allowed(tmp_path):
    path = tmp_path / "odd.pth"
    torch.save({"state_dict": tiny_model().state_dict(), "metric": pytest.approx(1)}, path)
    with pytest.raises(CheckpointError, match="ApproxScalar"):
        read_checkpoint(path)


@pytest.mark.parametrize("form", ["zip.pth", "old.pth", "weights.safetensors"])
def test_truncated_files(tmp_path, form):
    path, state = tmp_path / form, tiny_model().state_dict()
    if form.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=form == "zip.pth")
    whole = path.read_bytes()
    for length in sorted({0, 1, 2, 7, 8, 9, 100, len(whole) - 1, *range(0, len(whole), len(whole) // 60)}):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value), length
        assert "truncated" in str(caught.value), length


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>", b"version https://git-lfs", b"\x00" * 300, b"\xff" * 300]
)
def test_files_of_another_kind(tmp_path, suffix, content):
    path = tmp_path / f"download{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "pickled code" not in str(caught.value)


@pytest.mark.parametrize("neighbour", ["last.pt", "best.safetensors", "released.pth", "model_best.pth.tar"])
def test_missing_file_names_what_is_there(tmp_path, neighbour):
    (tmp_path / neighbour).touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "bset.pt")
    assert str(tmp_path / "bset.pt") in str(caught.value)
    assert neighbour in str(caught.value)
    assert "notes.txt" not in str(caught.value)


def test_missing_folder_and_folder_instead_of_a_file(tmp_path):
    for path in (tmp_path / "nowhere" / "best.pt", tmp_path):
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            read_checkpoint(path)


@pytest.mark.parametrize(("content", "kind"), [(torch.ones(3), "Tensor"), ([1, 2], "list"), (None, "NoneType")])
def test_not_a_dictionary(tmp_path, content, kind):
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"{kind}, not a dictionary"):
        read_checkpoint(path)


def test_dictionary_without_weights():
    with pytest.raises(CheckpointError, match="epoch, optimizer"):
        load_pretrained(tiny_model(), {"epoch": 3, "optimizer": {}})
    with pytest.raises(CheckpointError, match=r"no tensors.*note"):
        load_pretrained(tiny_model(), {"state_dict": {**tiny_model().state_dict(), "note": "best"}})


# ---- other windows, other sizes


def elsa_swin(window=7, size=224, **changes):
    torch.manual_seed(1)
    small = dict(num_classes=3, depths=(1, 1, 1, 2), embed_dim=8, num_heads=(1, 1, 1, 2), elsa_kernel=3)
    return timm.create_model("elsa_swin_nano", **{**small, **changes}, window_size=window, img_size=size).eval()


def test_elsa_swin_at_384_pixels_starts_from_weights_of_224():
    """Windows of 12 for windows of 7: as the classifier itself would be given larger windows, and as timm does it."""
    source, model, image = elsa_swin(), elsa_swin(12, 384), torch.randn(2, 3, 384, 384)
    with torch.no_grad():
        for block in source.layers[3].blocks:
            block.attn.rb.normal_()
    table = source.layers[3].blocks[0].attn.rb.detach().clone()
    report = load_pretrained(model, {"state_dict": source.state_dict()})
    assert "layers.3.blocks.0.attn.rb 2×169 → 2×529" in report.resized
    timms = resize_rel_pos_bias_table(table.flip(1).T, (12, 12), (529, 2))
    torch.testing.assert_close(model.layers[3].blocks[0].attn.rb, timms.T.flip(1), atol=1e-5, rtol=1e-5)
    middle = model.layers[3].blocks[0].attn.rb[:, 529 // 2]
    torch.testing.assert_close(middle, table[:, 169 // 2], atol=1e-5, rtol=1e-5)  # no distance stays no distance
    source.set_input_size(384, window_size=12)
    with torch.no_grad():
        assert torch.equal(model(image), source(image))


def test_windows_of_one_size_are_loaded_as_they_are():
    source, model = elsa_swin(), elsa_swin(size=384)
    assert load_pretrained(model, {"state_dict": source.state_dict()}).resized == ()
    assert same_weights(source, model)


def test_a_position_embedding_for_another_size():
    source, model = elsa_swin(ape=True), elsa_swin(12, 384, ape=True)
    report = load_pretrained(model, {"state_dict": source.state_dict()})
    assert "absolute_pos_embed 1×3136×8 → 1×9216×8" in report.resized
    grid = source.absolute_pos_embed.detach().reshape(1, 56, 56, 8).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, (96, 96), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.absolute_pos_embed.detach(), expected)


@pytest.mark.parametrize("shape", [(3, 169), (2, 168), (2, 144)])
def test_a_bias_that_is_no_table_of_windows_is_no_fit(shape):
    state = {**elsa_swin().state_dict(), "layers.3.blocks.1.attn.rb": torch.zeros(shape)}
    with pytest.raises(CheckpointError, match=re.escape(f"layers.3.blocks.1.attn.rb is {shape}, the model has")):
        load_pretrained(elsa_swin(12, 384), {"state_dict": state})
