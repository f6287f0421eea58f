"""The page as HTML: one file with its style, its program and its rows in it."""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from prolora_jax.catalog.page import facts
from prolora_jax.catalog.page.figures import heat_map, histogram
from prolora_jax.plans.catalog_record import CatalogRecord, CatalogSummary


def page_html(
    summary: CatalogSummary,
    records: Sequence[CatalogRecord],
    similarities: Mapping[str, tuple[float, float]],
    place: Path,
) -> str:
    """The page about a catalog.

    Args:
        summary: the catalog in numbers.
        records: all of its files.
        similarities: of the pair, (left, right) by target path; may be empty.
        place: where the page will be: links to outputs and previews are relative to it.

    Returns:
        HTML that asks nothing of the network.
    """
    loader = PackageLoader("prolora_jax.catalog.page", "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style, program = (loader.get_source(environment, f"page.{kind}")[0] for kind in ("css", "js"))
    base = os.path.relpath(Path(summary.out).resolve(), place.resolve().parent)
    base = "" if base == "." else base
    kept = [share for share in map(facts.kept_energy, records) if share is not None]
    phis = [record.phi_mean for record in records if record.phi_mean is not None]
    data = {"columns": facts.COLUMNS, "rows": [facts.row(record, base) for record in records]}
    return environment.get_template("template.html").render(
        summary=summary,
        dry=summary.started is None,
        finished=facts.count_finished(records),
        copies=summary.by_state.get("duplicate", 0),
        partial=sum(record.verdict == "partial" for record in records),
        refusals=facts.refusals(records),
        decisions=facts.decisions(records),
        trust=facts.trust(summary),
        heat=heat_map(similarities),
        kept=histogram(kept),
        phis=histogram(phis),
        data=Markup(_json(data)),
        style=Markup(style),
        program=Markup(program),
        style_hash=_hash(style),
        program_hash=_hash(program),
    )


def _json(data: object) -> str:
    """JSON that cannot end the element it stands in, whatever file names hold."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}"
