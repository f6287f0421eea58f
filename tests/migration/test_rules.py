"""Options by module, from the command line to the file: by the dense reference, and verified."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
from safetensors.numpy import load_file
from toy_pair import RANK, ToyFiles, make_files

from prolora_jax.adapters.adapter import delta
from prolora_jax.cli.main import run
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model

FROM_WEIGHTS = 2e-3  # of the update: the toy adapter, and so the output, is float16
RULES = """
rules:
  - path: "*attn2.to_q"
    basis_rank: gap
    method: rotation
    min_similarity: -1
  - path: ["*attn2.to_k", "*attn2.to_v"]
    basis_rank: optimal
    min_similarity: 0.05
    rank: 2
  - path: "*attn1.to_out.0"
    method: copy
    scale: -0.5
  - path: "*nothing*"
    scale: 7
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("rules"))


def migrate(files: ToyFiles, out: Path, rules: str, *options: str) -> int:
    job = out.parent / "job.yaml"
    job.parent.mkdir(parents=True, exist_ok=True)
    given = f"source: {files.source}\ntarget: {files.target}\n"
    job.write_text(f"{given}include: ['*up_blocks.1.att*']\nbasis_rank: energy=0.8\n{rules}")
    store = str(files.adapter.parent / "store")
    command = ["migrate", str(files.adapter), "--config", str(job), "--out", str(out)]
    return run([*command, "--store", store, "-q", *options])


def said_of(path: str) -> tuple[str, tuple, str, float | None, float]:
    """Method, rank rule, output rank, limit and scale of a module: the job's rules, by hand."""
    role = path.split("transformer_blocks.")[-1].partition(".")[2]
    if role == "attn2.to_q":
        return "rotation", ("gap",), "exact", None, 1.0
    if role in ("attn2.to_k", "attn2.to_v"):
        return "prolora-full", ("optimal",), "2", 0.05, 1.0
    if role == "attn1.to_out.0":
        return "copy", (), "exact", None, -0.5
    return "prolora-full", ("energy", 0.8), "exact", 0.8, 1.0


def test_each_module_follows_its_rule(files: ToyFiles, tmp_path: Path):
    out = tmp_path / "out.safetensors"
    assert migrate(files, out, RULES) == 0
    report = json.loads(Path(f"{out}.report.json").read_text())
    assert report["flags"] == ["idle-rule: 4"]
    assert [rule["path"] for rule in report["options"]["rules"]][0] == "*attn2.to_q"
    source, target = load_base_model(files.source), load_base_model(files.target)
    before, after = (
        load_adapter(path, model.spec) for path, model in ((files.adapter, source), (out, target))
    )
    seen = set()
    for row in report["modules"]:
        method, rule, rank, limit, scale = said_of(row["path"])
        update = delta(before, row["source_path"])
        expected = scale * update
        if method == "copy":
            assert (row["action"], row["phi_left"]) == ("copy", None)
        else:
            weights = source.matrix(row["source_path"]), target.matrix(row["path"])
            pair = pair_by(rule, weights)
            phis = reference.phi(pair.u_s, pair.u_t), reference.phi(pair.v_s, pair.v_t)
            assert (row["phi_left"], row["phi_right"]) == pytest.approx(phis, abs=1e-5)
            assert limit is None or min(phis) >= limit - 1e-5
            expected = reference.project(method, pair, expected)
        if rank == "2":
            assert row["rank_out"] <= 2 < RANK
            expected = reference.truncate(expected, 2)
        if "clustered-cut" not in row["flags"]:
            error = np.linalg.norm(delta(after, row["path"]) - expected) / np.linalg.norm(update)
            assert error <= FROM_WEIGHTS, row["path"]
            seen.add((method, rule[:1]))
    assert len(seen) == 4
    skipped = {row["path"] for row in report["skipped"] if row["reason"] == "below-threshold"}
    assert skipped
    assert not any(said_of(path)[3] is None for path in skipped)


def pair_by(rule: tuple, weights: tuple[np.ndarray, np.ndarray]) -> reference.Pair:
    if rule == ("optimal",):
        rule = ("optimal", *sorted(weights[0].shape))
    spectra = [reference.svd(weight)[1] for weight in weights]
    k = reference.pair_ranks(spectra[0], spectra[1], rule)
    return reference.pair_of_weights(*weights, *k)


def test_verify_honours_rules_and_notices_others(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.safetensors"
    assert migrate(files, out, RULES, "--include", "*up_blocks.1.attentions.0*") == 0
    bases = ["--source", str(files.source), "--target", str(files.target)]
    command = ["verify", str(out), "--source-lora", str(files.adapter), *bases, "--json"]
    assert run(command) == 0
    report_file = Path(f"{out}.report.json")
    report = json.loads(report_file.read_text())
    report["options"]["rules"][2]["scale"] = 0.5
    report_file.write_text(json.dumps(report))
    capsys.readouterr()
    assert run(command) == 1
    found = json.loads(capsys.readouterr().out)
    failed = {m["path"] for m in found["modules"] if m["verdict"] == "failed"}
    assert failed
    assert all(path.endswith("attn1.to_out.0") for path in failed)


def test_folder_and_single_file_are_the_same_under_rules(files: ToyFiles, tmp_path: Path):
    alone = tmp_path / "alone.safetensors"
    assert migrate(files, alone, RULES) == 0
    job = tmp_path / "job.yaml"
    catalog = tmp_path / "in"
    catalog.mkdir()
    for name in ("a", "b"):
        (catalog / f"{name}.safetensors").write_bytes(files.adapter.read_bytes())
    store = ["--store", str(files.adapter.parent / "store")]
    run(["migrate", str(catalog), "--config", str(job), "--out", str(tmp_path / "o"), *store, "-q"])
    tensors = load_file(alone)
    for name in ("a", "b"):
        found = load_file(tmp_path / "o" / f"{name}.safetensors")
        assert found.keys() == tensors.keys()
        assert all(np.array_equal(found[key], tensors[key]) for key in tensors)
    bases = ["--source", str(files.source), "--target", str(files.target)]
    assert run(["verify", str(tmp_path / "o"), "--source-lora", str(catalog), *bases, "-q"]) == 0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            "rules: [{path: '*'}, {path: '*', basis_rank: energy=7}]",
            "rule 2: found --basis-rank energy",
        ),
        ("rules: [{path: '*', ranks: 8}]", "rule 1: found ranks (did you mean rank?)"),
        ("rules: {path: '*'}", "rules: found dict; expected a list"),
    ],
)
def test_bad_rules_end_the_command_with_code_2(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], rules: str, message: str
):
    assert migrate(files, tmp_path / "out.safetensors", rules) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.safetensors").exists()


def test_no_rules_are_no_rules(files: ToyFiles, tmp_path: Path):
    plan = tmp_path / "x.safetensors"
    assert migrate(files, plan, "rules: []", "--dry-run") == 0
