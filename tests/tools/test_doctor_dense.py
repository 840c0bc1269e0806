"""The doctor on the packages for detection and segmentation, played by stand-ins."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from findings import NO_TASK, only

from elsa.tools.tasks.doctor import dense
from elsa.tools.tasks.doctor.finding import NOTE, OK, PROBLEM, Finding

TESTED = {"onedl-mmengine": "0.10.12", "mmcv-lite": "2.1.0", "mmdet": "3.3.0", "mmsegmentation": "1.2.2",
          "pycocotools": "2.0.11"}  # fmt: skip


@pytest.fixture
def installed(monkeypatch):
    """``installed({distribution: version})``: of the mm packages these and no others; all can be imported but those
    of ``broken``."""

    def call(versions: dict[str, str], broken: dict[str, Exception] | None = None) -> None:
        monkeypatch.setattr(dense, "version_of", versions.get)
        monkeypatch.setattr(dense.importlib.util, "find_spec", lambda name: None)

        def load(name):
            if name in (broken or {}):
                raise broken[name]

        monkeypatch.setattr(dense.importlib, "import_module", load)

    return call


def case_of(task: str):
    return SimpleNamespace(config="x" if task else None, task=task)


def levels(found) -> dict[str, str]:
    return {finding.subject: finding.level for finding in found}


def test_the_tested_packages(installed):
    installed(TESTED)
    assert set(levels(dense.stack(NO_TASK)).values()) == {OK}


def test_none_of_the_packages(installed):
    installed({})
    assert only(dense.stack) == Finding(
        "mm packages", NOTE, "not installed: detection and segmentation need them, classification does not", dense.SETUP
    )
    found = only(dense.stack, case_of("detection"))
    assert (found.level, found.cure) == (PROBLEM, "bash scripts/setup.sh --dense")


@pytest.mark.parametrize(
    ("added", "name", "text"),
    [
        ({"mmengine": "0.10.7"}, "mmengine", "onedl-mmengine 0.10.12, mmengine 0.10.7: all are imported as mmengine"),
        ({"mmcv": "2.2.0"}, "mmcv", "all are imported as mmcv"),
        ({"onedl-mmcv": "2.3.6", "mmcv-full": "1.7.2"}, "mmcv", "onedl-mmcv 2.3.6, mmcv-full 1.7.2"),
        ({"onedl-mmdetection": "3.4.0"}, "mmdet", "all are imported as mmdet"),
        ({"mmseg": "1.0"}, "mmseg", "mmsegmentation 1.2.2, mmseg 1.0"),
    ],
)
def test_packages_that_lie_over_each_other(installed, added, name, text):
    installed(TESTED | added)
    (found,) = (found for found in dense.stack(NO_TASK) if found.level != OK)
    assert (found.subject, found.level) == (name, PROBLEM)
    assert text in found.text
    tested, version = dense.TESTED[name]
    assert all(each in found.cure.partition("&&")[0] for each in (tested, *added))
    assert found.cure.endswith(f"install --no-deps {tested}=={version}")
    assert levels(dense.stack(case_of("classification")))[name] == NOTE


def without(name: str) -> dict[str, str]:
    return {key: version for key, version in TESTED.items() if key != name}


@pytest.mark.parametrize(
    ("versions", "name", "level", "text"),
    [
        (without("onedl-mmengine") | {"mmengine": "0.10.7"}, "mmengine", NOTE, "cannot load its own checkpoints"),
        (without("mmcv-lite") | {"mmcv-full": "1.7.2"}, "mmcv", PROBLEM, "mmcv 1, and 2 is needed"),
        (without("mmcv-lite") | {"onedl-mmcv": "2.3.6"}, "mmcv", NOTE, "tested with mmcv-lite 2.1.0"),
        (without("mmsegmentation") | {"mmseg": "1.0"}, "mmseg", PROBLEM, "segments Chinese words"),
        (TESTED | {"mmdet": "3.2.0"}, "mmdet", NOTE, "mmdet 3.2.0; tested with mmdet 3.3.0"),
    ],
)
def test_packages_other_than_the_tested(installed, versions, name, level, text):
    installed(versions)
    (found,) = (found for found in dense.stack(NO_TASK) if found.level != OK)
    assert (found.subject, found.level) == (name, level)
    assert text in found.text and found.cure


def test_one_of_the_packages_is_missing(installed):
    installed(without("mmdet"))
    assert levels(dense.stack(NO_TASK))["mm packages"] == NOTE
    assert levels(dense.stack(case_of("segmentation")))["mm packages"] == PROBLEM


def test_a_package_that_cannot_be_imported(installed):
    installed(TESTED, {"mmdet": AssertionError("MMCV==2.2.0 is used but incompatible")})
    found = list(dense.stack(NO_TASK))[-1]
    assert (found.subject, found.level) == ("mmdet", PROBLEM)
    assert found.text == "cannot be imported: AssertionError: MMCV==2.2.0 is used but incompatible"
    assert found.cure.endswith("install --force-reinstall --no-deps mmdet==3.3.0")


def test_two_opencvs(installed):
    installed(TESTED | {"opencv-python": "4.8", "opencv-python-headless": "5.0"})
    (found,) = (found for found in dense.stack(NO_TASK) if found.level != OK)
    assert (found.subject, found.level) == ("OpenCV", NOTE)
    assert "uninstall -y opencv-python opencv-python-headless" in found.cure
