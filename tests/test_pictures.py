"""The pictures of the documentation: small, whole in themselves, described in words, and as the code makes them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
PICTURES = sorted((ROOT / "docs" / "pictures").iterdir())
DRAWINGS = [picture for picture in PICTURES if picture.suffix == ".svg"]
FILM = ROOT / "docs" / "pictures" / "demo.gif"
FILM_BYTES_MAX = 3_000_000
SVG = "{http://www.w3.org/2000/svg}"
BYTES_MAX = 40_000
TAGS = {"svg", "title", "desc", "style", "defs", "marker", "g", "rect", "circle", "path", "text", "tspan"}
LINK = re.compile(r"""url\((?!#)|@import|https?:""")
SHOWN = re.compile(r"!\[([^\]]+)\]\(([^)]+)\)")


def test_a_picture_is_a_drawing_or_the_film_and_that_is_small() -> None:
    assert [picture for picture in PICTURES if picture not in DRAWINGS] == [FILM]
    assert FILM.read_bytes().startswith(b"GIF89a")
    assert FILM.stat().st_size < FILM_BYTES_MAX


@pytest.mark.parametrize("picture", DRAWINGS, ids=lambda picture: picture.name)
def test_a_picture_stands_alone(picture: Path) -> None:
    text = picture.read_text()
    drawing = ElementTree.fromstring(text)
    assert len(text) < BYTES_MAX
    assert {element.tag.removeprefix(SVG) for element in drawing.iter()} <= TAGS  # no script, image or foreign content
    assert not LINK.search(text.replace('xmlns="http://www.w3.org/2000/svg"', "", 1))
    assert not [name for element in drawing.iter() for name in element.attrib if name.startswith(("on", "{"))]
    named = [drawing.find(f"{SVG}{kind}[@id='{kind}']") for kind in ("title", "desc")]
    assert drawing.attrib["role"] == "img"
    assert drawing.attrib["aria-labelledby"] == "title desc"
    assert all(element is not None and element.text for element in named)
    assert "prefers-color-scheme: dark" in text
    assert drawing.attrib["viewBox"] == f"0 0 700 {drawing.attrib['height']}"


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_is_shown_with_words_for_those_who_do_not_see_it(picture: Path) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]
    shown = [(page, *found) for page in pages for found in SHOWN.findall(page.read_text())]
    words = [words for page, words, name in shown if (page.parent / name).resolve() == picture]
    assert words
    assert all(len(text) > 80 for text in words)


def test_all_pictures_have_one_style() -> None:
    styles = {re.sub(r"\n +\.(lane|dot|dashed|mark) .*", "", style_of(picture)) for picture in DRAWINGS}
    assert len(styles) == 1


def style_of(picture: Path) -> str:
    style = ElementTree.parse(picture).find(f"{SVG}style")
    assert style is not None
    return style.text or ""


def test_the_exchange_is_what_the_code_does() -> None:
    script = ROOT / "scripts" / "write_exchange_picture.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
