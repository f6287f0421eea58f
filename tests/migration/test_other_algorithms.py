"""LoHa, LoKr, DoRA and full differences through whole migrations, alone and in a catalog."""

from pathlib import Path

import numpy as np
import pytest
import toy_pair
from safetensors.numpy import load_file, save_file

from prolora_jax.adapters.adapter import delta
from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.adapters.fitting import fit
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.catalog.catalog import run_catalog
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.adapters.whole_files import convert_file, inspect_file
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.layout import weight_to_matrix
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions, factor_rank
from prolora_jax.verification.file import verify_file
from prolora_jax.verification.structured import DENSE

NAMES = ("loha", "lokr", "dora", "full", "ia3", "oft", "boft", "glora")
SOME = 12
"""Modules that a file has; four sizes of them."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> toy_pair.ToyFiles:
    made = toy_pair.make_files(tmp_path_factory.mktemp("toy"))
    pairs = load_file(made.adapter)
    keys = [k.removesuffix(".lora_down.weight") for k in pairs if k.endswith(".lora_down.weight")]
    for name in NAMES:
        rng = np.random.default_rng(NAMES.index(name))
        tensors: dict[str, np.ndarray] = {}
        for key in keys[:: len(keys) // SOME]:
            down, up = pairs[f"{key}.lora_down.weight"], pairs[f"{key}.lora_up.weight"]
            parts = of(name, down, up, rng)
            tensors |= {f"{key}.{part}": array for part, array in parts.items()}
        place = made.adapter.parent / f"{name}.safetensors"
        save_file(tensors, place, {"ss_network_module": "lycoris.kohya", "ss_network_args": "{}"})
    return made


def of(
    name: str, down: np.ndarray, up: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Parts of one module, in float16."""
    out, width = up.shape[0], int(np.prod(down.shape[1:]))

    def some(*shape: int) -> np.ndarray:
        return (0.1 * rng.standard_normal(shape)).astype(np.float16)

    match name:
        case "loha":
            ends = {"hada_w1_a": (out, 2), "hada_w1_b": (2, width)}
            ends |= {"hada_w2_a": (out, 2), "hada_w2_b": (2, width)}
            return {end: some(*shape) for end, shape in ends.items()}
        case "lokr":
            return {"lokr_w1": some(4, 4), "lokr_w2": some(out // 4, width // 4)}
        case "dora":
            magnitude = (1.0 + some(out, 1)).astype(np.float16)
            return {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": magnitude}
        case "ia3":
            return {"weight": some(out), "on_input": np.zeros((), np.float32)}
        case "oft":
            return {"oft_blocks": some(out // 4, 4, 4), "alpha": np.zeros((), np.float16)}
        case "boft":
            return {"oft_blocks": some(2, out // 4, 4, 4), "alpha": np.zeros((), np.float16)}
        case "glora":
            ends = {"a1.weight": (width, 2), "a2.weight": (2, width)}
            ends |= {"b1.weight": (out, 2), "b2.weight": (2, width)}
            return {end: some(*shape) for end, shape in ends.items()}
        case _:
            return {"diff": some(out, width)}


def migrated(files: toy_pair.ToyFiles, name: str, out: Path, **options):
    """With LoRA factors alone, whatever is copied."""
    place = files.adapter.parent / f"{name}.safetensors"
    how = MigrationOptions(**options)
    return migrate_file(place, files.source, files.target, out, how, Writing(format="lora"))


@pytest.mark.proves("LoHa, LoKr, DoRA, full difference", "migrate", "dense float64 path (`verify`)")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["copy", "prolora"])
def test_a_file_moves_and_verifies(files, tmp_path: Path, name: str, method: str):
    report = migrated(files, name, tmp_path / "out.safetensors", method=method).report
    assert report.modules
    assert {module.algorithm for module in report.modules} == {name}
    shares = [module.factored for module in report.modules]
    assert all(share is not None and 0.99 < share <= 1.0 for share in shares)
    exact = min(share for share in shares if share) > 1.0 - 1e-9
    assert exact == (name in {"loha", "lokr", "glora"})
    checked = verify_file(tmp_path / "out.safetensors")
    assert checked.ok, checked
    # No program is to take the output for a file of the other algorithm.
    header = load_adapter(tmp_path / "out.safetensors").metadata
    assert header["ss_network_module"] == "networks.lora"
    assert "ss_network_args" not in header
    written = load_file(tmp_path / "out.safetensors")
    assert {array.dtype.name for key, array in written.items() if ".lora_" in key} <= {
        "float16",
        "float32" if name in {"dora", "ia3"} else "float16",
    }


def test_the_factors_follow_the_rank_that_is_asked_for(files, tmp_path: Path):
    options = {"factor_rank": "max=3", "method": "copy"}
    report = migrated(files, "full", tmp_path / "out.safetensors", **options).report
    assert {module.rank_in for module in report.modules} == {3}
    assert all(module.factored and module.factored < 0.9 for module in report.modules)
    assert verify_file(tmp_path / "out.safetensors").ok


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"algorithm":"lokr"', '"algorithm":"loha"', "report has algorithm loha"),
        ('"algorithm":"lokr"', '"algorithm":null', "report has algorithm None"),
        ('"factored":', '"factored":0.5,"was":', "report has factored 0.5"),
    ],
)
def test_what_the_report_says_of_the_factors_is_compared(
    files, tmp_path: Path, old: str, new: str, problem: str
):
    out = tmp_path / "out.safetensors"
    report = migrated(files, "lokr", out, method="copy").report_file
    text = report.read_text().replace('": ', '":')
    assert old in text
    report.write_text(text.replace(old, new, 1))
    checked = verify_file(out)
    assert not checked.ok
    told = [*checked.problems, *(p for module in checked.modules for p in module.problems)]
    assert any(problem in one for one in told), told


def test_a_catalog_of_all_of_them(files, tmp_path: Path):
    folder = tmp_path / "catalog"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.safetensors").symlink_to(files.adapter.parent / f"{name}.safetensors")
    (folder / "plain.safetensors").symlink_to(files.adapter)
    pair = BasePair(load_base_model(files.source), load_base_model(files.target))
    job = CatalogJob((folder,), tmp_path / "out")
    found = run_catalog(job, pair)
    assert found.by_state == {"migrated": len(NAMES) + 1}, found.by_reason
    for name in NAMES:
        assert verify_file(tmp_path / "out" / f"{name}.safetensors").ok
    # Nothing is done again: the content of such a file is known by its own tensors.
    before = {path: path.stat().st_mtime_ns for path in job.out.glob("*.safetensors")}
    assert run_catalog(job, pair).by_state == {"migrated": len(NAMES) + 1}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_dora_of_another_base_model_is_refused_without_its_weights(files):
    place = files.adapter.parent / "dora.safetensors"
    adapter = load_adapter(place, structured=True)
    with pytest.raises(AdapterRefused, match="needs-source-weights:DoRA") as caught:
        fit(adapter, load_base_model(files.source).spec)
    assert caught.value.code is Refusal.NEEDS_SOURCE_WEIGHTS


@pytest.mark.parametrize("name", NAMES)
def test_converted_to_lora(files, tmp_path: Path, name: str):
    place, out = files.adapter.parent / f"{name}.safetensors", tmp_path / "out.safetensors"
    source = load_base_model(files.source)
    convert_file(place, "lora", out, files.source, factor_rank=FactorRank(1.0, None))
    given = resolve(load_adapter(place, structured=True), source.spec)
    found = load_adapter(out, source.spec)
    for module in given.structured:
        shape = source.spec.modules[module.path].shape
        weight = source.matrix(module.path).astype(np.float64)
        update = DENSE[module.algorithm](module, shape, weight)
        error = np.linalg.norm(weight_to_matrix(delta(found, module.path)) - update)
        assert error < 1e-3 * np.linalg.norm(update)
    with pytest.raises(AdapterRefused, match="unsupported-algorithm:.*convert --to lora"):
        convert_file(place, "diffusers", tmp_path / "other.safetensors", files.source)


def test_inspect_says_what_a_file_is(files):
    found = inspect_file(files.adapter.parent / "lokr.safetensors")
    assert found.algorithms == {"lokr": found.modules}


@pytest.mark.parametrize("text", ["", "energy=2", "max=0", "max=x", "rank=4", "energy=0.9;max=3"])
def test_texts_that_are_no_rank_of_factors(text: str):
    with pytest.raises(Exception, match="--factor-rank .*expected energy=0.999,max=64"):
        factor_rank(text)
