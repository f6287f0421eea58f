"""The script that times files of LoHa and LoKr: what it measures is what it says."""

import runpy
from pathlib import Path

import pytest

from prolora_jax.benchmarks.made_models import tiny_pair, write_models
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.pair import BasePair

SCRIPT = Path(__file__).parents[2] / "scripts" / "time_algorithms.py"


def test_files_are_of_like_size_and_all_of_them_move(tmp_path: Path):
    script = runpy.run_path(str(SCRIPT))
    pair = tiny_pair()
    trained = [path for path, m in pair.source_spec.modules.items() if m.kind_is("attn")]
    files = script["write_files"](pair.source_spec, trained, tmp_path)
    kinds = {k: load_adapter(f, pair.source_spec, structured=True) for k, f in files.items()}
    for kind in ("loha", "lokr"):
        assert {module.algorithm for module in kinds[kind].structured} == {kind}
        other = kinds[f"lora like {kind}"]
        assert len(other.modules) == len(kinds[kind].structured) > 0
        # Headers count, and a rank is a whole number.
        assert files[kind].stat().st_size == pytest.approx(
            files[f"lora like {kind}"].stat().st_size, rel=0.25
        )
    write_models(pair, tmp_path / "made")
    source, target = (load_base_model(tmp_path / "made" / n) for n in ("sdxl", "ssd-1b"))
    for kind, file in files.items():
        out = tmp_path / f"{kind}.out.safetensors"
        models = BasePair(source, target)
        script["moving"](file, out, models, "copy", "lora", "max=16")()
        assert load_adapter(out, target.spec).modules
        script["moving"](file, out, models, "copy", "same", "max=16")()
        assert bool(load_adapter(out, target.spec, structured=True).structured) is (
            not kind.startswith("lora")
        )
