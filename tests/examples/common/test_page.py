"""A report's page: whole in itself, safe, and readable."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from examples.common import page
from examples.common.pictures import write_picture

ENDLESS = {"meta", "link", "img"}


class Checker(HTMLParser):
    """What a page holds; every tag that is opened is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.cells = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in ENDLESS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th", "li", "p"):
            self.cells.append(data)


def test_a_page_needs_nothing_else(tmp_path):
    write_picture(tmp_path / "a.png", Image.new("RGB", (2, 2), "red").save)
    parts = [
        page.paragraph("a < b & c"),
        page.paragraph("<script>", is_faint=True),
        page.table({"method": ["sam", "a<b"], "%SAM": ["100", "2 ± 1"]}),
        page.picture(tmp_path / "a.png", 'of "one"'),
        page.heading("Settings"),
    ]
    page.write(tmp_path / "page.html", "R & D", parts)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = Checker(text)
    table = ["method", "%SAM", "sam", "100", "a<b", "2 ± 1"]
    assert found.cells == ["a < b & c", "<script>", *table]
    links = [value for name, value in found.attributes if name in ("src", "href")]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"url\(|@import|https?:|<script", text)
    assert ("alt", 'of "one"') in found.attributes
    assert ("content", "width=device-width, initial-scale=1") in found.attributes
    assert "prefers-color-scheme: dark" in text
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "page.html"}


def test_a_picture_that_fails_leaves_the_one_before(tmp_path):
    def fail(content, format):
        content.write(b"half")
        raise RuntimeError("no more memory")

    file = tmp_path / "a.png"
    write_picture(file, Image.new("RGB", (2, 2)).save)
    before = file.read_bytes()
    with pytest.raises(RuntimeError, match="memory"):
        write_picture(file, fail)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
