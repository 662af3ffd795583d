"""The built site in a real browser: nothing scrolls sideways, and the search finds the right page.

Needs the site in docs/_build/html, which `make docs` builds, and Chromium.
"""

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="needs make docs"),
]

PROBE = """
<iframe id="page" style="border: 0"></iframe><pre id="result"></pre>
<script>
const pages = PAGES, width = WIDTH, frame = document.getElementById("page"), found = {};
frame.style.width = width + "px"; frame.style.height = "900px";
function open(i) {
  if (i === pages.length) {
    document.getElementById("result").textContent = "RESULT" + JSON.stringify(found) + "END";
    return;
  }
  frame.onload = () => {
    const root = frame.contentDocument.documentElement;
    const code = root.ownerDocument.querySelector("article pre");
    found[pages[i]] = {
      over: root.scrollWidth - width,
      code: code ? parseFloat(frame.contentWindow.getComputedStyle(code).fontSize) : null,
    };
    open(i + 1);
  };
  frame.src = "/" + pages[i];
}
open(0);
</script>
"""


class Handler(http.server.SimpleHTTPRequestHandler):
    probe = ""

    def do_GET(self):
        if not self.path.startswith("/probe"):
            super().do_GET()
            return
        body = self.probe.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        del format, args


@pytest.fixture(scope="module")
def server():
    handler = functools.partial(Handler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def dom(url, profile, milliseconds=30_000):
    """The document after its scripts have run."""
    result = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            f"--virtual-time-budget={milliseconds}",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return html.unescape(result.stdout)


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways_and_code_is_legible(server, tmp_path, width):
    skipped = {"genindex.html", "py-modindex.html", "search.html"}
    pages = [str(path.relative_to(SITE)) for path in sorted(SITE.rglob("*.html"))]
    pages = [page for page in pages if page not in skipped and not page.startswith("_")]
    Handler.probe = PROBE.replace("PAGES", json.dumps(pages)).replace("WIDTH", str(width))
    text = dom(f"{server}/probe", tmp_path, 120_000)
    result = re.search(r"RESULT(\{.*\})END", text)
    assert result, text[-2000:]
    found = json.loads(result[1])
    assert found.keys() == set(pages)
    assert {page: x["over"] for page, x in found.items() if x["over"] > 0} == {}
    assert {p: x["code"] for p, x in found.items() if x["code"] and x["code"] < 14} == {}


@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("freeze", "guides/fine_tuning"),
        ("accumulate", "guides/precision"),
        ("multi gpu", "guides/devices"),
        ("nan", "troubleshooting"),
        ("slow", "troubleshooting"),
        ("rho", "does_sam_help"),
        ("lora", "guides/fine_tuning"),
        ("checkpoint", "guides/logging"),
        ("batchnorm", "integrate"),
        ("pmap", "guides/devices"),
    ],
)
def test_the_search_finds_the_right_page_first(server, tmp_path, word, page):
    text = dom(f"{server}/search.html?q={word.replace(' ', '+')}", tmp_path)
    results = re.search(r'<ul[^>]*class="search"[^>]*>(.*?)</ul>', text, re.DOTALL)
    assert results, text[-2000:]
    pages = re.findall(r'<a href="([^"?#]+)\.html', results[1])
    assert pages[0] == page, pages[:5]
