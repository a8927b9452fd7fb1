"""The search page in a real browser: headless Chromium, driven by Playwright."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
import uvicorn
from PIL import Image

from evaluation.isolated import IsolatedCalls
from evaluation.web.app import make_app
from evaluation.web.service import SearchService

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    # Its event loop is closed while a socket to the browser is still there.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
FLAGS = [
    *("--no-sandbox", "--disable-background-networking", "--disable-component-update"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
]


@pytest.fixture
def address(
    fakes: Path, indexed: Path, shards: Path, tmp_path: Path, calls: IsolatedCalls
) -> Iterator[str]:
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    for i in range(0, 40, 2):
        trimesh.creation.box(extents=(1, 0.5 + i / 40, 1)).export(meshes / f"{i:03d}.glb")
    service = SearchService(
        indexed, shards=str(shards), meshes=meshes, checkpoint=fakes, processes=calls
    )
    config = uvicorn.Config(make_app(service), "127.0.0.1", 0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The page, opened; ends with no error on its console and no request to elsewhere."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": 1100, "height": 800})
        page = context.new_page()
        page.set_default_timeout(30_000)
        problems: list[str] = []
        elsewhere: list[str] = []
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith((address, "data:", "blob:")) else elsewhere.append(r.url)
            ),
        )
        page.goto(address)
        page.wait_for_selector("body[data-ready=yes]")
        yield page
        context.close()
        browser.close()
        expected = "Failed to load resource"  # a 400 that a test asked for
        assert [text for text in problems if expected not in text] == []
        assert elsewhere == []


def categories(page: Any) -> list[str]:
    return list(page.locator("#hits li > strong").all_inner_texts())


def ask(page: Any, text: str) -> None:
    page.fill("input[name=text]", text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-status:has-text('best first')")


def png(red: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), red, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_text__ranks_and_filters_with_the_keyboard_alone(page: Any) -> None:
    ask(page, "a red mug")
    assert categories(page)[0] == "mug"
    assert len(categories(page)) == 24
    page.wait_for_selector("#hits li:first-child img")
    page.select_option("select[name=category]", "oak_tree")
    page.focus("input[name=text]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-status:has-text('10 objects')")
    assert set(categories(page)) == {"oak tree"}


def test_condition__is_applied_and_a_wrong_one_is_told(page: Any) -> None:
    page.click("summary")
    page.fill("input[name=where]", "uid < 'tiny/004'")
    page.fill("input[name=text]", "a mug")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-status:has-text('4 objects')")
    page.fill("input[name=where]", "drop table x")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-status.wrong")


def test_empty_query__says_what_to_do(page: Any) -> None:
    page.click("button.main >> nth=0")
    page.wait_for_selector("#search-status.wrong:has-text('the query is empty')")


def test_files__a_picture_a_mesh_and_a_broken_one(page: Any, tmp_path: Path) -> None:
    picture = {"name": "a.png", "mimeType": "image/png", "buffer": png(50)}
    page.set_input_files("#query input[type=file]", picture)  # searches at once
    page.wait_for_selector("#search-status:has-text('best first')")
    assert categories(page)[0] == "chair"
    box = trimesh.creation.box().export(file_type="glb")
    mesh = {"name": "box.glb", "mimeType": "model/gltf-binary", "buffer": box}
    page.set_input_files("#query input[type=file]", mesh)
    page.wait_for_selector("#search-status:has-text('best first')")
    broken = {"name": "box.glb", "mimeType": "model/gltf-binary", "buffer": b"glTF no"}
    page.set_input_files("#query input[type=file]", broken)
    page.wait_for_selector("#search-status.wrong:has-text('shape.glb')")


def test_drop__a_picture_on_the_field(address: str) -> None:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(bypass_csp=True).new_page()  # the test itself runs a script
        page.goto(address)
        page.wait_for_selector("body[data-ready=yes]")
        handle = page.evaluate_handle(
            """(bytes) => { const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
            return data; }""",
            list(png(50)),
        )
        page.dispatch_event("#query .drop", "drop", {"dataTransfer": handle})
        page.wait_for_selector("#search-status:has-text('best first')")
        assert categories(page)[0] == "chair"
        browser.close()


@pytest.mark.parametrize("kind", ["Mesh", "Point cloud"])
def test_viewer__turns(page: Any, kind: str) -> None:
    ask(page, "a mug")
    hit = page.locator("#hits li", has_text="tiny/000" if kind == "Mesh" else "tiny/033").first
    if kind != "Mesh":
        page.click("summary")
        page.fill("input[name=where]", "uid = 'tiny/033'")
        page.keyboard.press("Enter")
        page.wait_for_selector("#search-status:has-text('1 objects')")
    hit.locator("button.turn").click()
    page.wait_for_selector(f"#viewer-status:has-text('{kind};')")
    before = page.locator("#canvas").screenshot()
    turned = page.get_attribute("#canvas", "data-turn")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#canvas", "data-turn") != turned
    assert page.locator("#canvas").screenshot() != before
    area = page.locator("#canvas").bounding_box()
    page.mouse.move(area["x"] + 200, area["y"] + 200)
    page.mouse.down()
    page.mouse.move(area["x"] + 300, area["y"] + 240, steps=4)
    page.mouse.up()
    assert page.get_attribute("#canvas", "data-turn").split(",")[1] != turned.split(",")[1]
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer", state="hidden")


def test_more_like_this__and_download(page: Any) -> None:
    ask(page, "a fish")
    page.click("#hits li:first-child .like")
    page.wait_for_selector("#search-status:has-text('best first')")
    assert categories(page)[0] == "fish"
    with page.expect_download() as waiting:
        page.click("#csv")
    lines = Path(waiting.value.path()).read_text().splitlines()
    assert lines[0] == "rank,score,uid,category,source,texts"
    assert len(lines) == 25


def test_tabs__score_and_classes(page: Any) -> None:
    page.focus("#tab-search")
    page.keyboard.press("ArrowRight")
    box = trimesh.creation.box().export(file_type="glb")
    mesh = {"name": "box.glb", "mimeType": "model/gltf-binary", "buffer": box}
    page.set_input_files("#score-form input[type=file]", mesh)
    page.fill("#score-form input[name=text]", "a red mug")
    page.keyboard.press("Enter")
    page.wait_for_selector("#score-answer tr:has-text('views and text')")
    page.click("#tab-classify")
    page.set_input_files("#classify-form input[type=file]", mesh)
    page.fill("#classify-form textarea", "mug\n<b>fish</b>")
    page.click("#classify-form button.main")
    page.wait_for_selector("#classify-answer tr >> nth=1")
    assert page.locator("#classify-answer b").count() == 0
    assert page.locator("#classify-answer th", has_text="<b>fish</b>").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone__nothing_is_wider_than_the_screen(address: str, scheme: str) -> None:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(
            viewport={"width": 360, "height": 700}, color_scheme=scheme, bypass_csp=True
        )
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("body[data-ready=yes]")
        ask(page, "a mug")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (color == "rgb(20, 23, 26)") == (scheme == "dark")
        browser.close()
