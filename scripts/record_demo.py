"""Records the picture at the top of the README: the demo's page, while a node and the broker fail and return.

python scripts/record_demo.py [FILE.gif] [--pace N] [--light]

It starts `merklekv demo`, presses the buttons of its page in Chromium (`apt-get install chromium`), and writes what was
to be seen. A film has room for less than a page: it leaves out the curves and the tables, and has the nodes in one row.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from merklekv import interpreter

PICTURE: Final = Path(__file__).parent.parent / "docs" / "pictures" / "demo.gif"
WIDTH, HEIGHT = 900, 740
FRAMES_S: Final = 8
COLOURS: Final = 128
POINT_S: Final = 0.7  # from the pointer on a button to the press
LAST_FRAME_S: Final = 3.0  # the film stands still before it begins again
EQUAL_S: Final = 60.0
ADDRESS: Final = re.compile(r"the page is at (\S+)")
BEGUN: Final = re.compile("All equal, 0 of [1-9]")
STORY: Final = (  # what is pressed, each after so many seconds; what was started has healed by then
    (1.8, "kill-node-2"),
    (3.0, "start-node-2"),
    (1.6, "stop-broker"),
    (3.6, "start-broker"),
)
END_S: Final = 1.5
FILM: Final = """
.facts, #theme, .demo, .board > :nth-child(2), #problems-panel, .panel:has(#keys), .pair, .why { display: none }
main > .panel .note { display: none }
main { padding-block: 16px; gap: 12px }
.tools { margin-left: auto }
.sentence { font-size: 21px }
.board { grid-template-columns: 1fr }
.diagram { grid-template-columns: repeat(3, 1fr); gap: 40px 16px }
.row { display: contents }
.broker { grid-column: 1 / -1; order: 2 }
.parts li { grid-template-columns: 8ch 1fr; align-items: center }
.strip { grid-column: auto; order: 0 }
.said { display: none }
.presses button:hover:not(:disabled) { background: var(--ink); color: var(--panel) }
"""


@contextmanager
def demo() -> Iterator[str]:
    """The address of the page of a demo that runs meanwhile, and leaves the outages to us."""
    command = [*interpreter.command("merklekv"), "demo", "--seconds", "3600"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(found[1] for line in process.stdout if (found := ADDRESS.search(line)))
        finally:
            process.terminate()
            process.communicate()


def film(page: Page, pace: float) -> Iterator[tuple[float, bytes]]:
    """Pictures, each with its time in seconds."""
    began = time.monotonic()

    def shots(seconds: float, done: Callable[[], bool] = lambda: False) -> Iterator[tuple[float, bytes]]:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end and not done():
            yield now - began, page.screenshot()
            page.wait_for_timeout(max(1.0, 1000 * (now + 1 / FRAMES_S - time.monotonic())))

    for wait_s, name in STORY:
        button = page.locator(f"[data-press={name}]")
        yield from shots(wait_s * pace)
        button.hover()
        yield from shots(POINT_S * pace)
        button.click()
        page.mouse.move(0, 0)
        if name.startswith("start"):
            yield from shots(EQUAL_S, page.locator("[data-level=good]").is_visible)
    yield from shots(END_S * pace)


def write(frames: list[tuple[float, bytes]], path: Path) -> None:
    pictures = [Image.open(io.BytesIO(frame)).convert("RGB") for _, frame in frames]
    palette = _palette(pictures)
    reduced = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    times = [at for at, _ in frames]
    lengths = [
        round(1000 * (after - at)) for at, after in zip(times, [*times[1:], times[-1] + LAST_FRAME_S], strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    reduced[0].save(path, save_all=True, append_images=reduced[1:], duration=lengths, loop=0, optimize=True)


def _palette(pictures: list[Image.Image]) -> Image.Image:
    """The colours of the whole film: one palette, or colours would change between two frames."""
    chosen = pictures[:: max(1, len(pictures) // 12)]
    sheet = Image.new("RGB", (chosen[0].width, chosen[0].height * len(chosen)))
    for number, picture in enumerate(chosen):
        sheet.paste(picture, (0, number * picture.height))
    return sheet.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def record(path: Path, pace: float, colours: Literal["dark", "light"]) -> None:
    with demo() as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=colours, bypass_csp=True)
        page = view.new_page()
        page.goto(address)
        page.add_style_tag(content=FILM)
        page.locator("#sentence").filter(has_text=BEGUN).wait_for(timeout=1000 * EQUAL_S)
        frames = list(film(page, pace))
        chromium.close()
    write(frames, path)
    print(f"{path}: {len(frames)} frames, {path.stat().st_size:,} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("path", metavar="FILE.gif", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--pace", type=float, default=1.0, help="0.5: everything is pressed twice as soon")
    parser.add_argument("--light", action="store_true", help="dark otherwise")
    given = parser.parse_args()
    record(given.path, given.pace, "light" if given.light else "dark")
    return 0


if __name__ == "__main__":
    sys.exit(main())
