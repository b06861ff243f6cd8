"""The page in Chromium, against the real server: several pictures, progress, the divider, zoom, and errors."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.browser import headless_chromium
from support.serve_process import ServeProcess
from support.served_pictures import pixels_of, png

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DONE = "li.picture.done"
_TRANSFORM = "new DOMMatrix(getComputedStyle(document.getElementById('after')).transform)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless_chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: ServeProcess) -> Iterator[Page]:
    """The page, as a laptop shows it; whatever it throws or its policy forbids fails the test."""
    complaints: list[str] = []
    with browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True) as context:
        shown = context.new_page()
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on(
            "console",
            lambda message: complaints.append(message.text) if "Content Security" in message.text else None,
        )
        shown.goto(f"{server.http}/")
        yield shown
    assert not complaints


def files(folder: Path, **pictures: bytes) -> list[str]:
    for name, data in pictures.items():
        (folder / f"{name}.png").write_bytes(data)
    return [str(folder / f"{name}.png") for name in pictures]


def zoom_of(page: Page) -> dict[str, float]:
    return dict(page.evaluate(f"(({{a, e, f}}) => ({{zoom: a, x: e, y: f}}))({_TRANSFORM})"))


def test_several_pictures_are_upscaled_shown_and_downloaded(page: Page, tmp_path: Path) -> None:
    assert page.inner_text("h1") == page.title() == "hspan-tiny-x4"
    page.select_option("#format", "webp")
    page.set_input_files("#files", files(tmp_path, first=png(30, 20), second=png(16, 24, seed=1)))
    page.locator(DONE).nth(1).wait_for(timeout=60_000)
    texts = page.locator(f"{DONE} .says").all_inner_texts()
    assert ["20\N{MULTIPLICATION SIGN}30 to 80\N{MULTIPLICATION SIGN}120" in text for text in texts] == [
        True,
        False,
    ]
    assert "24\N{MULTIPLICATION SIGN}16 to 96\N{MULTIPLICATION SIGN}64" in texts[1]
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download second.png").click()
    assert downloading.value.suggested_filename == "second_upscaled.webp"
    assert pixels_of(Path(downloading.value.path()).read_bytes()).shape == (96, 64, 3)
    page.get_by_role("button", name="Show second.png").click()
    assert "second.png" in page.inner_text("#shown")
    assert page.get_attribute("#after", "alt") == "second.png after"
    assert page.evaluate("document.activeElement.id") == "viewport"
    page.get_by_role("button", name="Remove second.png").click()
    assert "first.png" in page.inner_text("#shown")
    page.click("#clear")
    assert page.locator("#viewer").is_hidden()
    assert page.locator("li.picture").count() == 0


def test_progress_counts_tiles(page: Page, tmp_path: Path) -> None:
    """A picture of 100x150 is a dozen tiles; each poll that the server answers leaves its words in the list."""
    page.evaluate(
        """() => {
            window.seen = [];
            new MutationObserver(() => window.seen.push(document.querySelector(".says")?.textContent))
                .observe(document.getElementById("pictures"), {childList: true, subtree: true});
        }"""
    )
    page.set_input_files("#files", files(tmp_path, large=png(150, 100)))
    page.wait_for_selector(DONE, timeout=60_000)
    seen = [text for text in page.evaluate("window.seen") if text and " of " in text]
    assert seen, "no tiles were counted"
    numbers = [tuple(int(word) for word in text.split() if word.isdigit()) for text in seen]
    assert numbers == sorted(numbers)
    assert numbers[-1][1] >= 6
    assert all(done <= tiles for done, tiles in numbers)


def test_divider_zoom_to_single_pixels_and_keys(page: Page, tmp_path: Path) -> None:
    page.set_input_files("#files", files(tmp_path, photo=png(120, 90)))
    page.wait_for_selector(DONE, timeout=60_000)
    clip = "getComputedStyle(document.querySelector('.layer.before')).clipPath"
    assert page.evaluate(clip) == "inset(0px 50% 0px 0px)"
    page.fill("#divider", "20")
    assert page.evaluate(clip) == "inset(0px 80% 0px 0px)"
    assert page.get_attribute("#divider", "aria-valuetext") == "20 % before, the rest after"
    box = page.locator("#viewport").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 100)  # fits: a click moves the divider
    assert page.evaluate(clip) == "inset(0px 25% 0px 0px)"
    page.focus("#viewport")
    page.keyboard.press("1")
    assert page.inner_text("#zoom") == "100 %"
    assert zoom_of(page)["zoom"] == 1
    for _ in range(9):
        page.keyboard.press("+")
    assert page.inner_text("#zoom") == "3200 %"
    assert page.locator("#in").is_disabled()
    rendering = "getComputedStyle(document.getElementById('after')).imageRendering"
    assert page.evaluate(rendering) == "pixelated"
    before = zoom_of(page)
    page.mouse.move(box["x"] + 300, box["y"] + 200)  # far from the divider: the picture moves
    page.mouse.down()
    page.mouse.move(box["x"] + 340, box["y"] + 170)
    page.mouse.up()
    after = zoom_of(page)
    assert (after["x"] - before["x"], after["y"] - before["y"]) == (40, -30)
    page.keyboard.press("ArrowRight")
    assert zoom_of(page)["x"] == after["x"] - 60
    # The wheel keeps what is under the pointer, which is at whole pixels.
    page.keyboard.press("1")
    for _ in range(2):
        page.keyboard.press("+")
    page.mouse.move(box["x"] + 500, box["y"] + 250)
    place, _ = zoom_of(page), page.mouse.wheel(0, -300)
    page.locator("#zoom", has_text="800 %").wait_for()
    now = zoom_of(page)
    assert (500 - now["x"]) / 2 == pytest.approx(500 - place["x"], abs=1)
    assert (250 - now["y"]) / 2 == pytest.approx(250 - place["y"], abs=1)
    page.keyboard.press("0")
    assert zoom_of(page)["zoom"] == pytest.approx(min(box["width"] / 480, box["height"] / 360), abs=0.001)


def test_dropped_and_pasted_files_take_the_same_way_and_errors_are_sentences(page: Page) -> None:
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File(["nonsense"], "holiday <b>.png"));
            window.dispatchEvent(new DragEvent("drop", {dataTransfer: data}));
        }"""
    )
    page.wait_for_selector("li.picture.failed", timeout=60_000)
    failed = page.inner_text("li.picture.failed")
    assert "holiday <b>.png" in failed
    assert "This file is not a picture that can be read" in failed
    assert page.inner_text("#status").startswith("holiday <b>.png: ")
    assert page.locator("li.picture b").count() == 0, "names are text"
    page.get_by_role("button", name="Remove").click()
    data = list(png(20, 12))
    page.evaluate(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "image.png", {type: "image/png"}));
            window.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
        }""",
        data,
    )
    page.wait_for_selector(DONE, timeout=60_000)
    assert "pasted-1.png" in page.inner_text(DONE)


def test_too_large_a_picture_says_both_sizes_and_can_be_tried_again(page: Page, tmp_path: Path) -> None:
    page.set_input_files("#files", files(tmp_path, huge=png(200, 150)))
    page.wait_for_selector("li.picture.failed", timeout=60_000)
    text = page.inner_text("li.picture.failed .says")
    assert "150x200" in text
    assert "20000" in text
    page.get_by_role("button", name="Try again huge.png").click()
    page.wait_for_selector("li.picture.failed", timeout=60_000)


def test_server_that_is_gone_and_one_that_is_busy(page: Page, tmp_path: Path) -> None:
    page.route("**/upscale*", lambda route: route.abort())
    page.set_input_files("#files", files(tmp_path, a=png(16, 16)))
    page.wait_for_selector("li.picture.failed", timeout=60_000)
    assert "The server cannot be reached" in page.inner_text("li.picture.failed")
    page.unroute("**/upscale*")
    busy: list[int] = []

    def answer(route: Any) -> None:
        busy.append(1)
        if len(busy) > 1:
            route.continue_()
        else:
            route.fulfill(status=503, headers={"Retry-After": "1"}, body='{"error": "busy"}')

    page.route("**/upscale*", answer)
    page.get_by_role("button", name="Try again a.png").click()
    page.wait_for_selector("li.picture:has-text('trying again in 1 s')", timeout=60_000)
    page.wait_for_selector(DONE, timeout=60_000)
    assert len(busy) == 2


def test_token_is_asked_for_and_used(page: Page, tmp_path: Path) -> None:
    def guard(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer open sesame":
            route.continue_()
        else:
            route.fulfill(status=401, body='{"error": "give this server\'s token"}')

    page.route("**/upscale*", guard)
    page.set_input_files("#files", files(tmp_path, a=png(16, 16)))
    page.wait_for_selector("#access:not([hidden])", timeout=60_000)
    page.fill("#token", "open sesame")
    page.keyboard.press("Enter")
    page.wait_for_selector(DONE, timeout=60_000)
    assert page.locator("#access").is_hidden()


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)], ids=["laptop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_laptop_and_phone_and_can_be_read(
    page: Page, tmp_path: Path, width: int, height: int, scheme: Any
) -> None:
    """Nothing scrolls sideways, the whole divider is in sight, text has the contrast of WCAG AA (4.5 to 1)."""
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    names = files(tmp_path, a_picture_with_quite_a_long_name_as_cameras_give_them=png(120, 90))
    page.set_input_files("#files", [*names, str(tmp_path / "broken.png")])
    page.wait_for_selector(DONE, timeout=60_000)
    page.wait_for_selector("li.picture.failed", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#viewer").scroll_into_view_if_needed()
    box = page.locator("#viewport").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert box["height"] <= 0.7 * height
    contrasts = page.evaluate(
        """() => {
            const channels = (text) => text.match(/[\\d.]+/g).map(Number);
            const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
                .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
            const ground = (node) => {
                for (; node; node = node.parentElement) {
                    const color = channels(getComputedStyle(node).backgroundColor);
                    if (color.length < 4 || color[3] === 1) return color;
                }
                return [255, 255, 255];
            };
            const nodes = "h1, h2, h2 small, .eyebrow, .soft, .says, .says b, .name, button";
            const seen = [...document.querySelectorAll(nodes)].filter((n) => n.offsetParent && !n.disabled);
            return seen.map((node) => {
                const [a, b] = [light(channels(getComputedStyle(node).color)), light(ground(node))];
                return [node.textContent.slice(0, 30), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
            });
        }"""
    )
    assert len(contrasts) > 10
    assert not [pair for pair in contrasts if pair[1] < 4.5]


def test_page_is_served_only_by_get_under_a_policy_of_its_own(server: ServeProcess) -> None:
    with urllib.request.urlopen(f"{server.http}/") as response:
        policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    script = policy.partition("script-src ")[2].partition(";")[0]
    assert "unsafe" not in script
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.http}/", data=b"x")
    assert refused.value.code == 405
