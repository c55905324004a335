"""Proves the browser page in real Chromium: it draws what Python draws, shows it forming, can be stopped, works with
the keyboard alone and on a phone's width, and reads and gives links."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_samples import sample_bundle
from web_page import (
    LEAST_DB,
    MNIST,
    PATIENCE,
    ROOT,
    Open,
    Opened,
    Site,
    pixels,
    playwright_api,
    psnr,
    serving,
    texts,
)

from runtime import load
from runtime.__main__ import main
from runtime.bundle import open_bundle
from runtime.image import METADATA_KEY, PARAMETERS_KEY
from runtime.replay import SAME_DB, read_carried
from runtime.web_server import PageServer
from runtime.web_site import models_site

expect = playwright_api().expect

pytestmark = pytest.mark.slow

POCKET = ROOT / "models_onnx" / "pocket"


@pytest.fixture(scope="module")
def text_address(page_files: Site) -> Iterator[str]:
    """Where the page is with a small model of text, which is called pocket, too, after that of digits."""
    bundles = [open_bundle(each) for each in (MNIST, sample_bundle())]
    with serving(PageServer(page_files | models_site(bundles), 0)) as server:
        yield server.url


@pytest.fixture(scope="module")
def pocket_address(page_files: Site) -> Iterator[str]:
    """Where the page is with the model of text that the repository has."""
    with serving(PageServer(page_files | models_site([open_bundle(POCKET)]), 0)) as server:
        yield server.url


def same_but_for_the_machine(text: str, other: dict[str, Any]) -> None:
    """What made a picture, as the page and as Python say it."""
    mine = json.loads(text)
    assert mine.pop("provider") == "wasm"
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", mine.pop("onnxruntime"))
    assert mine == {name: value for name, value in other.items() if name not in {"provider", "onnxruntime"}}


WATCH = """
() => {
  window.seen = { progress: [], pictures: new Set() };
  const note = () => {
    const progress = document.getElementById("progress");
    if (document.getElementById("status").textContent === "Drawing") window.seen.progress.push(progress.value);
    window.seen.pictures.add(document.getElementById("picture").toDataURL());
  };
  new MutationObserver(note).observe(document.getElementById("detail"), { childList: true });
}
"""


def test_a_class_is_drawn_step_by_step_to_the_picture_of_python(open_page: Open, address: str, tmp_path: Path) -> None:
    opened = open_page(f"{address}#model=mnist-paper&class=7&steps=10&seed=3")
    opened.wait("^Ready$")
    assert opened.page.evaluate("crossOriginIsolated")
    opened.page.evaluate(WATCH)
    opened.draw()
    path = opened.download(tmp_path)
    assert path.name == "mnist-paper-7-3.png"
    result = load(MNIST)(class_labels=7, seed=3, num_inference_steps=10)
    found = psnr(pixels(path), result.images[0][..., 0])
    print(f"mnist-paper: {found:.1f} dB")
    assert found >= LEAST_DB
    carried = texts(path)
    same_but_for_the_machine(carried[METADATA_KEY], result.metadata_of(0))
    assert PARAMETERS_KEY not in carried
    assert read_carried(path).settings["seed"] == 3
    seen = opened.page.evaluate("() => ({ progress: window.seen.progress, pictures: window.seen.pictures.size })")
    assert sorted(set(seen["progress"])) == [pytest.approx(row / 10) for row in range(1, 11)]
    assert seen["progress"] == sorted(seen["progress"])
    assert seen["pictures"] >= 10


def test_a_prompt_is_drawn_to_the_picture_of_python(open_page: Open, text_address: str, tmp_path: Path) -> None:
    opened = open_page(f"{text_address}#model=pocket&steps=4&seed=18446744073709551615&guidance=4.5")
    opened.wait("^Ready$")
    opened.page.fill("#prompt", "a red circle, on white é")
    opened.page.click("text=What to avoid")
    opened.page.fill("#negative", "blue square")
    opened.draw()
    path = opened.download(tmp_path)
    result = load(sample_bundle())(
        "a red circle, on white é",
        negative_prompt="blue square",
        seed=2**64 - 1,
        guidance_scale=4.5,
        num_inference_steps=4,
    )
    found = psnr(pixels(path), result.images[0])
    print(f"pocket: {found:.1f} dB")
    assert found >= LEAST_DB
    result.save(tmp_path / "python.png")
    mine, others = texts(path), texts(tmp_path / "python.png")
    same_but_for_the_machine(mine[METADATA_KEY], result.metadata_of(0))
    assert mine[PARAMETERS_KEY] == others[PARAMETERS_KEY]
    assert read_carried(path).condition == "a red circle, on white é"


def test_the_pocket_model_draws_a_sentence(open_page: Open, pocket_address: str, tmp_path: Path) -> None:
    prompt = "a red sneaker on a white background"
    opened = open_page(f"{pocket_address}#steps=10&seed=7")
    opened.wait("^Ready$")
    opened.page.fill("#prompt", prompt)
    began = time.monotonic()
    opened.draw()
    seconds = time.monotonic() - began
    opened.screenshot("sentence-wide")
    path = opened.download(tmp_path)
    found = psnr(pixels(path), load(POCKET)(prompt, seed=7, num_inference_steps=10).images[0])
    print(f"pocket: {found:.1f} dB, {seconds:.1f} s from click to picture; no bound, since a busy machine takes longer")
    assert found >= LEAST_DB


def test_a_picture_is_replayed_by_python(open_page: Open, address: str, tmp_path: Path) -> None:
    opened = open_page(f"{address}#model=mnist-paper&class=5&steps=4&seed=9")
    opened.draw()
    path = opened.download(tmp_path)
    assert main(["replay", str(path), "--model", str(MNIST)]) == 0  # the same from SAME_DB on
    assert SAME_DB >= LEAST_DB


def test_what_is_drawn_can_be_stopped_and_begun_again(open_page: Open, address: str) -> None:
    opened = open_page(f"{address}#model=mnist-paper&class=1&steps=50&seed=1")
    page = opened.page
    opened.wait("^Ready$")
    for stop in (lambda: page.click("#cancel"), lambda: page.keyboard.press("Escape")):
        page.click("#draw")
        expect(page.locator("#detail")).to_have_text(re.compile("^step [2-9]"), timeout=PATIENCE)
        page.click("#dice")  # nothing freezes meanwhile
        assert page.input_value("#seed") != "1"
        stop()
        opened.wait("^Cancelled$")
        expect(page.locator("#cancel")).to_be_hidden()
        assert not page.get_attribute("#draw", "aria-disabled")
    assert page.get_attribute("#download", "aria-disabled")  # nothing was finished
    page.select_option("#steps", label="4")
    opened.draw()


def test_what_is_saved_is_the_picture_that_is_shown(open_page: Open, address: str, tmp_path: Path) -> None:
    """One that was stopped makes way for the one before, which meanwhile can neither be saved nor gone back to."""
    opened = open_page(f"{address}#model=mnist-paper&class=1&steps=4&seed=1")
    page = opened.page
    opened.draw()
    first, looks = opened.download(tmp_path / "first"), page.evaluate(LOOKS)
    page.click("#classes label:nth-child(9)")
    page.select_option("#steps", label="50")
    page.click("#draw")
    expect(page.locator("#detail")).to_have_text(re.compile("^step [3-9]"), timeout=PATIENCE)
    for button in ("#download", "#share", "#check", "#forget", "#shelf button"):
        assert page.get_attribute(button, "aria-disabled") == "true"
    assert page.evaluate(LOOKS) != looks
    page.click("#cancel")
    opened.wait("^Cancelled$")
    assert page.evaluate(LOOKS) == looks
    assert page.get_attribute("#picture", "aria-label") == "1 (mnist-paper)"
    assert page.input_value("#film") == "4"
    for button in ("#download", "#share", "#check", "#forget", "#shelf button"):
        assert page.get_attribute(button, "aria-disabled") is None
    assert opened.download(tmp_path / "again").read_bytes() == first.read_bytes()


LOOKS = "document.getElementById('picture').toDataURL()"


def test_a_picture_that_cannot_be_saved_is_said(open_page: Open, address: str) -> None:
    opened = open_page(f"{address}#model=tiny")
    opened.draw()
    opened.page.evaluate(
        "() => { window.CompressionStream = class { constructor() { throw new Error('no room'); } }; }"
    )
    opened.page.click("#download")
    expect(opened.page.locator("#problem")).to_have_text("The picture cannot be saved: no room")


def test_a_picture_asked_for_too_early_is_drawn_as_soon_as_it_can_be(open_page: Open, address: str) -> None:
    opened = open_page(f"{address}#model=mnist-paper&class=3&steps=4")
    expect(opened.page.locator("#classes label")).to_have_count(10, timeout=PATIENCE)
    opened.draw()


class Keyboard:
    """A page that is used without a mouse."""

    def __init__(self, opened: Opened) -> None:
        self.page = opened.page

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def tab_to(self, selector: str, key: str = "Tab") -> None:
        """Go on until that has the focus, which has to be seen."""
        for _ in range(40):
            self.press(key)
            if self.page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return self.assert_focus_is_seen()
        raise AssertionError(f"Tab does not come to {selector}")

    def assert_focus_is_seen(self) -> None:
        style, width = self.page.evaluate(
            "() => { const e = document.activeElement, s = e.matches('[type=radio]') ? e.nextElementSibling : e;"
            " const { outlineStyle, outlineWidth } = getComputedStyle(s); return [outlineStyle, outlineWidth]; }"
        )
        assert style != "none"
        assert float(width.removesuffix("px")) >= 2

    def download(self, path: Path) -> np.ndarray:
        """Save the picture; its pixels."""
        self.tab_to("#download")
        with self.page.expect_download() as downloading:
            self.press("Enter")
        downloading.value.save_as(path)
        return pixels(path)


def test_it_works_with_the_keyboard_alone(open_page: Open, address: str, tmp_path: Path) -> None:
    opened = open_page(f"{address}#model=mnist-paper&steps=4&seed=2")
    page, keyboard = opened.page, Keyboard(opened)
    opened.wait("^Ready$")
    keyboard.tab_to("#classes input")
    keyboard.press(*["ArrowRight"] * 4)
    keyboard.assert_focus_is_seen()
    keyboard.tab_to("#draw")
    keyboard.press("Enter")
    opened.wait("^Drawn in .*: 4 ")
    keyboard.tab_to("#film")
    keyboard.press("Home")
    assert page.inner_text("#film-step") == "1 / 4"
    expected = load(MNIST)(4, seed=2, num_inference_steps=4).images[0][..., 0]
    assert psnr(keyboard.download(tmp_path / "four.png"), expected) >= LEAST_DB
    keyboard.tab_to("#dice")
    keyboard.press("Space")
    assert page.input_value("#seed") != "2"
    keyboard.tab_to("#shelf button")
    keyboard.press("Enter")
    assert page.input_value("#seed") == "2"


def test_a_sentence_is_written_and_drawn_with_the_keyboard_alone(
    open_page: Open, pocket_address: str, tmp_path: Path
) -> None:
    opened = open_page(f"{pocket_address}#steps=4&seed=2")
    page, keyboard = opened.page, Keyboard(opened)
    opened.wait("^Ready$")
    keyboard.tab_to("#prompt")
    keyboard.press("ControlOrMeta+a")
    page.keyboard.type("a blue")
    keyboard.tab_to("#words summary")
    keyboard.press("Enter")
    keyboard.tab_to("#known-words button")
    word = page.evaluate("document.activeElement.textContent")
    keyboard.press("Enter")
    keyboard.tab_to("#words summary", "Shift+Tab")
    keyboard.press("Enter")  # which closes it, so that not every word comes before what follows
    keyboard.tab_to("#negative-part summary")
    keyboard.press("Enter")
    keyboard.tab_to("#negative")
    page.keyboard.type("red")
    keyboard.tab_to("#draw")
    keyboard.press("Enter")
    opened.wait(f"^Drawn in .*: a blue {word}, seed 2$")
    expected = load(POCKET)(f"a blue {word}", negative_prompt="red", seed=2, num_inference_steps=4).images[0]
    assert psnr(keyboard.download(tmp_path / "blue.png"), expected) >= LEAST_DB


@pytest.mark.parametrize(
    ("where", "link"), [("address", "#model=mnist-paper&class=8&steps=4&seed=1"), ("pocket_address", "#steps=4&seed=1")]
)
def test_a_phone_has_room_for_it(open_page: Open, request: pytest.FixtureRequest, where: str, link: str) -> None:
    options = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    opened = open_page(request.getfixturevalue(where) + link, **options)
    page = opened.page
    opened.wait("^Ready$")
    page.tap("#draw")
    opened.wait("^Drawn in")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for control in page.locator("form button:visible, form select:visible, #classes span").all():
        box = control.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["height"] >= 40
    width = page.locator("#picture").bounding_box()["width"]
    assert 200 < width <= 360
    opened.screenshot(f"{'sentence' if where == 'pocket_address' else 'class'}-360")
    assert page.evaluate("getComputedStyle(document.getElementById('picture')).imageRendering") == "pixelated"
    for summary in page.locator("summary:visible").all():
        summary.tap()
    if where == "pocket_address":
        page.fill("#prompt", "a red sneaker " + "very" * 200)  # which says itself again below the picture
        page.tap("#draw")
        opened.wait("^Drawn in .*veryvery")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def contrast(first: str, second: str) -> float:
    """Of two colours as browsers say them, by WCAG 2.2."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_in_dark(open_page: Open, address: str, scheme: str) -> None:
    opened = open_page(f"{address}#model=mnist-paper&class=8&steps=4&seed=1", color_scheme=scheme)
    opened.wait("^Ready$")
    colours = opened.page.evaluate("""() => {
      const of = (element, name) => getComputedStyle(element)[name];
      const ask = document.querySelector(".ask"), hint = document.querySelector(".hint");
      const chosen = document.querySelector("#classes input:checked + span"), draw = document.getElementById("draw");
      return [[of(document.body, "color"), of(document.body, "backgroundColor")],
        [of(document.body, "color"), of(ask, "backgroundColor")], [of(hint, "color"), of(ask, "backgroundColor")],
        [of(chosen, "color"), of(chosen, "backgroundColor")], [of(draw, "color"), of(draw, "backgroundColor")],
        [of(document.querySelector(".problem"), "color"), of(ask, "backgroundColor")],
        [of(document.querySelector("#problem"), "color"), of(document.querySelector("#problem"), "backgroundColor")],
        [of(document.querySelector("#notices"), "color"), of(document.querySelector("#notices"), "backgroundColor")],
        [of(document.querySelector("[aria-disabled=true]"), "color"), of(ask, "backgroundColor")]];
    }""")
    assert [pair for pair in colours if contrast(*pair) < 4.5] == []
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (contrast(background, "rgb(0, 0, 0)") > 10) == (scheme == "light")
    opened.draw()
    opened.screenshot(f"class-{scheme}")


def test_a_link_has_all_that_a_picture_is_made_of(open_page: Open, text_address: str, tmp_path: Path) -> None:
    opened = open_page(text_address, permissions=["clipboard-read", "clipboard-write"])
    page = opened.page
    opened.wait("^Ready$")
    page.select_option("#model", label="pocket")
    opened.wait("^Ready$")
    page.select_option("#steps", value="dpmpp_2m_karras-4")
    page.fill("#prompt", "a red circle & #5 = 100 %")
    page.click("text=What to avoid")
    page.fill("#negative", "blue")
    page.fill("#guidance", "2.5")
    page.fill("#seed", "12345678901234567890")
    opened.draw()
    first = opened.download(tmp_path)
    page.click("#share")
    opened.wait("clipboard")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{text_address}#")
    assert link == page.url
    other = open_page(link)
    other.wait("^Ready$")
    for field in ("prompt", "negative", "guidance", "seed", "steps"):
        assert other.page.input_value(f"#{field}") == page.input_value(f"#{field}")
    other.draw()
    assert other.download(tmp_path / "other").read_bytes() == first.read_bytes()


def test_what_a_link_asks_for_and_cannot_have_is_said(open_page: Open, address: str) -> None:
    opened = open_page(
        f"{address}#model=mnist-paper&class=zebra&steps=0&seed=abc&guidance=much&engine=foo&sampler=heun"
    )
    opened.wait("^Ready$")
    told = opened.page.locator("#notices li").all_inner_texts()
    assert len(told) == 6
    for words in (
        "class “zebra” is none of",
        "steps “0” is none of mnist-paper's: 4, 6, 8, 10,",
        "seed “abc” must be a",
        "engine “foo” is none of auto, webgpu, wasm",
        "sampler “heun” is none of mnist-paper's: ddim",
    ):
        assert any(words in line for line in told), told
    opened.draw()
    other = open_page(f"{address}#model=nobody", like=opened)
    other.wait("^Ready$")
    assert "no model “nobody” here" in other.page.inner_text("#notices")
    assert other.page.locator("#model option:checked").inner_text() == "mnist-paper"


def test_the_address_follows_the_form(open_page: Open, address: str) -> None:
    opened = open_page(f"{address}#model=mnist-paper&class=7&seed=abc")
    page = opened.page
    opened.wait("^Ready$")
    assert page.locator("#notices li").count() == 1
    page.select_option("#model", label="tiny")
    opened.wait("^Ready$")
    expect(page).to_have_url(re.compile("#model=tiny&class=cat&steps=10&guidance=2&seed=[0-9]+$"))
    assert page.locator("#notices li").count() == 0  # that was another link
    seed = page.input_value("#seed")
    page.reload()
    opened.wait("^Ready$")
    assert (page.locator("#model option:checked").inner_text(), page.input_value("#seed")) == ("tiny", seed)


@pytest.mark.parametrize(
    ("field", "text", "line"),
    [
        ("seed", "abc", "seed “abc” must be a whole number from 0 to 18446744073709551615"),
        ("seed", "18446744073709551616", "must be a whole number from 0 to 18446744073709551615"),
        ("seed", "-1", "must be a whole number"),
        ("guidance", "1e999", "guidance “1e999” must be a number"),
    ],
)
def test_what_is_typed_wrongly_is_said_beside_it(
    open_page: Open, address: str, field: str, text: str, line: str
) -> None:
    opened = open_page(f"{address}#model=tiny")
    page = opened.page
    opened.wait("^Ready$")
    page.fill(f"#{field}", text)
    page.click("#draw")
    expect(page.locator(f"#{field}-problem")).to_contain_text(line)
    assert page.get_attribute(f"#{field}", "aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == field
    page.fill(f"#{field}", "3")
    expect(page.locator(f"#{field}-problem")).to_be_hidden()
    opened.draw()


def test_an_empty_prompt_is_asked_for_and_a_long_one_is_cut_and_said(open_page: Open, text_address: str) -> None:
    opened = open_page(f"{text_address}#model=pocket&steps=4")
    page = opened.page
    opened.wait("^Ready$")
    assert page.input_value("#prompt") == "a red sneaker on a white background"
    page.fill("#prompt", " ")
    page.click("#draw")
    expect(page.locator("#prompt-problem")).to_be_visible()
    page.fill("#prompt", "red " * 10_000)
    page.keyboard.press("Enter")
    opened.wait("^Drawn in")
    assert page.locator("#notices li").count() == 1
    assert len(page.inner_text("#notices")) < 600
