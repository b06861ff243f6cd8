"""The report's page in a real browser, made by the command from real networks."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from support.browser import headless_chromium
from support.export_cache import ExportCache
from support.golden import load_golden_network
from support.synthetic_pictures import picture

from trt_hspan.cli import main
from trt_hspan.evaluation.resize import downscale
from trt_hspan.media.writing import write_picture

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LAPTOP, PHONE = (1366, 768), (390, 844)


@dataclass(frozen=True)
class WrittenReport:
    """What `validate --report` left behind."""

    folder: Path
    code: int

    @property
    def html(self) -> str:
        return (self.folder / "index.html").read_text(encoding="utf-8")

    @property
    def figures(self) -> dict:
        return json.loads((self.folder / "report.json").read_text())


@pytest.fixture(scope="module")
def written(exported: ExportCache, tmp_path_factory: pytest.TempPathFactory) -> WrittenReport:
    """FP16 and BF16 of the golden network on two pictures; BF16 misses the bar. One name wants escaping."""
    folder = tmp_path_factory.mktemp("report")
    for index, name in enumerate(["waves", "<i>discs & more"]):
        high = picture(96, 128, seed=index)
        write_picture(folder / "set" / "HR" / f"{name}.png", high)
        write_picture(folder / "set" / "LR_bicubic" / "X4" / f"{name}x4.png", downscale(high, 4))
    files = [exported("small_x4", precision=precision) for precision in ("fp16", "bf16")]
    words = ["validate", *files, "--checkpoint", load_golden_network("small_x4").checkpoint]
    options = ["--images", folder / "set", "--report", folder / "out", "--min-psnr", 75, "--json"]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in (*words, *options)])
    return WrittenReport(folder / "out", int(stopped.value.code or 0))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless_chromium() as chromium:
        yield chromium


def opened(
    browser: Browser, written: WrittenReport, size: tuple[int, int] = LAPTOP, scheme: str = "light"
) -> Page:
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page.goto((written.folder / "index.html").as_uri())
    return page


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int16)


# The file ------------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Every place in a page that could name another file."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images_without_alt = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        names = ("src", "href", "srcset", "data", "action", "poster")
        self.links += [values[name] or "" for name in names if name in values]
        self.images_without_alt += tag == "img" and not values.get("alt")


def test_page_is_one_file_that_names_no_other(written: WrittenReport) -> None:
    links = Links(written.html)
    assert links.links
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in links.links)
    assert links.images_without_alt == 0
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", written.html)
    assert "default-src 'none'" in written.html
    assert sorted(path.name for path in written.folder.iterdir()) == ["index.html", "report.json"]


def test_missed_bar_is_exit_code_1_and_stands_in_the_page_and_in_the_figures(written: WrittenReport) -> None:
    assert written.code == 1
    assert written.figures["passed"] is False
    assert [network["passed"] for network in written.figures["networks"]] == [True, False]
    assert [network["label"] for network in written.figures["networks"]] == ["FP16", "BF16"]
    assert "<title>Failed" in written.html


def test_error_of_every_module_is_reported_and_fp16_is_better_than_bf16_everywhere(
    written: WrittenReport,
) -> None:
    fp16, bf16 = (
        {layer["module"]: layer["psnr_db"] for layer in network["layers"]}
        for network in written.figures["networks"]
    )
    assert fp16["head.0"] is None  # exact: it stays in float32
    assert bf16["head.0"] is None
    for module in ("body.0.body.0", "body.0.body.1", "body.0", "body.1", "body.2", "tail.1", "add_mean"):
        assert fp16[module] > bf16[module] + 6, module  # 3 bits are 18 dB
    # The last point is the output itself, with another peak: within 6 dB of the picture's PSNR.
    total = written.figures["networks"][0]["total"]["mean_psnr_db"]
    assert fp16["add_mean"] == pytest.approx(total, abs=6)


# In the browser ------------------------------------------------------------------------------------------------


def test_page_opens_without_errors_and_asks_for_nothing(browser: Browser, written: WrittenReport) -> None:
    page = browser.new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((written.folder / "index.html").as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [(written.folder / "index.html").as_uri()]
    assert complaints == []
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    page.close()


def test_table_shows_the_figures(browser: Browser, written: WrittenReport) -> None:
    page = opened(browser, written)
    rows = page.locator("section:has(#precisions) tbody tr")
    for index, network in enumerate(written.figures["networks"]):
        cells = [
            cell.replace("\N{MINUS SIGN}", "-") for cell in rows.nth(index).locator("td").all_inner_texts()
        ]
        total = network["total"]
        assert cells[0] == f"{total['worst_psnr_db']:.2f}"
        assert cells[1] == f"{total['mean_psnr_db']:.2f}"
        assert float(cells[2]) == pytest.approx(total["max_abs_error"] * 255, rel=0.01)
        assert cells[3] == f"{total['candidate_quality']['psnr_y_db']:.3f}"
        assert float(cells[4]) == pytest.approx(total["psnr_y_loss_db"], abs=5e-5)
        assert cells[5] == f"{total['candidate_quality']['ssim_y']:.4f}"
        assert "emulated\non CPU" in cells[10]
    assert rows.nth(2).inner_text().startswith("FP32")
    assert rows.nth(3).inner_text().startswith("Bicubic")
    page.close()


def test_slider_moves_by_mouse_and_by_keyboard(
    browser: Browser, written: WrittenReport, tmp_path: Path
) -> None:
    page = opened(browser, written)
    slider = page.locator(".slider").first
    slider.scroll_into_view_if_needed()
    page.locator("select.left").first.select_option("truth")
    start = pixels(slider.screenshot())
    box = slider.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] * 0.8
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, y, steps=5)
    page.mouse.up()
    divider = page.locator(".divider").first.bounding_box()
    assert divider is not None
    assert (divider["x"] - box["x"]) / box["width"] == pytest.approx(0.9, abs=0.03)
    dragged = pixels(slider.screenshot())
    width = start.shape[1]
    band = slice(round(width * 0.6), round(width * 0.8))
    # Left of the first divider both show the ground truth; between the dividers it took the network's place.
    assert np.abs(dragged[:200, : width // 3] - start[:200, : width // 3]).max() == 0
    assert np.abs(dragged[:200, band] - start[:200, band]).max() > 20
    handle = page.locator(".slider input").first
    handle.focus()
    page.keyboard.press("Home")
    assert handle.input_value() == "0"
    page.keyboard.press("ArrowRight")
    assert handle.input_value() == "0.5"
    assert "Ground truth" in (handle.get_attribute("aria-valuetext") or "")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert pixels((tmp_path / "page.png").read_bytes()).std() > 10
    page.close()


def test_other_pictures_can_be_chosen_for_both_sides(browser: Browser, written: WrittenReport) -> None:
    page = opened(browser, written)
    slider = page.locator(".slider").first
    shown = "[...document.querySelector('.slider').querySelectorAll('img')]"
    assert page.evaluate(
        f"{shown}.filter((i) => i.matches('.on-left, .on-right')).map((i) => i.dataset.key)"
    ) == [
        "bicubic",
        "network0",
    ]
    page.locator("select.right").first.select_option("network1")
    page.locator("select.left").first.select_option("fp32")
    assert page.evaluate(
        f"{shown}.filter((i) => i.matches('.on-left, .on-right')).map((i) => i.dataset.key)"
    ) == [
        "fp32",
        "network1",
    ]
    assert slider.locator(".tag.right").inner_text() == "BF16"
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_page_fits_the_screen_and_follows_its_color_scheme(
    browser: Browser, written: WrittenReport, size: tuple[int, int], scheme: str
) -> None:
    page = opened(browser, written, size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) / 3 for color in (ground, ink)]
    assert (brightness[0] > brightness[1]) is (scheme == "light")
    assert abs(brightness[0] - brightness[1]) > 150  # far above the contrast of 7:1 of WCAG AAA
    assert (
        page.evaluate(
            "Math.min(...[...document.querySelectorAll('p, td, li')].map((e) => "
            "parseFloat(getComputedStyle(e).fontSize)))"
        )
        >= 13
    )
    page.close()


def test_names_of_pictures_are_text_and_never_markup(browser: Browser, written: WrittenReport) -> None:
    page = opened(browser, written)
    headings = page.locator(".picture h3").all_inner_texts()
    assert any(heading.startswith("<i>discs & more") for heading in headings)
    page.close()
