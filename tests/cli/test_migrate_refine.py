"""`migrate --refine` asks for what `refine` would do, and refuses what it would not."""

import json
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from prolora_jax.catalog import refined
from prolora_jax.catalog.refined import RefinedFiles
from prolora_jax.cli.main import run
from prolora_jax.cli.migrate import migrate
from prolora_jax.cli.migrate_refine import FOLLOWED
from prolora_jax.plans.options import MigrationOptions

BASES = ["--source", "s", "--target", "t"]
REFUSED = {
    "dry_run": "--dry-run",
    "preset": "--preset paper",
    "merge": "--merge",
    "weight": "--weight 2",
    "sidecars": "--sidecars",
    "plan": "--plan p.json",
    "report": "--report r.html",
    "fail_fast": "--fail-fast",
    "retry_failed": "--retry-failed",
    "headers_only": "--headers-only",
    "keep_operators": "--keep-operators",
    "method": "--method prolora-full",
    "basis_rank": "--basis-rank numerical",
    "pair_rank": "--pair-rank own",
    "min_similarity": "--min-similarity 0.5",
    "gate": "--gate corrected",
    "gate_sides": "--gate-sides left",
    "below": "--below copy",
    "identical": "--identical project",
    "match": "--match name",
    "match_score": "--match-score similarity",
    "rotation_min_cos": "--rotation-min-cos 0.2",
    "include": "--include *attn*",
    "exclude": "--exclude *attn*",
    "rank": "--rank 4",
    "uniform_rank": "--uniform-rank",
    "rescale": "--rescale norm",
    "scale": "--scale 0.5",
    "dtype": "--dtype float16",
    "allow_partial": "--allow-partial",
    "alpha_zero": "--alpha-zero rank",
    "factor_rank": "--factor-rank exact",
    "dora": "--dora keep",
    "fused": "--fused keep",
    "for_reader": "--for vllm",
}
IN_FILES = {"rules"}  # of --config alone


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What the package was asked for: nothing is loaded or written."""
    calls: list[Any] = []

    def kept(inputs: Any, out: Any, bases: Any, request: Any, **how: Any) -> RefinedFiles:
        store = how["store"]
        calls.append(
            (tuple(inputs), out, bases, request, store.folder, store.keeps, how["workers"])
        )
        return RefinedFiles((), (), {})

    monkeypatch.setattr(refined, "refine_files", kept)
    monkeypatch.setenv("PROLORA_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--format kohya --overwrite --strip-metadata --assume-base sdxl --allow-pickle "
        "--ignore-license --workers 3 --store elsewhere --quiet --json",
    ],
)
def test_both_commands_ask_for_the_same(asked: list[Any], more: str):
    words = ["a.safetensors", "b", *BASES, "--out", "o", *more.split()]
    assert run(["refine", *words]) == 0
    assert run(["migrate", *words, "--refine"]) == 0
    assert run(["migrate", *words, "--refine", "--method", "copy"]) == 0
    first, *others = asked
    assert [first, first] == others
    assert first[:2] == ((Path("a.safetensors"), Path("b")), Path("o"))
    assert first[3].options.method == "copy"


def test_every_option_is_followed_or_refused():
    named = {*signature(migrate).parameters, *(f.name for f in fields(MigrationOptions))}
    known = {*FOLLOWED, *REFUSED, *IN_FILES, "inputs", "options", "refine", "assume_base"}
    assert named == known


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_refinement_does_not_do_is_refused(asked: list[Any], name: str, capsys, tmp_path):
    given = REFUSED[name]
    words = ["migrate", "a.safetensors", *BASES, "--out", "o", "--refine", "--json"]
    assert run([*words, *given.split()]) == 2
    flag = "--" + name.replace("_", "-")
    found = json.loads(capsys.readouterr().out)
    assert found["code"] == "bad-option"
    several = name in ("weight", "include", "exclude")
    shown = flag if several else given
    assert found["message"].startswith(f"migrate --refine: found {shown}; expected none of that")
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_auto_asks_for_the_same_and_refuses_the_same(asked: list[Any], capsys, tmp_path):
    words = ["migrate", "a.safetensors", *BASES, "--out", "o"]
    assert run([*words, "--refine"]) == 0
    assert run([*words, "--method", "auto"]) == 0
    taught, chosen = (call[3] for call in asked)
    assert chosen == replace(taught, decides=True)
    asked.clear()
    for name, given in REFUSED.items():
        if name != "method":
            assert run([*words, "--method", "auto", "--json", *given.split()]) == 2
            found = json.loads(capsys.readouterr().out)
            flag = "--" + name.replace("_", "-").replace("for-reader", "for")
            assert found["message"].startswith(f"migrate --method auto: found {flag}")
    assert run([*words, "--refine", "--method", "auto"]) == 2  # one of both
    assert run([*words[:2], *BASES, "--method", "auto"]) == 2
    assert "migrate --method auto: found no --out" in capsys.readouterr().err
    assert run(["fleet", "run", *words[1:], "--method", "auto"]) == 2  # teaches nothing
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_rules_of_a_file_are_refused_and_all_is_named_at_once(asked: list[Any], capsys, tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text("refine: true\nrank: '4'\nrules:\n  - {path: '*to_q', rank: '2'}\n")
    words = ["migrate", "a.safetensors", *BASES, "--out", "o", "--config", str(config)]
    assert run([*words, "--merge"]) == 2
    assert "found --merge, --rank 4, --rules; expected" in " ".join(capsys.readouterr().err.split())
    assert asked == []


def test_an_output_has_to_be_named(asked: list[Any], capsys):
    assert run(["migrate", "a.safetensors", *BASES, "--refine"]) == 2
    assert "migrate --refine: found no --out; expected the file" in capsys.readouterr().err
    assert asked == []


def test_help_says_data_free(capsys):
    assert run(["migrate", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--refine copy, then teach the copies by samples of both base models" in said
    assert "data-free, not training-free" in said
    assert "[default: prolora-full]" in said
