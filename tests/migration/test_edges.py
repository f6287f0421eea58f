"""Numbers at the edges of a dtype: the output is right, whatever they are, or there is none."""

from dataclasses import replace
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
from toy_pair import make_files

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.migration.edges import to_the_middle
from prolora_jax.migration.single import migrate
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.report import IN_FLOAT32
from prolora_jax.subspaces.store import MemoryStore
from prolora_jax.verification.adapter import verify_adapter

Toy = tuple[BaseModel, BaseModel, Adapter, MemoryStore]
FEW = ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.*",)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    files = make_files(Path(tmp_path_factory.mktemp("toy")))
    source, target = load_base_model(files.source), load_base_model(files.target)
    adapter = load_adapter(files.adapter, source.spec)
    kept = tuple(m for m in adapter.modules if m.path.startswith(FEW[0][:-1]))
    return source, target, replace(adapter, modules=kept), MemoryStore()


def scaled(adapter: Adapter, down: float, up: float, dtype: type, alpha: float | None) -> Adapter:
    modules = tuple(
        replace(
            m,
            down=(m.down.astype(np.float64) / np.abs(m.down).max() * down).astype(dtype),
            up=(m.up.astype(np.float64) / np.abs(m.up).max() * up).astype(dtype),
            alpha=alpha and alpha * m.rank,
        )
        for m in adapter.modules
    )
    return replace(adapter, modules=modules)


EDGES = {
    "tiny": (1e-25, 1e-25, np.float32, None, {}),
    "huge": (1e30, 1e30, np.float32, None, {}),
    "one-of-each": (1e-30, 1e30, np.float32, None, {}),
    "wide": (1e60, 1e-70, np.float64, None, {}),
    "half-tiny": (1e-6, 1e-6, np.float16, None, {}),
    "half-small": (1e-4, 1e-4, np.float16, 0.01, {}),
    "half-huge": (6e4, 6e4, np.float16, None, {"scale": 100.0}),
    "scale": (1.0, 1.0, np.float32, None, {"scale": 1e-40}),
    "alpha": (1.0, 1.0, np.float32, 1e-35, {}),
    "asked-for-half": (1e-10, 1e-3, np.float32, None, {"dtype": "float16"}),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("method", ["prolora-full", "copy"])
def test_an_output_is_right_whatever_the_numbers_are(toy: Toy, edge: str, method):
    source, target, adapter, store = toy
    down, up, dtype, alpha, more = EDGES[edge]
    given = scaled(adapter, down, up, dtype, alpha)
    options = MigrationOptions(method=method, include=FEW, **more)
    output, report = migrate(given, source, target, options, store=store)
    assert output.modules
    checked = verify_adapter(output, given, source, target, report.to_dict())
    assert checked.ok, checked.modules
    for module in report.modules:
        numbers = (module.norm_in, module.norm_out, module.kept, *(module.energies or ()))
        assert all(map(isfinite, numbers))
        assert module.norm_in > 0.0
        assert module.norm_out > 0.0


def test_half_precision_stays_where_it_holds_the_update(toy: Toy):
    source, target, adapter, store = toy
    given = scaled(adapter, 1.0, 0.01, np.float16, None)
    for method in ("prolora-full", "copy"):
        options = MigrationOptions(method=method, include=FEW)
        output, _ = migrate(given, source, target, options, store=store)
        assert {m.up.dtype.name for m in output.modules} == {"float16"}
    tiny = scaled(adapter, 1e-6, 1e-6, np.float16, None)
    output, _ = migrate(tiny, source, target, MigrationOptions(include=FEW), store=store)
    assert "float32" in {m.up.dtype.name for m in output.modules}


@pytest.mark.parametrize("method", ["prolora-full", "copy"])
@pytest.mark.parametrize("edge", ["half-huge", "asked-for-half", "tiny"])
def test_a_module_in_float32_in_place_of_its_dtype_is_flagged(toy: Toy, edge: str, method):
    source, target, adapter, store = toy
    down, up, dtype, alpha, more = EDGES[edge]
    given = scaled(adapter, down, up, dtype, alpha)
    options = MigrationOptions(method=method, include=FEW, **more)
    output, report = migrate(given, source, target, options, store=store)
    asked = "float16" if edge != "tiny" else "float32"
    wide = {m.path for m in output.modules if m.up.dtype.name != asked}
    assert {m.path for m in report.modules if IN_FLOAT32 in m.flags} == wide
    assert bool(wide) == (edge != "tiny")
    for changed in report.modules:
        flags = {*changed.flags} ^ {IN_FLOAT32}
        others = [m for m in report.modules if m is not changed]
        told = replace(report, modules=(replace(changed, flags=tuple(flags)), *others))
        checked = verify_adapter(output, given, source, target, told.to_dict())
        (found,) = [m for m in checked.modules if m.path == changed.path]
        assert any(IN_FLOAT32 in problem for problem in found.problems)


@pytest.mark.parametrize(("size", "scale"), [(1e-30, 1e-40), (1e30, 1e38)])
@pytest.mark.parametrize("method", ["prolora-full", "copy"])
def test_what_float32_does_not_hold_is_refused(toy: Toy, size: float, scale: float, method):
    source, target, adapter, store = toy
    given = scaled(adapter, size, size, np.float32, None)
    options = MigrationOptions(method=method, include=FEW, scale=scale)
    message = r"the update holds numbers that are too large or too small for float32\. Expected "
    with pytest.raises(AdapterRefused, match=message) as caught:
        migrate(given, source, target, options, store=store)
    assert caught.value.code is Refusal.NON_FINITE
    assert "--dtype" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_the_way_to_the_middle_rounds_nothing(toy: Toy, dtype: type, size: float):
    (module, *_) = scaled(toy[2], size, 1.0, np.float32, 1e-20).modules
    module = replace(module, down=module.down.astype(dtype), up=module.up.astype(dtype))
    middle, power = to_the_middle(module)
    assert 0.1 < np.abs(middle.down).max() <= 1.0
    ours = np.ldexp(middle.up.astype(float) @ middle.down.astype(float) * middle.scale, power)
    wanted = module.up.astype(float) @ module.down.astype(float) * module.scale
    np.testing.assert_allclose(ours, wanted, rtol=1e-14)
    usual = scaled(toy[2], 1.0, 1e-3, np.float32, 1.0).modules[0]
    assert to_the_middle(usual) == (usual, 0)
