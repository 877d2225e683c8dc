import io
import json
import math
import re
from html.parser import HTMLParser

import fake_study
import matplotlib
import pytest
from rich.console import Console

from scorecraft.studies import wording
from scorecraft.studies.plots import DARK, png, world_figure
from scorecraft.studies.report import html_report, read_json, terminal_table, write_json, write_report
from scorecraft.studies.result import StudyResult
from scorecraft.studies.runner import run_study
from scorecraft.studies.statistics import PairedComparison
from scorecraft.studies.study import Claim, Metric


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study(
        fake_study.STUDY, scale="smoke", folder=tmp_path_factory.mktemp("run"), jobs=1, command="scorecraft <reproduce>"
    )


class Page(HTMLParser):
    """Collects the text and checks that what is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.tags, self.links = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_json_holds_the_contract_and_reads_back(result, tmp_path):
    path = tmp_path / "deep" / "smoke.json"
    write_json(result, path)
    content = json.loads(path.read_text())
    keys = {"claim", "contenders", "trials", "effect", "interval", "margin", "verdict", "provenance", "seeds", "metric"}
    assert keys <= content.keys()
    assert content["verdict"] == "holds"
    assert content["interval"][0] <= content["effect"] <= content["interval"][1]
    assert {trial["seed"] for trial in content["trials"]} == {0, 1, 2, 3}
    assert {one["role"] for one in content["contenders"]} == {"method", "baseline", "contender", "reference"}
    assert read_json(path) == result


def test_what_is_unbounded_is_null_in_json_and_reads_back(tmp_path):
    one = run_study(fake_study.STUDY, scale="smoke", folder=tmp_path, jobs=1, seeds=1)
    text = json.dumps(one.as_json(), allow_nan=False)
    assert one.as_json()["interval"] == [None, None]
    assert one.verdict == "inconclusive"
    assert StudyResult.from_json(json.loads(text)) == one
    write_report(one, tmp_path)
    assert "+∞" in (tmp_path / "report.html").read_text()


def test_another_schema_is_refused(result):
    with pytest.raises(ValueError, match="schema 1, got 0"):
        StudyResult.from_json({**result.as_json(), "schema": 0})


def test_comparisons_are_corrected_per_world_and_metric(result):
    names = [(one.world, one.metric, one.contender) for one in result.comparisons]
    assert names == [(w, m, c) for w in ("first", "second") for m in ("accuracy", "cost") for c in ("other", "new")]
    for one in result.comparisons:
        assert one.p_holm >= one.found.p_value
    assert result.comparison("first", "old", "accuracy") is None
    assert result.comparison("first", "truth", "accuracy") is None


def test_a_relative_claim_is_judged_in_shares_of_the_baseline(tmp_path):
    study = fake_study.variant(
        claim=Claim("A fifth more.", metric="accuracy", margin=0.2, relative=True), further_claims=()
    )
    result = run_study(study, scale="smoke", folder=tmp_path, jobs=1)
    assert result.claim.found.improvement == pytest.approx(0.2 / 0.52)
    assert "+38.5 %" in html_report(result)
    assert result.comparison("second", "new", "accuracy").found.relative
    assert not result.comparison("second", "new", "cost").found.relative


def test_the_page_needs_nothing_beside_it_and_escapes_everything(result):
    html = html_report(result)
    page = Page(html)
    text = "".join(page.text)
    for piece in ("On <Escaping> & other made-up matters", "second <world>", "Nothing here is <real>.", "new & better"):
        assert piece in text
    assert "scorecraft <reproduce>" in text
    assert "<real>" not in html
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert all(link.startswith(("data:image/png;base64,", "https://arxiv.org/abs/")) for link in page.links)
    assert page.tags.count("img") == 2
    assert "prefers-color-scheme: dark" in html
    assert "http" not in re.sub(r"https://arxiv\.org/abs/[0-9.]+", "", html)


def test_the_page_is_the_same_every_time(result):
    assert html_report(result) == html_report(result)


def test_writes_everything_it_says(result, tmp_path):
    files = write_report(result, tmp_path / "out")
    assert files.html.read_text().startswith("<!doctype html>")
    assert [path.name for path in files.plots] == ["plot-first.png", "plot-second.png"]
    for path in files.plots:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (files.json, files.html, *files.plots)
    )


def test_drawing_leaves_matplotlib_as_it_was(result):
    before = dict(matplotlib.rcParams)
    figure = world_figure(result, "first", DARK)
    assert png(figure, dpi=40).startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["new & better", "old", "other", "truth"]
    assert "margin" in "".join(text.get_text() for text in right.texts)
    _, right = world_figure(result, "second").axes
    assert not right.texts


@pytest.mark.parametrize("width", [60, 80, 200])
def test_terminal_table(result, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(terminal_table(result))
    text = console.file.getvalue()
    assert "New beats old by a tenth." in text
    assert "holds" in text
    assert "second <world>" in text
    assert max(map(len, text.splitlines())) <= width
    assert "+0.200" in text


def test_wording():
    metric = Metric("m", "m", decimals=2)
    found = PairedComparison(8, -0.123, -0.2, -0.05, -1.5, 0.0001)
    assert wording.improvement(found, metric) == "−0.12"
    assert wording.improvement_interval(found, metric) == "[−0.20, −0.05]"
    assert wording.effect_size(found) == "−1.50"
    assert wording.p_value(found.p_value) == "< 0.001"
    assert wording.change(0.25, metric, relative=True) == "+25.0 %"
    assert wording.change(math.inf, metric, relative=False) == "+∞"
    assert (wording.duration(3.21), wording.duration(119.9)) == ("3.2 s", "2 min 00 s")
