import base64
import html.parser
import re

import numpy as np
import pytest

from cnn_jax.reporting import plots, write_report
from cnn_jax.reporting.formats import format_column, format_number
from cnn_jax.reporting.report import Cards, Code, Details, Figure, Section, Table

EVIL = "<script>alert(\"1\")</script> & 'x' {braces} http://example.org/a.png"
VOID = {"meta", "link", "img", "br"}


class Checker(html.parser.HTMLParser):
    """Sees that every tag closes in order, and keeps tags, attributes and text."""

    def __init__(self, source: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def png(tmp_path):
    return plots.save(plots.image_grid(np.zeros((1, 4, 4), np.uint8)), tmp_path / "figures/grid.png")


def sections(png):
    table = Table(["class", EVIL, "count"], [[EVIL, 0.5, 10], ["b", 0.25, 1200]], EVIL)
    return [
        Section("Data & more", ["One.\n\nTwo.", Figure(png, EVIL), Figure(png, "second", alt="other")]),
        Section("Data & more", [table, Details(EVIL, [Code(f"run --flag\n{EVIL}"), table])]),
        Section("猫", [Cards([(EVIL, EVIL, EVIL), ("n", 1234), ("none", None)])], f"short {EVIL}"),
    ]


def test_is_well_formed_escaped_and_self_contained(tmp_path, png):
    path = write_report(tmp_path / "report.html", title=EVIL, summary=[EVIL], sections=sections(png), footer=EVIL)
    source = path.read_text()
    page = Checker(source)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed"}
    for tag, attributes in page.tags:
        for name in {"src", "href", "srcset", "action", "poster"} & {*attributes}:
            assert attributes[name].startswith(("data:", "#")), (tag, name)
    assert "url(" not in source
    assert "@import" not in source
    # As text everything is as it was written: heading, summary, caption, header, cell, fold, card (3), footer.
    assert sum(EVIL in text for text in page.text) >= 10
    assert page.all("html") == [{"lang": "en"}]
    assert {a["scope"] for a in page.all("th")} == {"col", "row"}
    ids = [a["id"] for a in page.all("h2")]
    assert ids == ["data-more", "data-more-2", "section"]
    assert [a["href"] for a in page.all("a")] == [f"#{name}" for name in ids]
    assert [page.text.count(text) for text in ("Data & more", "猫", f"short {EVIL}")] == [4, 1, 1]  # links and headings


def test_pictures_are_the_files(tmp_path, png):
    path = write_report(tmp_path / "report.html", title="t", summary=[], sections=sections(png))
    first, second = Checker(path.read_text()).all("img")
    for image in (first, second):
        assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True) == png.read_bytes()
    assert (first["alt"], second["alt"]) == (EVIL, "other")
    assert first["width"] == "461"  # 4.8 inches of 96 pixels


def test_wide_pictures_stand_across_the_page(tmp_path, png):
    wide = plots.save(plots.image_grid(np.zeros((1, 4, 4), np.uint8), wide=True), tmp_path / "wide.png")
    blocks = [Figure(png, "one"), Figure(wide, "two")]
    page = Checker(write_report(tmp_path / "report.html", title="t", summary=blocks, sections=[]).read_text())
    assert [image["width"] for image in page.all("img")] == ["461", "922"]
    assert [figure.get("class") for figure in page.all("figure")] == [None, "wide"]


def test_pictures_of_one_size_are_read_row_by_row(tmp_path, png):
    other = plots.save(plots.image_grid(np.zeros((1, 8, 4), np.uint8)), tmp_path / "figures/other.png")
    blocks = [Figure(png, "a"), Figure(png, "b"), "and", Figure(png, "c"), Figure(other, "d")]
    path = write_report(tmp_path / "report.html", title="t", summary=[], sections=[Section("s", blocks)])
    assert [of.get("class") for of in Checker(path.read_text()).all("div")] == ["figures rows", "figures"]


def test_numbers_of_a_table_are_flush_right(tmp_path):
    table = Table(["name", "share", "count", "text"], [["a", 0.5, 1200, "x"], ["b", 0.25, 7, "1 y"]])
    source = write_report(tmp_path / "r.html", title="t", summary=[table], sections=[]).read_text()
    assert re.findall(r'<t[hd][^>]*class="number">(.*?)</t[hd]>', source) == [
        "share", "count", "0.5000", "1,200", "0.2500", "7"
    ]  # fmt: skip
    assert "<nav" not in source


def test_the_same_data_give_the_same_bytes(tmp_path, png):
    a, b = (write_report(tmp_path / f, title="t", summary=["s"], sections=sections(png)).read_bytes() for f in "ab")
    assert a == b


def test_an_error_leaves_the_old_report(tmp_path, png):
    path = write_report(tmp_path / "report.html", title="old", summary=[], sections=[])
    old = path.read_bytes()
    (tmp_path / "no.png").write_bytes(b"GIF89a")
    for block, error, message in (
        (Figure(tmp_path / "missing.png", ""), FileNotFoundError, "missing"),
        (Figure(tmp_path / "no.png", ""), ValueError, "not a PNG"),
        (Table(["a", "b"], [[1, 2], [3]]), ValueError, "every row needs 2 cells"),
        (Table(["a", "b"], [[1, 2, 3]]), ValueError, "every row needs 2 cells"),
        (3, TypeError, "got int"),
    ):
        with pytest.raises(error, match=message):
            write_report(path, title="new", summary=[], sections=[Section("s", [block])])
    with pytest.raises(TypeError, match=r"write \[text\]"):
        write_report(path, title="new", summary="a text", sections=[])
    assert path.read_bytes() == old
    assert not list(tmp_path.glob(".*"))


def test_numbers_as_text():
    values = [0, 7, 1234567, np.int32(5), 0.5, 0.01234, 123.456, 12345.6, 1.5e-6, 2e9, None, np.nan, -np.inf]
    assert [format_number(v) for v in values] == [
        "0", "7", "1,234,567", "5", "0.5000", "0.0123", "123.5", "12,346", "1.50e-06", "2.00e+09", "–", "–",
        "\N{MINUS SIGN}∞",
    ]  # fmt: skip
    assert format_column([0.9812, 12.5, None]) == (["0.98", "12.50", "–"], True)
    assert format_column([0.9, 0.0003]) == (["0.9000", "0.0003"], True)
    assert format_column(["98.1 %", "1,234", "0.98 ± 0.01", "3.2 ms", "1.4×"])[1]
    assert not format_column(["28 × 28 × 32", "128"])[1]
    assert format_column([True, "x"]) == (["True", "x"], False)
    assert format_column([]) == ([], False)
