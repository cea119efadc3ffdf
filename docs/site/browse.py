"""The built site in a headless browser, from files: no error, no request to another host, no page that has to be moved sideways
at three widths, and a search that finds.

    .venv/bin/python docs/site/browse.py build/site

Says so, and ends well, where there is no Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "evidence"))
from browser import CHROMIUM, MISSING, drive

PAGES = [f"docs/{name}.html" for name in ("index", "choose", "methods/progressive-admm", "tutorials/images", "command_line")]
WIDTHS = (500, 800, 1400)  # a headless Chromium is no narrower
WIDE = "told.over = document.documentElement.scrollWidth - window.innerWidth;"
FOUND = "told.found = document.querySelectorAll('#search-results li').length;"


def faults(site: Path) -> list[str]:
    """What is wrong, a line each."""
    told = []
    for page in PAGES:
        for width in WIDTHS:
            seen = drive(site / page, WIDE, f"{width},900")
            told += [f"{page} at {width}: {one}" for one in seen["wrong"]]
            told += [f"{page} at {width}: asks for {one}" for one in seen["requests"] if not one.startswith("file:")]
            if seen["over"] > 0:
                told.append(f"{page} at {width}: {seen['over']} pixels wider than the window")
    seen = drive(site / "search.html", FOUND, query="?q=quantize", wait=3000)
    return told if seen["found"] else [*told, "the search for 'quantize' finds nothing"]


def main(given: Path) -> int:
    if CHROMIUM is None:
        sys.stderr.write(f"{MISSING}\n")
        return 0
    with tempfile.TemporaryDirectory() as place:  # the browser's profile and watched copies lie beside the pages
        site = Path(place) / "site"
        shutil.copytree(given, site)
        told = faults(site)
    sys.stdout.write(("\n".join(told) or f"{len(PAGES)} pages at {len(WIDTHS)} widths and the search: nothing wrong") + "\n")
    return int(bool(told))


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/site")))
