"""The page about a catalog: complete, harmless whatever names hold, and working in a browser."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from patience import UNTIL_HUNG
from small_adapters import write
from toy_pair import make_files

from prolora_jax.catalog.page.facts import COLUMNS, decisions, refusals, trust
from prolora_jax.catalog.page.figures import heat_map, histogram
from prolora_jax.catalog.page.render import page_html
from prolora_jax.catalog.page.words import REASONS
from prolora_jax.cli.main import run
from prolora_jax.errors import Refusal
from prolora_jax.plans.catalog_record import CatalogRecord, CatalogSummary, count_records

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = '</script><b onclick="x">&amp;\'☃\u2028 50%#?.safetensors'


def records(count: int = 40) -> list[CatalogRecord]:
    made = []
    for n in range(count):
        name = f"styles/{n:04}.safetensors"
        if n % 10 == 9:
            code = ("wrong-base", "truncated", "alpha-zero")[n // 10 % 3]
            message = f"loras/{name}: found this; expected that"
            made.append(CatalogRecord(name, None, "refused", "refused", code, message))
        else:
            whole = n % 2 == 0
            made.append(
                CatalogRecord(
                    name,
                    name,
                    "ok" if whole else "partial",
                    "migrated",
                    modules=10,
                    moved=10 if whole else 4,
                    skipped={} if whole else {"removed-in-target": 6},
                    energy_in=2.0,
                    energy_moved=2.0 if whole else 0.1 + n / 40 / (1 + count / 40),
                    phi_mean=0.9,
                    size_out=1000 * n,
                    flags=("weak-match: 2",) if n == 3 else (),
                )
            )
    made[1] = replace(made[1], input=HOSTILE, output=HOSTILE, preview=HOSTILE)
    return made


def summary(found: list[CatalogRecord], **changes) -> CatalogSummary:
    counts = count_records(found)
    made = CatalogSummary(
        "loras",
        "/data/out",
        "sdxl",
        "ssd-1b",
        {"method": "prolora-full"},
        counts.files,
        counts.by_state,
        counts.by_verdict,
        counts.by_reason,
        relation="Close relatives.",
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T01:00:00+00:00",
        seconds=3600.0,
    )
    return replace(made, **changes)


SIMILAR = {
    f"unet.{slot}.transformer_blocks.{n}.{role}": (0.95, 0.5)
    for slot in ("down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.2")
    for n in (0, 1, 10)
    for role in ("attn1.to_q", "attn2.to_out.0")
}


class Elements(HTMLParser):
    """Names of elements with attributes, and what the data block holds."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag == "script" and dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data
            self._inside = False


def test_every_file_is_on_it_and_names_are_harmless(tmp_path: Path):
    found = records()
    text = page_html(summary(found), found, SIMILAR, tmp_path / "page.html")
    page = Elements(text)
    data = json.loads(page.data)
    assert tuple(data["columns"]) == COLUMNS
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in data["rows"]]
    assert [row["input"] for row in rows] == [r.input for r in found]
    assert sum(tag == "b" and "onclick" in attrs for tag, attrs in page.found) == 0
    assert [attrs for tag, attrs in page.found if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    hostile = rows[1]["output"]
    assert not set(hostile) & set("<>\"'#?&")
    assert "36 of 40 adapters have moved" in text
    assert "/data/out" in text
    assert rows[9]["message"] == "found this; expected that"


def test_it_asks_nothing_of_the_network(tmp_path: Path):
    found = records()
    text = page_html(summary(found), found, SIMILAR, tmp_path / "page.html")
    page = Elements(text)
    links = [v for _, attrs in page.found for k, v in attrs.items() if k in {"src", "href"}]
    assert all(str(link).startswith("#") for link in links)
    assert not re.findall(r"(?:https?:)?//\w+\.\w+", text)
    policy = next(a["content"] for t, a in page.found if t == "meta" and "http-equiv" in a)
    assert (policy or "").startswith("default-src 'none'")


def test_numbers_are_those_of_the_records(tmp_path: Path):
    found = records()
    assert [(g.number, g.view) for g in refusals(found)] == [
        (2, "reason=wrong-base"),
        (1, "reason=truncated"),
        (1, "reason=alpha-zero"),
    ]
    asked = {g.view: g.number for g in decisions(found)}
    little = sum((r.energy_moved or 2) < 1.0 for r in found if r.energy_in)
    assert asked == {
        "reason=wrong-base": 2,
        "reason=alpha-zero": 1,
        "q=weak-match": 1,
        "sort=kept": little,
    }
    verified = {"checked": 36, "ok": 36, "failed": 0, "recomputed": 20}
    assert trust(summary(found)).level == "open"
    assert trust(summary(found, verified=verified)).level == "yes"
    assert trust(summary(found, verified=verified | {"failed": 1})).level == "no"
    unfinished = summary(found, finished=None)
    assert "Not finished" in page_html(unfinished, found, {}, tmp_path / "page.html")
    dry = summary(found, started=None)
    assert "36 of 40 adapters can move" in page_html(dry, found, {}, tmp_path / "page.html")


def test_reasons_have_words():
    run_only = {
        *("unreadable-base", "missing-library", "bad-option", "bad-report", "bad-plan", "locked"),
    }
    assert {str(code) for code in Refusal} - run_only == set(REASONS)


def test_figures_tell_every_value():
    figure = heat_map(SIMILAR)
    assert figure is not None
    titles = {box.title for box in figure.boxes}
    assert len(titles) == 2 * len(SIMILAR)
    assert "unet.mid_block.attentions.0.transformer_blocks.1.attn1.to_q right: 0.500" in titles
    assert [w.text for w in figure.rows][:4] == [
        "down.1.attentions.0.0",
        "down.1.attentions.0.1",
        "down.1.attentions.0.10",
        "mid_block.attentions.0.0",
    ]
    assert {box.shade for box in figure.boxes} == {5, 9}
    spread = histogram([0.0, 0.02, 0.99, 1.0, 1.0])
    assert spread is not None
    assert [box.title for box in spread.boxes][::19] == [
        "0% to 5%: 2 files",
        "95% to 100%: 3 files",
    ]
    assert heat_map({}) is None
    assert histogram([]) is None


def test_commands_write_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    toys = make_files(tmp_path)
    for n in range(2):
        write(tmp_path / "loras" / f"{n}.safetensors", n, (4,), ("to_q",))
    (tmp_path / "loras" / "x.zip").write_bytes(b"PK")
    pair = ["--source", str(toys.source), "--target", str(toys.target)]
    common = ["--store", str(tmp_path / "store"), "-q"]
    out, page = str(tmp_path / "out"), tmp_path / "pages" / "page.html"
    command = ["migrate", str(tmp_path / "loras"), *pair, *common, "--out", out]
    assert run([*command, "--dry-run", "--report", str(page)]) == 1
    assert "2 of 3 adapters can move" in page.read_text()
    assert run([*command, "--report", str(page)]) == 1
    text = page.read_text()
    assert "2 of 3 adapters have moved" in text
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in json.loads(Elements(text).data)["rows"]]
    assert (page.parent / rows[0]["output"]).is_file()
    assert text.count("<rect") > 40  # similarities of the pair, as the run measured them
    assert run(["verify", out, *common]) == 0
    assert run(["status", out, "--report", str(page), *common]) == 0
    assert "All 2 outputs are as they were written; 2 recomputed" in page.read_text()
    capsys.readouterr()
    one = ["migrate", str(tmp_path / "loras" / "0.safetensors"), *pair, *common, "--out", "x"]
    assert run([*one, "--report", str(page)]) == 2
    assert "for several adapters" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: apt-get install chromium")
def test_in_a_browser(tmp_path: Path):
    found = records(5000)
    page = tmp_path / "page.html"
    page.write_text(page_html(summary(found), found, SIMILAR, page))
    shown = browse(page, "")
    assert len(rows_of(shown)) == 100
    assert "5000 of 5000 files" in shown
    assert "page 1 of 50" in shown
    refused = browse(page, "#verdict=refused&q=wrong")
    assert f"{sum(r.reason == 'wrong-base' for r in found)} of 5000 files" in refused
    assert all("found this" in row for row in rows_of(refused))
    largest = rows_of(browse(page, "#sort=-size_out"))
    assert "4998.safetensors" in largest[0]
    assert "4997.safetensors" in largest[1]
    (hostile,) = rows_of(browse(page, "#q=onclick"))
    assert html.escape(HOSTILE, quote=False).replace("☃", "") in hostile.replace("☃", "")
    image = tmp_path / "page.png"
    browse(page, "", f"--screenshot={image}")
    assert image.stat().st_size > 50_000


def browse(page: Path, view: str, what: str = "--dump-dom") -> str:
    """The page as a browser has it after its program ran; a complaint of it fails the test."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000"]
    flags += ["--enable-logging=stderr", "--window-size=1280,1000", what]
    done = subprocess.run(
        [str(CHROMIUM), *flags, f"{page.as_uri()}{view}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=UNTIL_HUNG,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def rows_of(shown: str) -> list[str]:
    body = shown.partition("<tbody>")[2].partition("</tbody>")[0]
    return re.findall(r"<tr>.*?</tr>", body, re.DOTALL)
