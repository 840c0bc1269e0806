"""Configuration: what is accepted, what is refused, and that the refusal helps."""

from __future__ import annotations

import pytest

from elsa.engine import ConfigError, dump, flatten, load_config, load_recipe, plain
from elsa.engine.schema import SCHEMA


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "config.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_defaults_are_valid_and_documented(write):
    values = flatten(load_config(write("MODEL: {}\n")))
    assert values["TRAIN.EPOCHS"] == 300
    assert all(key.help for key in SCHEMA.values())


def test_every_recipe_loads(root):
    recipes = sorted((root / "configs/classification").glob("*.yaml"))
    assert len(recipes) >= 7
    for path in recipes:
        load_config(path)


def test_base_files_are_layered_and_overrides_come_last(write):
    write("TRAIN: {LR: 1.0, EPOCHS: 7}\nMODEL: {NAME: a}\n", "grandparent.yaml")
    write("BASE: grandparent.yaml\nTRAIN: {LR: 0.5}\n", "parent.yaml")
    child = write("BASE: parent.yaml\nMODEL: {NAME: b}\nTRAIN: {WARMUP_EPOCHS: 1}\n")
    config = load_config(child, ["TRAIN.LR=0.25"])
    assert (config.TRAIN.LR, config.TRAIN.EPOCHS, config.MODEL.NAME) == (0.25, 7, "b")


def test_the_result_is_frozen(write):
    config = load_config(write("MODEL: {}\n"))
    with pytest.raises(AttributeError):
        config.TRAIN.LR = 1.0


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("TRAIN.LR=1", "TRAIN.LR", 1.0),
        ("TRAIN.LR=1e-3", "TRAIN.LR", 1e-3),
        ("TRAIN.EPOCHS=300.0", "TRAIN.EPOCHS", 300),
        ("AMP.ENABLED=false", "AMP.ENABLED", False),
        ("AMP.ENABLED='True'", "AMP.ENABLED", True),
        ("MODEL.NAME=10", "MODEL.NAME", "10"),
        ("TRAIN.CLIP_GRAD=null", "TRAIN.CLIP_GRAD", None),
        ("TRAIN.BETAS=[0.9, 0.95]", "TRAIN.BETAS", (0.9, 0.95)),
        ("TRAIN.BETAS=(0.9, 0.95)", "TRAIN.BETAS", (0.9, 0.95)),
        ("MODEL.KWARGS={lam: 1}", "MODEL.KWARGS", {"lam": 1}),
        ("MODEL.KWARGS.elsa_kernel=5", "MODEL.KWARGS", {"elsa_kernel": 5}),
        ("TRAIN.NO_DECAY=['*.rb']", "TRAIN.NO_DECAY", ("*.rb",)),
        ("DATA.CLASS_WEIGHTS=balanced", "DATA.CLASS_WEIGHTS", "balanced"),
    ],
)
def test_values_become_the_declared_type(write, text, name, value):
    got = flatten(load_config(write("MODEL: {}\n"), [text]))[name]
    assert got == value
    assert type(got) is type(value)


def test_class_weights_are_a_word_or_a_number_per_class(write):
    three = write("MODEL: {NUM_CLASSES: 3}\n")
    config = load_config(three, ["DATA.CLASS_WEIGHTS=[1, 0.5, 2e0]"])
    assert config.DATA.CLASS_WEIGHTS == (1.0, 0.5, 2.0)
    again = load_config(write(dump(config), "again.yaml"))
    assert again.DATA.CLASS_WEIGHTS == config.DATA.CLASS_WEIGHTS
    for text, message in (
        ("[1, 2]", r"DATA.CLASS_WEIGHTS needs one number per class \(MODEL.NUM_CLASSES 3\), got 2"),
        ("[1, 0, 2]", "must be between 0 and 1000000, got 0.0; 0 excluded"),
        ("[1, two, 2]", "must be a number, got 'two'"),
        ("balance", "must be one of none, balanced, or a list of numbers, got 'balance'; did you mean balanced?"),
        ("null", "must be none, balanced, or a list of numbers, got null"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(three, [f"DATA.CLASS_WEIGHTS={text}"])


def test_class_weights_are_refused_where_they_have_no_meaning(write):
    path = write("AUG: {MIXUP: 0, CUTMIX: 0}\n")
    with pytest.raises(ConfigError, match=r"DATA\.CLASS_WEIGHTS has no meaning for token labels"):
        load_config(path, ["TOKENS.ENABLED=true", "DATA.CLASS_WEIGHTS=balanced"])
    with pytest.raises(ConfigError, match="evens out the classes twice"):
        load_config(path, ["DATA.SAMPLER=balanced", "DATA.CLASS_WEIGHTS=balanced"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN: {EPOCH: 3}", "unknown key 'TRAIN.EPOCH'; did you mean TRAIN.EPOCHS?"),
        ("TRAIN: {BATCH: 3}", "unknown key 'TRAIN.BATCH'; did you mean DATA.BATCH?"),
        ("TRIAN: {LR: 3}", "unknown section 'TRIAN'; did you mean TRAIN?"),
        ("LR: 0.1", "unknown section 'LR'; did you mean TRAIN.LR?"),
        ("TRAIN: {LR: fast}", "TRAIN.LR must be a number, got 'fast'"),
        ("TRAIN: {LR: -0.1}", "TRAIN.LR must be between 0 and 100, got -0.1"),
        ("TRAIN: {LR: .nan}", "TRAIN.LR must be between 0 and 100, got nan"),
        ("TRAIN: {EPOCHS: 2.5}", "TRAIN.EPOCHS must be an integer, got 2.5"),
        ("TRAIN: {EPOCHS: true}", "TRAIN.EPOCHS must be an integer, got True"),
        ("TRAIN: {EPOCHS: }", "TRAIN.EPOCHS must be an integer, got null"),
        ("AMP: {ENABLED: 1}", "AMP.ENABLED must be true or false, got 1"),
        ("AMP: {DTYPE: bfloat6}", "did you mean bfloat16?"),
        ("AUG: {SCALE: [0.5]}", "AUG.SCALE needs 2 numbers"),
        ("AUG: {SCALE: [1.0, 0.5]}", "AUG.SCALE must rise"),
        ("AUG: {SCALE: 0.5}", "AUG.SCALE must be a list, got 0.5"),
        ("TRAIN: {WARMUP_EPOCHS: 300}", "TRAIN.WARMUP_EPOCHS 300 must be smaller than TRAIN.EPOCHS 300"),
        ("TRAIN: {MIN_LR: 1.0}", "TRAIN.MIN_LR 1 is larger than TRAIN.LR 0.001"),
        ("TRAIN: {ACCUM: 3}", "DATA.BATCH 1024 is no multiple of TRAIN.ACCUM 3"),
        ("MODEL: {IN_CHANS: 1}", "DATA.MEAN needs one number per channel (1)"),
        ("EVAL: {WEIGHTS: ema}", "TRAIN.EMA_DECAY is null"),
        ("TRAIN: 3", "section TRAIN must be a mapping"),
        ("- 1", "must be a mapping of sections, got list"),
        ("TRAIN: {LR: 1.0, EPOCHS: 3, LR: 2.0}", "key 'LR' is given twice, in lines 1 and 1"),
        ("TRAIN:\n  LR: 1.0\nMODEL: {}\nTRAIN:\n  EPOCHS: 3", "key 'TRAIN' is given twice, in lines 1 and 4"),
        ("TRAIN: {LR: [", "is no YAML"),
        ("BASE: absent.yaml", "absent.yaml does not exist, named as BASE by"),
        ("BASE: config.yaml", "leads back to itself"),
    ],
)
def test_mistakes_are_named(write, text, message):
    with pytest.raises(ConfigError, match=r".") as caught:
        load_config(write(text + "\n"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("TRAIN.LR", "--set needs KEY=VALUE, got 'TRAIN.LR'"),
        ("train.lr=1", "did you mean TRAIN.LR?"),
        ("MODEL.NAME.x=1", "unknown key 'MODEL.NAME.x'"),
        ("TRAIN.LR=[", "is no YAML value"),
        ("TRAIN.LR=__import__('os')", "must be a number"),
    ],
)
def test_bad_overrides_are_named(write, override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(write("MODEL: {}\n"), [override])
    assert message in str(caught.value)


def test_a_missing_config_suggests_its_neighbour(write, tmp_path):
    write("MODEL: {}\n", "elsa_swin_tiny.yaml")
    with pytest.raises(ConfigError, match=r"did you mean elsa_swin_tiny\.yaml"):
        load_config(tmp_path / "elsa_swin_tini.yaml")


def test_a_number_that_yaml_reads_otherwise_is_named_with_its_line(write):
    with pytest.raises(ConfigError, match=r"config\.yaml: line 2: YAML reads 010 as 8"):
        load_config(write("TRAIN:\n  EPOCHS: 010\n"))


def test_the_printed_configuration_says_what_is_allowed(write):
    text = dump(load_config(write("MODEL: {}\n")), comments=True)
    for part in (
        "[between 0 and 100, without 0]",
        "[at least 1e-06] (null for none)",
        "timm's policy string ('' for none)",
    ):
        assert part in text


@pytest.mark.parametrize("comments", [False, True])
def test_what_is_dumped_reads_back_equal(write, comments):
    config = load_config(write("MODEL: {}\n"), ["MODEL.KWARGS={lam: 1, note: 'a: b'}", "TRAIN.NO_DECAY=['*.rb']"])
    assert plain(load_config(write(dump(config, comments), "again.yaml"))) == plain(config)


def test_differences_name_the_keys_and_forgive_what_may_change(write):
    stored = load_recipe(write("MODEL: {}\n")).values
    same = load_recipe(write("MODEL: {}\n"), ["DATA.WORKERS=1", "LOG.EVERY=3", "DATA.ROOT=elsewhere"])
    assert same.differences(stored) == []
    other = load_recipe(write("MODEL: {}\n"), ["TRAIN.LR=0.5"])
    assert other.differences(stored) == ["TRAIN.LR: 0.001 in the checkpoint, 0.5 now"]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["TRAIN.CLIP_GRAD=0"], ["TRAIN.CLIP_GRAD must be at least 1e-06, got 0.0", "null for none"]),
        (["TRAIN.CLIP_GRAD=none"], ["TRAIN.CLIP_GRAD must be a number, got 'none'; null for none"]),
        (["TRAIN.CLIP_GRAD=.inf"], ["TRAIN.CLIP_GRAD", "got inf", "null for none"]),
        (["TRAIN.LAYER_DECAY=0"], ["TRAIN.LAYER_DECAY must be between 0.1 and 1, got 0.0", "null for none"]),
        (["TRAIN.EMA_DECAY=1"], ["TRAIN.EMA_DECAY must be between 0.5 and 1", "1 excluded", "null for none"]),
        (["TRAIN.EMA_DECAY=0.0001"], ["TRAIN.EMA_DECAY", "got 0.0001", "0.9999 is usual", "momentum"]),
        (["TRAIN.EPS=.inf"], ["TRAIN.EPS must be between 1e-30 and 0.1, got inf", "1e-8 is usual"]),
        (["TRAIN.EPS=0"], ["TRAIN.EPS", "got 0.0"]),
        (["TRAIN.LR=0"], ["TRAIN.LR must be between 0 and 100, got 0.0; 0 excluded"]),
        (["TRAIN.LR=0", "TRAIN.MIN_LR=0"], ["TRAIN.LR must be between 0 and 100, got 0.0", "0 excluded"]),
        (["TRAIN.WARMUP_LR=50"], ["TRAIN.WARMUP_LR 50 is larger than TRAIN.LR 0.001"]),
        (["TRAIN.BETAS=[0.9, 1.0]"], ["TRAIN.BETAS must be between 0 and 1, got 1.0; 1 excluded"]),
        (["TRAIN.BETAS=[0.999, 0.9]"], ["TRAIN.BETAS must rise, got [0.999, 0.9]"]),
        (["TRAIN.MOMENTUM=1"], ["TRAIN.MOMENTUM", "1 excluded"]),
        (["TRAIN.WEIGHT_DECAY=.inf"], ["TRAIN.WEIGHT_DECAY must be between 0 and 10, got inf"]),
        (["AUG.SCALE=[0, 0]"], ["AUG.SCALE must be between 0.01 and 1, got 0.0"]),
        (["AUG.RATIO=[100, 100]"], ["AUG.RATIO must be between 0.2 and 5, got 100"]),
        (["AUG.VFLIP=1"], ["AUG.VFLIP must be between 0 and 1, got 1.0; 1 excluded", "0.5 is usual, 0 for none"]),
        (["AUG.SMOOTHING=0.999"], ["AUG.SMOOTHING must be between 0 and 0.9", "0.1 is usual"]),
        (["AUG.CUTMIX=.inf"], ["AUG.CUTMIX must be between 0 and 100, got inf"]),
        (["AUG.COLOR_JITTER=.nan"], ["AUG.COLOR_JITTER", "got nan"]),
        (["AUG.COLOR_JITTER=0.4"], ["AUG.COLOR_JITTER 0.4 has no effect beside AUG.AUTO_AUGMENT 'rand-", "write 0"]),
        (["TOKENS.MIX=.inf"], ["TOKENS.MIX must be at least 0, got inf"]),
        (["MODEL.KWARGS={a: [1, {b: .nan}]}"], ["MODEL.KWARGS has a.1.b nan: numbers must be finite"]),
        (["MODEL.KWARGS={a: 2020-01-01}"], ["MODEL.KWARGS has a datetime.date", "words"]),
        (["MODEL.NUM_CLASSES=1"], ["MODEL.NUM_CLASSES must be between 2 and"]),
        (["MODEL.DROP_PATH=0.99"], ["MODEL.DROP_PATH must be between 0 and 0.9, got 0.99"]),
        (["MODEL.NAME=''"], ["MODEL.NAME must be a name, got ''"]),
        (["MODEL.PRETRAINED=null"], ["MODEL.PRETRAINED must be a string, got null; '' for none"]),
        (["DATA.TRAIN_SPLIT=''"], ["DATA.TRAIN_SPLIT must be a name, got ''"]),
        (['DATA.ROOT="a\\0b"'], ["DATA.ROOT must be a name"]),
        (["DATA.IMG_SIZE=1"], ["DATA.IMG_SIZE must be between 8 and 8192, got 1"]),
        (["DATA.STD=[.inf, .inf, .inf]"], ["DATA.STD must be between 0.001 and 1, got inf"]),
        (["DATA.MEAN=[124, 116, 104]", "DATA.STD=[58, 57, 57]"], ["DATA.MEAN", "got 124", "divided by 255"]),
        (["EVAL.CROP=0.01"], ["EVAL.CROP must be between 0.25 and 2, got 0.01"]),
        (["EVAL.CROP=90"], ["EVAL.CROP", "0.9 is 90 %"]),
        (
            ["MODEL.PRETRAINED_IGNORE=['head.*']"],
            ["MODEL.PRETRAINED_IGNORE has no effect without MODEL.PRETRAINED: write []"],
        ),
        (["AUG.AUTO_AUGMENT=none"], ["AUG.AUTO_AUGMENT 'none' begins with 'none', no policy", "'' for none"]),
        (["AUG.AUTO_AUGMENT=off"], ["AUG.AUTO_AUGMENT must be a string, got False; '' for none"]),
        (["AUG.AUTO_AUGMENT=rnad-m9"], ["did you mean rand?"]),
        (["AUG.AUTO_AUGMENT=rand-mx"], ["has 'mx'", "m9, mstd0.5"]),
        (["AUG.AUTO_AUGMENT=rand-m9-x5"], ["has 'x5'"]),
        (["AUG.AUTO_AUGMENT=rand-msdt0.5"], ["has 'msdt0.5'", "did you mean mstd?"]),
        (["AUG.AUTO_AUGMENT=rand-m9-m5"], ["gives m twice"]),
        (["AUG.AUTO_AUGMENT=v9"], ["'v9'"]),
        (["TRAIN.EPOCHS=1:30"], ["--set TRAIN.EPOCHS=1:30: YAML reads 1:30 as 90", "without :", "'1:30' in quotes"]),
        (["TRAIN.EPOCHS=010"], ["--set TRAIN.EPOCHS=010: YAML reads 010 as 8", "without a 0 before it", "'010' in"]),
        (["MODEL.KWARGS={lam: -010}"], ["YAML reads -010 as -8"]),
        (["MODEL.KWARGS={a: 1, a: 2}"], ["key 'a' is given twice"]),
        (["TRAIN.EPOCHS=1" + "0" * 400], ["TRAIN.EPOCHS must be between 1 and 1000000, got 1000"]),
        (["TRAIN.LR=1" + "0" * 400], ["TRAIN.LR must be between 0 and 100, got inf"]),
        (["TRAIN.SEED=0x" + "f" * 5000], ["TRAIN.SEED must be between 0 and 2147483647, got a number of thousands"]),
        (["TRAIN.SEED=" + "9" * 5000], ["TRAIN.SEED=999"]),
        (["DATA.WORKERS=100000"], ["DATA.WORKERS must be between 0 and 1024"]),
        (["TRAIN.LR=2020-99-99"], ["TRAIN.LR=2020-99-99 is no YAML value"]),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else None,
)
def test_values_with_which_nothing_would_be_learned_are_refused(write, overrides, parts):
    with pytest.raises(ConfigError) as caught:
        load_config(write("MODEL: {}\n"), overrides)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        *(
            "TRAIN.CLIP_GRAD=null",
            "TRAIN.CLIP_GRAD=1e-4",
            "TRAIN.EMA_DECAY=0.5",
            "TRAIN.LAYER_DECAY=0.65",
            "TRAIN.LAYER_DECAY=1",
            "TRAIN.EMA_DECAY=0.9999",
        ),
        *("TRAIN.EPS=1e-16", "TRAIN.MIN_LR=0", "TRAIN.WARMUP_LR=0", "AUG.SMOOTHING=0", "EVAL.CROP=1.15", "AUG.MIXUP=0"),
        *("AUG.AUTO_AUGMENT=''", "AUG.AUTO_AUGMENT=rand-m9-mstd0.5-inc1", "AUG.AUTO_AUGMENT=original-mstd0.5"),
        *("AUG.AUTO_AUGMENT=augmix-m5-w4-d2", "AUG.AUTO_AUGMENT=3a", "AUG.AUTO_AUGMENT=rand-mstd1-tweights-n3-p0.5"),
        *("DATA.MEAN=[0, 0, 0]", "DATA.STD=[1, 1, 1]", "TRAIN.EPOCHS=100", "TRAIN.LR=1e-3", "MODEL.NAME='010'"),
        *("AUG.MIX_PROB=0", "AUG.MIX_SWITCH=1", "AUG.ERASE=1", "AUG.HFLIP=0", "AUG.SCALE=[1, 1]", "AUG.RATIO=[0.5, 2]"),
        *(
            "TRAIN.BETAS=[0, 0]",
            "TRAIN.BETAS=[0.95, 0.95]",
            "TRAIN.MOMENTUM=0",
            "TRAIN.WEIGHT_DECAY=0",
            "LOG.SAVE_STEPS=0",
        ),
        *(
            "MODEL.KWARGS={a: {b: [1, x, true, null]}}",
            "MODEL.DROP_PATH=0.75",
            "TOKENS.GROUND_TRUTH=true",
            "DATA.WORKERS=0",
        ),
        *(
            "TRAIN.EPOCHS=0x40",
            "TRAIN.EPOCHS=1_000",
            "TRAIN.WARMUP_EPOCHS=0",
            "TOKENS.LABELS=''",
            "MODEL.PRETRAINED=''",
        ),
    ],
)
def test_their_neighbours_stay_allowed(write, override):
    load_config(write("MODEL: {}\n"), [override])


def test_colour_jitter_is_allowed_where_it_has_an_effect(write):
    for policy in ("", "3a", "rand-m9-t3aw"):
        load_config(write("MODEL: {}\n"), ["AUG.COLOR_JITTER=0.4", f"AUG.AUTO_AUGMENT={policy!r}"])


@pytest.mark.parametrize(
    "text",
    [
        *("BASE:\n", "BASE: 5\n", "BASE: [1]\n", 'BASE: "a\\0b"\n', "MODEL:\n  ? [a, b]\n  : 1\n"),
        *("MODEL: {NAME: !!int x}\n", "MODEL: {NAME: 2020-99-99}\n", "TRAIN: {EPOCHS: 1:30}\n"),
        *("TRAIN:\n  LR: 010\n", "{a: 1}: {}\n", "MODEL: {KWARGS: {a: .nan}}\n", "MODEL: {KWARGS: {a: 1, a: 2}}\n"),
        "MODEL: {KWARGS: &again {a: *again}}\n",
        "MODEL: {KWARGS: " + "{a: " * 2000 + "1" + "}" * 2000 + "}\n",
    ],
    ids=lambda text: text[:20],
)
def test_odd_yaml_is_refused_in_a_line(write, text):
    with pytest.raises(ConfigError) as caught:
        load_config(write(text))
    assert "\n" not in str(caught.value)
