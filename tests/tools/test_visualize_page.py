"""The page of tools/visualize.py in a browser: after clicks, keys and menus it shows what the network computes."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from elsa.engine import load_recipe
from elsa.tools.tasks.visualize import page
from elsa.tools.tasks.visualize.attention import elsa_layers, watched, with_ghost_head
from elsa.tools.tasks.visualize.classifier import open_classifier_pictures

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (requirements/test.txt)")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZE = (48, 96)  # height, width
NAMED = "odd <\u002fscript> & 'name'.png"


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that notes every request."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip(f"no {'chromedriver' if program else 'Chromium or Chrome'} on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1280,900"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()


class Shown:
    """The page as people see it, and what the network has for it."""

    def __init__(self, browser, network, pictures):
        self.browser, self.network, self.pictures = browser, network, pictures
        self.layers, self.seen = elsa_layers(network), []
        for picture in pictures:
            found = []
            with torch.no_grad(), watched(self.layers, lambda _, attention, found=found: found.append(attention[0])):
                network(picture.images)
            self.seen.append(found)

    def element(self, name):
        return self.browser.find_element("id", name)

    def choose(self, **menus):
        for name, text in menus.items():
            Select(self.element(name)).select_by_visible_text(text)

    def click(self, x, y):
        """On a pixel of the picture."""
        canvas = self.element("image")
        height, width = SIZE
        across = round((x + 0.5) / width * canvas.size["width"] - canvas.size["width"] / 2)
        down = round((y + 0.5) / height * canvas.size["height"] - canvas.size["height"] / 2)
        ActionChains(self.browser).move_to_element_with_offset(canvas, across, down).click().perform()

    def table(self):
        cells = self.browser.find_elements("css selector", "#map td")
        return np.array([float(cell.get_attribute("data-value")) for cell in cells])

    def attention(self, picture, stage, block, head, row, column, channel=None):
        place = next(i for i, layer in enumerate(self.layers) if (layer.stage, layer.block) == (stage, block))
        shares = self.seen[picture][place][row, column]
        if channel is None:
            return shares[head - 1].numpy()
        module = self.layers[place].module
        with torch.no_grad():
            of_channels = with_ghost_head(module, shares)
        return of_channels[(head - 1) * (module.dim_v // module.num_heads) + channel - 1].numpy()

    def check(self, picture, stage, block, head, row, column, channel=None):
        """The position that is told, and the values of the map, within the steps that they are stored in."""
        stride = 4 * 2 ** (stage - 1)
        rows, columns = (-(-side // stride) for side in SIZE)
        told = self.element("position").text
        assert told.startswith(f"Row {row} of {rows}, column {column} of {columns} (from 0)"), told
        assert f"from x {column * stride}, y {row * stride}." in told
        expected = self.attention(picture, stage, block, head, row, column, channel)
        found = self.table()
        assert len(found) == len(expected)
        np.testing.assert_allclose(found, expected, atol=np.abs(expected).max() / (200 if channel is None else 100))
        most = int(np.abs(found).argmax())
        assert f"{100 * found[most]:.1f}".replace("-", "−") in told
        texts = [cell.text for cell in self.browser.find_elements("css selector", "#map td")]
        assert texts[most] == f"{100 * found[most]:.1f}".replace("-", "−")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small ELSA-Swin whose attention is far from even, and its two pictures, which are no squares."""
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(1)
    settings = dict(embed_dim=16, num_heads=[1, 2, 2, 2], elsa_kernel=5, window_size=3, lam=1)
    network = timm.create_model("elsa_swin_nano", num_classes=4, **settings).eval()
    for layer in elsa_layers(network):
        layer.module.attn[2].weight.data *= 30
    save_file(network.state_dict(), folder / "weights.safetensors")
    random = np.random.default_rng(0)
    for name in ("first.png", "second.png"):
        Image.fromarray(random.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(folder / name)
    kwargs = "{embed_dim: 16, num_heads: [1, 2, 2, 2], elsa_kernel: 5, window_size: 3, lam: 1}"
    (folder / "recipe.yaml").write_text(
        f"MODEL: {{NAME: elsa_swin_nano, NUM_CLASSES: 4, KWARGS: {kwargs}}}\n"
        f"DATA: {{IMG_SIZE: [{SIZE[0]}, {SIZE[1]}]}}\nEVAL: {{CROP: 1.0}}\n"
    )
    return folder, network


@pytest.fixture
def shown(tool, browser, made):
    folder, network = made
    paths = [folder / "first.png", folder / "second.png"]
    if not (folder / "seen").exists():
        given = [folder / "recipe.yaml", folder / "weights.safetensors", *paths]
        outcome = tool("visualize", *given, "--stage", "2", "--position", "70,20", "--output", folder / "seen")
        assert outcome.code == 0, outcome.err
    config = load_recipe(folder / "recipe.yaml", []).config
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get((folder / "seen" / "attention.html").as_uri())
    return Shown(browser, network, open_classifier_pictures(config, paths, torch.device("cpu")))


def test_clicks_keys_and_menus(shown):
    shown.check(0, stage=2, block=1, head=1, row=2, column=8)  # as the command line says
    shown.click(3, 45)
    shown.check(0, stage=2, block=1, head=1, row=5, column=0)
    shown.click(95, 0)
    shown.check(0, stage=2, block=1, head=1, row=0, column=11)
    shown.choose(head="2")
    shown.check(0, stage=2, block=1, head=2, row=0, column=11)
    shown.choose(stage="1", block="1")
    assert [option.text for option in Select(shown.element("head")).options] == ["1"]
    shown.click(50, 30)
    shown.check(0, stage=1, block=1, head=1, row=7, column=12)
    shown.choose(stage="3", block="2", head="2")
    shown.check(0, stage=3, block=2, head=2, row=1, column=3)

    canvas = shown.element("image")
    canvas.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    shown.check(0, stage=3, block=2, head=2, row=2, column=4)
    canvas.send_keys(Keys.ARROW_DOWN)  # there is no further row
    shown.check(0, stage=3, block=2, head=2, row=2, column=4)
    canvas.send_keys(Keys.SHIFT, Keys.ARROW_LEFT)
    shown.check(0, stage=3, block=2, head=2, row=2, column=0)


def test_ghost_head_and_other_pictures(shown):
    assert not shown.element("channel").is_displayed()
    shown.choose(view="with ghost head", head="2", channel="3")
    shown.check(0, stage=2, block=1, head=2, row=2, column=8, channel=3)
    assert shown.table().min() < 0
    assert "Channel 3 of head 2" in shown.element("of-map").text
    shown.choose(channel="1")
    shown.check(0, stage=2, block=1, head=2, row=2, column=8, channel=1)
    shown.choose(view="Hadamard attention")
    shown.choose(picture="second.png")
    shown.browser.implicitly_wait(2)
    shown.browser.find_element("css selector", "#image[aria-label='second.png']")
    shown.click(70, 20)
    shown.check(1, stage=2, block=1, head=2, row=2, column=8)


def test_the_map_is_drawn_over_the_picture_around_the_position(shown):
    def drawn():
        uri = shown.browser.execute_script("return document.getElementById('image').toDataURL()")
        with io.BytesIO(base64.b64decode(uri.partition(",")[2])) as file:
            return np.asarray(Image.open(file).convert("RGB"))

    over = drawn()
    shown.element("over").click()
    rows, columns = (over != drawn()).any(-1).nonzero()
    zoom = over.shape[1] / SIZE[1]
    stride = 8 * zoom  # of stage 2: 5 taps around row 2, column 8
    assert (rows.min() / stride, (rows.max() + 1) / stride) == pytest.approx((0, 5), abs=0.1)
    assert (columns.min() / stride, (columns.max() + 1) / stride) == pytest.approx((6, 11), abs=0.1)


def test_nothing_is_asked_of_a_network_and_nothing_goes_wrong(shown):
    shown.click(10, 10)
    messages = [json.loads(entry["message"])["message"] for entry in shown.browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert asked and {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert [url for url in asked if url.startswith("file")] == [shown.browser.current_url]
    assert [entry for entry in shown.browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    text = (page.TEMPLATE).read_text()
    assert not re.search(r"https?:|@import|\bsrc=|<link[^>]+href=\"(?!data:)", text)


def test_it_can_be_used_with_the_keyboard_alone(shown):
    """Tab reaches every menu and the picture, each of which has a name."""
    reached = []
    for _ in range(7):
        ActionChains(shown.browser).send_keys(Keys.TAB).perform()
        focused = shown.browser.switch_to.active_element
        reached.append(focused.get_attribute("id"))
        assert focused.accessible_name
    assert reached == ["picture", "stage", "block", "head", "view", "over", "image"]


def test_thinned_maps_say_so(browser, made):
    """A page whose bytes do not suffice keeps every so manieth position, and names the nearest one."""
    folder, network = made
    [layer] = [one for one in elsa_layers(network) if (one.stage, one.block) == (1, 1)]
    attention = torch.rand(12, 24, 1, 25).softmax(-1)
    step = page.thinning(layer, (12, 24), 2000)
    assert step == 2 and 6 * 12 * 27 <= 2000
    pixels = np.zeros((*SIZE, 3), np.uint8)
    shown = {"stage": 1, "layer": 0, "head": 0, "x": 21, "y": 13}
    content = {"network": "n", "checkpoint": "c", "first": shown, "layers": [page.about(layer)],
               "pictures": [page.of_picture(pixels, NAMED, [page.quantised(attention, step)])]}  # fmt: skip
    page.write_page(folder / "thin.html", content)
    browser.get((folder / "thin.html").as_uri())
    assert Select(browser.find_element("id", "picture")).first_selected_option.text == NAMED
    told = browser.find_element("id", "position").text
    assert "every 2nd row and column" in browser.find_element("id", "note").text
    row, column = map(int, re.match(r"Row (\d+) of 12, column (\d+) of 24", told).groups())
    assert (row, column) == (4, 6), "the nearest to row 3, column 5 that are even"
    cells = browser.find_elements("css selector", "#map td")
    found = [float(cell.get_attribute("data-value")) for cell in cells]
    np.testing.assert_allclose(found, attention[4, 6, 0].numpy(), atol=attention[4, 6].max() / 200)
