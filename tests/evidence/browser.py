"""A page in headless Chromium, from file://, driven by a script in a copy of it: what it drew, did wrong and asked for."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MISSING = "no Chromium here (apt-get install chromium): the page is looked at by its structure alone"

WATCH = """<script>
window.wrong = [];
window.addEventListener("error", function (event) { window.wrong.push(String(event.message || event.target)); }, true);
document.addEventListener("securitypolicyviolation", function (event) { window.wrong.push("asked for " + event.blockedURI); });
["error", "warn"].forEach(function (name) { const own = console[name]; console[name] = function () {
  window.wrong.push(Array.from(arguments).join(" ")); own.apply(console, arguments); }; });
</script>"""
TELL = """<script>
window.addEventListener("load", function () { setTimeout(function () {
  const told = {};
  try { DRIVE } catch (error) { window.wrong.push(String(error)); }
  told.wrong = window.wrong;
  told.requests = performance.getEntriesByType("resource").map(function (one) { return one.name; });
  const out = document.createElement("pre");
  out.id = "told";
  out.textContent = JSON.stringify(told);
  document.body.appendChild(out);
}, WAIT); });
</script>"""


def drive(page: Path, script: str, size: str = "1200,900", dark: bool = False, query: str = "", wait: int = 0) -> dict[str, Any]:
    """What `script`, run `wait` milliseconds after the page is there, put into `told`, with `wrong` (errors, warnings, forbidden
    requests) and `requests`. `query` follows the page's address."""
    text = page.read_text()
    tell = TELL.replace("DRIVE", script).replace("WAIT", str(wait))
    watched = text.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{tell}</body>", 1)
    copy = page.with_suffix(".watched.html")
    copy.write_text(watched)
    assert CHROMIUM is not None
    call = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={page.parent}/profile"]
    call += [f"--window-size={size}", f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=5000"]
    done = subprocess.run([*call, "--dump-dom", copy.as_uri() + query], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page did not finish:\n{done.stderr[-2000:]}"
    told: dict[str, Any] = json.loads(html.unescape(found[1]))
    return told
