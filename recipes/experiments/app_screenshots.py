"""Pictures of the web app for the documentation, over the synthetic data of `make demo`.

    python recipes/demo.py --output runs/demo
    python recipes/experiments/app_screenshots.py --demo runs/demo --output docs/images

Needs a Chromium, playwright and pillow. Prices and pictures of items are made up here, because the synthetic data has none.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw
from playwright.sync_api import Page, Route, expect, sync_playwright

from modeling_cllm4rec.app.answers import ShownModels
from modeling_cllm4rec.app.item_columns import ItemColumns
from modeling_cllm4rec.app.page import build_page, launch
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers

HOST = "http://pictures.example"
WIDTH, HEIGHT, COLOURS = 1220, 1120, 48
TURNS = ("something for a quiet evening", "something cheaper", "why this one?")
FIELD = "Looking for, in words (LC-Rec)"


def picture(number: int) -> bytes:
    """Return a PNG of a coloured shape that represents an item."""
    random = np.random.default_rng(number)
    image = Image.new("RGB", (96, 96), "white")
    draw, colour = ImageDraw.Draw(image), tuple(int(part) for part in random.integers(40, 220, 3))
    (draw.ellipse if number % 2 else draw.rectangle)((24, 16, 72, 80), fill=colour)
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def plain_ids(models: ShownModels) -> ShownModels:
    """Return the models with ids that every font has: those of the synthetic data test odd characters."""
    for one in models.shown:
        table, users = one.model.require_catalogue().table, one.model.users
        assert users is not None
        names = pa.array([f"B{number:03}" for number in range(len(table))])
        one.model.set_catalogue(Catalogue(table.set_column(table.column_names.index("item_id"), "item_id", names)))
        one.model.users = KnownUsers([f"user-{number}" for number in range(len(users))], users.indptr, users.items)
    return ShownModels(models.shown)


def save(page: Page, file: Path) -> None:
    """Write what the page shows as a PNG with few colours, which keeps the repository small."""
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(500)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def serve(models: ShownModels) -> tuple[Any, str]:
    """Start the app and return it with its address."""
    page = build_page(models)
    _, address, _ = launch(page, models.columns.image_hosts, prevent_thread_lock=True, quiet=True)
    return page, address


def side_by_side(page: Page, address: str, user: str, file: Path) -> None:
    """Show both systems for a known user."""
    take(page, address, user)
    page.get_by_role("button", name="Recommend", exact=True).click()
    expect(page.locator(".answers section")).to_have_count(2, timeout=90_000)
    page.locator(".card").nth(15).wait_for()
    save(page, file)


def take(page: Page, address: str, user: str) -> None:
    """Open the app and load a known user."""
    page.goto(address)
    field = page.get_by_label("Or a known user")
    field.fill(user)
    field.press("Enter")
    page.get_by_role("list", name="History").wait_for()


def conversation(page: Page, address: str, user: str, file: Path) -> None:
    """Show LC-Rec's answers to several turns, with pictures and prices."""
    page.route(f"{HOST}/*", fulfil)
    take(page, address, user)
    for number, words in enumerate(TURNS, start=1):
        field = page.get_by_label(FIELD)
        field.fill(words)
        field.press("Enter")
        expect(page.locator("#turns li")).to_have_count(number, timeout=90_000)
        expect(field).to_have_value("", timeout=90_000)
    page.locator("img.picture").first.wait_for()
    save(page, file)


def fulfil(route: Route) -> None:
    """Answer the request for a picture."""
    route.fulfill(body=picture(int(Path(route.request.url).stem)), content_type="image/png")


def main() -> int:
    """Take the pictures."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--demo", default="runs/demo", help="output folder of recipes/demo.py")
    flags.add_argument("--output", default="docs/images", help="folder of the pictures")
    given = flags.parse_args()
    chromium, output = shutil.which("chromium"), Path(given.output)
    if chromium is None:
        print("app_screenshots.py: error: there is no chromium; run: apt-get install chromium", file=sys.stderr)
        return 1
    output.mkdir(parents=True, exist_ok=True)
    both = plain_ids(ShownModels.load([f"{given.demo}/run", f"{given.demo}/lcrec"]))
    lcrec = both.shown[1]
    size, users = len(both.catalogue), lcrec.model.users
    assert users is not None
    user = f"user-{users.history_lengths(np.arange(len(users))).argmin()}"
    made_up = {
        "item_id": both.catalogue.ids.array,
        "price": np.random.default_rng(0).integers(3, 60, size) + 0.5,
        "picture": [f"{HOST}/{number}.png" for number in range(size)],
    }
    with_pictures = ShownModels([lcrec], ItemColumns.read(both.catalogue, pa.table(made_up), images="picture"))
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for models, name in ((both, "app-side-by-side.png"), (with_pictures, "app-turns.png")):
            shown, address = serve(models)
            page = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light").new_page()
            if models is both:
                side_by_side(page, address, user, output / name)
            else:
                conversation(page, address, user, output / name)
            shown.close()
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
