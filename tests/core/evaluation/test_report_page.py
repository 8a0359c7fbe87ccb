from html.parser import HTMLParser

from smra_core.evaluation.report_page import Picture, Video, write_report


class Page(HTMLParser):
    """The tags, their attributes and the texts of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def page_of(tmp_path, metrics, title="Report", files=None):
    write_report(
        tmp_path / "report.html",
        title,
        ["First.", "Second."],
        [Video("base", "base.mp4", "no LoRA")],
        metrics,
        {"Motion Amount": "Mean speed."},
        [Picture("Losses", "losses.png", "Every step.")],
        files or {"LoRA": "subject.safetensors"},
    )
    return Page((tmp_path / "report.html").read_text("utf-8"))


def test_every_part_is_on_the_page(tmp_path):
    page = page_of(tmp_path, {"base": {"Motion Amount": 0.5}})
    assert {"Report", "First.", "Second.", "base", "no LoRA", "Mean speed.", "Every step.", "LoRA"} <= set(
        page.texts
    )
    sources = [attributes.get("src") or attributes.get("href") for _, attributes in page.tags]
    assert [source for source in sources if source] == ["base.mp4", "losses.png", "subject.safetensors"]


def test_the_best_value_of_a_metric_is_marked_and_a_missing_one_is_a_dash(tmp_path):
    metrics = {"base": {"a": 0.25, "b": 2.0}, "sparse": {"a": 0.5}}
    page = page_of(tmp_path, metrics)
    cells = [attributes.get("class") for tag, attributes in page.tags if tag == "td"]
    assert cells == [None, None, "best", None, "best", None]  # name, a, b; name, a, b
    assert [text for text in page.texts if text in ("0.250", "2.000", "0.500", "–")] == [
        "0.250",
        "2.000",
        "0.500",
        "–",
    ]


def test_texts_cannot_add_tags(tmp_path):
    hostile = '<script>alert("x")</script>'
    page = page_of(tmp_path, {hostile: {hostile: 1.0}}, hostile, {hostile: '" onclick="x'})
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onclick" in attributes for _, attributes in page.tags)
    assert hostile in page.texts
