"""Writes what the docs take from the code; with --check on the command line only says whether a page is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def write(page: Path, made: str, part: str = "") -> None:
    """Writes a page, or its part between `<!-- PART -->` and `<!-- end of PART -->`.

    With --check nothing is written, and the exit status is 1 if anything would change.
    """
    before = page.read_text()
    after = made
    if part:
        begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->\n"
        head, found, rest = before.partition(begin)
        _, closed, tail = rest.partition(end)
        assert found, f"{page} has no {begin}"
        assert closed, f"{page} has no {end}"
        after = head + begin + made + end + tail
    if "--check" not in sys.argv[1:]:
        page.write_text(after)
    elif after != before:
        sys.exit(f"{page.name} is not up to date with the code: run 'make docs'")


def table(*rows: tuple[object, ...]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
