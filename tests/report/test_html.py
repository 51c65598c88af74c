import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmalign.evaluation.table import read_rows, write_rows
from mmalign.report.commands import report

EVIL = "<script>document.title='owned'</script>"
VOID = {"meta", "input", "img", "br", "link"}


class Page(HTMLParser):
    """Elements with their attributes, and the text of the page; fails where tags are not nested."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: dict[str, str] = {}
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        self.text[where] = self.text.get(where, "") + data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> set[str]:
        return {attributes["id"] for attributes in self.all("section") if "id" in attributes}


@pytest.fixture(scope="module")
def page(run_maker: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    run = run_maker(tmp_path_factory.mktemp("one"))
    assert report([run]) == run / "report.html"
    return Page(run / "report.html")


@pytest.fixture(scope="module")
def arms(run_maker: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    root = tmp_path_factory.mktemp("arms")
    runs = [run_maker(root / f"{arm}-{seed}", arm, seed) for arm in ("naive", "replay") for seed in (0, 1)]
    return Page(report(runs, root / "sub" / "page.html"))


def test_a_full_run_has_every_section(page: Page) -> None:
    assert page.sections == {"results", "forgetting", "gallery", "training", "gap", "cost", "quarantine", "setup"}
    assert len(page.all("img")) >= 4
    assert len(page.all("audio")) >= 4
    assert "0.548" in page.source  # the main score of image-text at the end
    assert page.source.count(">emergent<") >= 1
    assert "wait for data" in page.source


def test_only_metrics_are_needed(run_maker: Callable[..., Path], tmp_path: Path) -> None:
    run = run_maker(tmp_path, side_files=False)
    (run / "config.yaml").unlink()
    assert Page(report([run])).sections == {"results", "forgetting", "setup"}
    write_rows(run / "metrics.jsonl", [row for row in read_rows(run / "metrics.jsonl") if row.stage_index == 0])
    assert Page(report([run])).sections == {"results", "setup"}
    write_rows(run / "metrics.jsonl", [])
    assert Page(report([run])).sections == {"results", "setup"}


def test_nothing_is_loaded_from_anywhere(page: Page, arms: Page) -> None:
    for shown in (page, arms):
        addresses = [
            value
            for _, attributes in shown.elements
            for name, value in attributes.items()
            if name in ("src", "href", "xlink:href", "poster", "srcset", "action", "data")
        ]
        assert [
            address[:40] for address in addresses if not address.startswith(("data:image/", "data:audio/", "#"))
        ] == []
        assert not re.findall(r"url\((?!#)|@import", shown.source)


def test_captions_keys_and_errors_are_text(page: Page) -> None:
    scripts = page.all("script")
    assert len(scripts) == 1
    assert "owned" not in page.text["script"]
    assert EVIL in page.text["p"]  # the caption
    assert EVIL in page.text["span"]  # the key of an unusable sample


def test_names_in_figures_and_tables_are_text(run_maker: Callable[..., Path], tmp_path: Path) -> None:
    run = run_maker(tmp_path)
    rows = read_rows(run / "metrics.jsonl")
    evil = {"scenes image-text": EVIL + "-->", "language": "$\\frac{1}{0}$ & co"}
    changed = [replace(row, column=evil.get(row.column, row.column), stage=row.stage + EVIL) for row in rows]
    write_rows(run / "metrics.jsonl", changed)
    info = json.loads((run / "run.json").read_text())
    info |= {"name": EVIL, "arm": None, "machine": EVIL, "versions": {EVIL: EVIL}}
    (run / "run.json").write_text(json.dumps(info))
    shown = Page(report([run]))
    assert len(shown.all("script")) == 1
    assert EVIL in shown.text["h1"]
    assert "$\\frac{1}{0}$ & co" in shown.source.replace("&amp;", "&")


def test_the_policy_lets_only_the_pages_own_script_run(page: Page) -> None:
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.text["script"].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    handlers = [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert handlers == []


def test_several_runs_are_grouped_by_arm(arms: Page) -> None:
    assert {"comparison", "results", "forgetting", "training", "cost"} <= arms.sections
    assert arms.source.count("2 seeds") == 2
    labels = [a["aria-label"] for a in arms.all("svg") if "aria-label" in a]
    assert {"forgetting matrix naive", "forgetting matrix replay", "retention against new-task score"} <= set(labels)
    assert "α=0.25" in arms.source


def test_a_run_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run directory"):
        report([tmp_path])
    with pytest.raises(ValueError, match="at least one"):
        report([])
