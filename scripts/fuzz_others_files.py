"""Valid small files of the kinds that `fuzz_others.py` breaks, and the jobs that read them."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from safetensors.numpy import save_file

from prolora_jax.architectures.flax_trees import unet_to_flax
from prolora_jax.architectures.unet.table import UNetTensors, unet_table
from prolora_jax.catalog.catalog import catalog_status
from prolora_jax.cli.main import run as command
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.adapters.license_check import license_problem
from prolora_jax.io.adapters.sidecars import Folders, carry
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.documents import require_options_file
from prolora_jax.io.outputs.reports import read_any_report, read_plan
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.one_file import migrate_file, plan_file
from prolora_jax.verification.file import verify_file

_BASE = UNetTensors((8, 16), (1, 0), (0, 1), layers_per_block=1, cross_attention_dim=8)
_RANK = 2
open_once = cache(load_base_model)


class Kind(NamedTuple):
    """What is broken, and what reads it.

    Attributes:
        victims: files of the folder that are broken, one at a time.
        quick: reads it through the package's functions.
        whole: the command of a user's that reads it; None where there is none.
        share: one case in so many goes to the command.
        weight: cases of this kind among all.
        database: whether a row is broken as often as the bytes are.
        after: what is wrong with what the command left, given its exit code; None where nothing is.
    """

    victims: tuple[str, ...]
    quick: Callable[[Path], object]
    whole: Callable[[Path], tuple[str, ...]] | None
    share: int = 20
    weight: int = 10
    database: bool = False
    after: Callable[[Path, int], str | None] | None = None


def make(folder: Path) -> dict[str, Kind]:
    """Write valid files, a folder for each kind.

    Args:
        folder: where to.

    Returns:
        The kinds by name; the names are those of the folders.
    """
    rng = np.random.default_rng(0)
    nets, tensors = {}, {}
    for name in ("one", "two"):
        tensors[name] = {
            # The second is a noisy copy of the first, so that modules move.
            key: (0.1 * rng.standard_normal(shape) + tensors["one"][key]).astype(np.float16)
            if name == "two"
            else rng.standard_normal(shape).astype(np.float16)
            for key, shape in unet_table(_BASE).items()
        }
        nets[name] = folder / "nets" / f"{name}.safetensors"
        nets[name].parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors[name], nets[name])
    adapter = folder / "nets" / "style.safetensors"
    save_file(_adapter(rng, tensors["one"]), adapter)
    source, target = nets["one"], nets["two"]
    store = FolderStore(folder / "store")
    places = {name: folder / name for name in ("plan", "report", "manifest", "config", "index")}
    for place in (*places.values(), *(folder / n for n in ("peft", "msgpack", "flax-base"))):
        place.mkdir()
    _peft(folder / "peft", adapter)
    spec = open_once(source).spec
    loaded = load_adapter(adapter, spec)
    save_adapter(loaded, folder / "msgpack" / "style.msgpack", format="flax", base=spec)
    _msgpack(folder / "flax-base" / "net.msgpack", unet_to_flax(tensors["one"]))
    _orbax(folder / "orbax" / "unet", unet_to_flax(tensors["one"]))
    _index(places["index"] / "unet", tensors["one"])
    plan = plan_file(adapter, source, target, store=store)
    (places["plan"] / "plan.json").write_text(plan.to_json())
    migrate_file(adapter, source, target, places["report"] / "out.safetensors", store=store)
    arguments = ("--source", str(source), "--target", str(target), "-q")
    catalog = folder / "catalog"
    catalog.mkdir()
    for name in ("a", "b"):
        shutil.copy(adapter, catalog / f"{name}.safetensors")
    code = command(["migrate", str(catalog), *arguments, "--out", str(places["manifest"])])
    assert code == 0, "the catalog that is to be broken cannot be migrated"
    _one_file(places["manifest"] / "manifest.sqlite")
    (places["config"] / "options.yaml").write_text(_CONFIG)
    _sidecars(folder / "sidecars", adapter)
    stored = [f"store/{p.relative_to(store.folder)}" for p in sorted(store.folder.rglob("*.*"))]
    shutil.copytree(store.folder, folder / "stored" / "store")
    fingerprints = [entry.fingerprint for entry in store.entries()]

    def stored_all(place: Path) -> None:
        found = FolderStore(place / "store")
        found.entries()
        for fingerprint in fingerprints:
            found.extent(fingerprint)
            found.get(fingerprint)
        found.operators.entries()
        found.operators.entries()
        found.operators.comparisons()
        plan_file(adapter, open_once(source), open_once(target), store=found)

    def verified(place: Path) -> object:
        return verify_file(place / "out.safetensors", quiet=True, open_model=open_once)

    def planned(place: Path) -> object:
        read_plan(place / "plan.json")
        models = open_once(source), open_once(target)
        return plan_file(adapter, *models, plan=place / "plan.json", store=store)

    def migrated(place: Path) -> tuple[str, ...]:
        plan = ("--plan", str(place / "plan.json"))
        one_of_four = sum((place / "plan.json").read_bytes()) % 4 == 0
        whither = ("--dry-run",) if one_of_four else ("--out", str(place / "out.safetensors"))
        return ("migrate", str(adapter), *arguments, *plan, *whither)

    def left(place: Path, code: int) -> str | None:
        """An output is there whole, with its report, and verified; or nothing is."""
        names = sorted(path.name for path in place.iterdir() if path.name != "plan.json")
        if not names:
            dry = "--dry-run" in migrated(place)
            return None if code or dry else "exit 0 without an output"
        if code or names != ["out.safetensors", "out.safetensors.report.json"]:
            return f"exit {code} with {', '.join(names)}"
        load_file(place / "out.safetensors")
        found = verify_file(place / "out.safetensors", quiet=True, open_model=open_once)
        return None if found.ok else f"an output that verify rejects: {found.problems[:1]}"

    def beside(place: Path) -> object:
        found = place / "style.safetensors"
        license_problem(found, {}, Folders())
        out = place / "out"
        out.mkdir(exist_ok=True)
        return carry(Folders().of(found), out / "moved.safetensors", {"migrated_from": "style"})

    def inspect(name: str) -> Callable[[Path], tuple[str, ...]]:
        return lambda place: ("inspect", str(place / name), "-q")

    return {
        "peft": Kind(
            ("adapter_config.json",) * 3 + ("adapter_model.safetensors",),
            lambda place: load_adapter(place, open_once(source).spec, quiet=True),
            inspect(""),
            weight=24,
        ),
        "msgpack": Kind(
            ("style.msgpack",),
            lambda place: load_adapter(place / "style.msgpack", quiet=True),
            inspect("style.msgpack"),
            weight=20,
        ),
        "flax-base": Kind(
            ("net.msgpack",),
            lambda place: _weights(place / "net.msgpack"),
            lambda place: ("inspect", str(adapter), "--source", str(place / "net.msgpack"), "-q"),
            weight=10,
        ),
        "orbax": Kind(
            tuple(
                str(path.relative_to(folder / "orbax"))
                for path in sorted((folder / "orbax").rglob("*"))
                if path.is_file()
            ),
            _weights,
            None,
            weight=3,
        ),
        "index": Kind(
            ("unet/diffusion_pytorch_model.safetensors.index.json",) * 3
            + ("unet/part-1.safetensors",),
            _weights,
            lambda place: ("inspect", str(adapter), "--source", str(place), "-q"),
            weight=16,
        ),
        "config": Kind(
            ("options.yaml",),
            lambda place: require_options_file(place / "options.yaml"),
            lambda place: ("inspect", str(adapter), "--config", str(place / "options.yaml")),
            share=4,
            weight=24,
        ),
        "plan": Kind(
            ("plan.json",),
            planned,
            migrated,
            share=4,
            weight=24,
            after=left,
        ),
        "report": Kind(
            ("out.safetensors.report.json",),
            lambda place: read_any_report(place / "out.safetensors") and verified(place),
            lambda place: ("verify", str(place / "out.safetensors"), "-q"),
            weight=24,
        ),
        "manifest": Kind(
            ("manifest.sqlite",) * 3 + ("pair.report.json", "a.safetensors.report.json"),
            catalog_status,
            lambda place: (
                ("status", "verify")[sum((place / "manifest.sqlite").read_bytes()) % 2],
                str(place),
            ),
            share=8,
            weight=24,
            database=True,
        ),
        "stored": Kind(tuple(stored), stored_all, None, weight=16),
        "sidecars": Kind(
            ("style.json", "style.civitai.info", "style.yaml", "style.md", "style.txt"),
            beside,
            None,
            weight=24,
        ),
    }


_CONFIG = "quiet: false\njson: true\n"


def _adapter(rng: np.random.Generator, net: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    pairs = {}
    for key, weight in net.items():
        if ".attn" in key and weight.ndim == 2:
            module = "unet." + key.removesuffix(".weight")
            out, width = weight.shape
            pairs[f"{module}.lora_A.weight"] = rng.standard_normal((_RANK, width)).astype("f4")
            pairs[f"{module}.lora_B.weight"] = rng.standard_normal((out, _RANK)).astype("f4")
    return pairs


def _peft(folder: Path, adapter: Path) -> None:
    tensors = load_file(adapter)
    names = {key: "base_model.model." + key.removeprefix("unet.") for key in tensors}
    save_file({names[k]: v for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": _RANK,
        "lora_alpha": 4,
        "target_modules": ["to_q", "to_k", "to_v"],
        "alpha_pattern": {"to_k": 2},
        "rank_pattern": {},
        "bias": "none",
        "use_rslora": False,
        "auto_mapping": {"base_model_class": "UNet2DConditionModel"},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def load_file(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file; the library is asked, not the package."""
    from safetensors.numpy import load_file as load

    return load(path)


def _msgpack(path: Path, tree: dict) -> None:
    def encoded(value: object) -> object:
        if isinstance(value, dict):
            return {key: encoded(inner) for key, inner in value.items()}
        array = np.ascontiguousarray(value)
        content = (array.shape, array.dtype.name, array.tobytes())
        return msgspec.msgpack.Ext(1, msgspec.msgpack.encode(content))

    path.write_bytes(msgspec.msgpack.encode(encoded(tree)))


def _orbax(folder: Path, tree: dict) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree)


def _index(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    names = sorted(tensors)
    shards = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / shard)
    index = {key: shard for shard, keys in shards.items() for key in keys}
    document = {"metadata": {"total_size": 1}, "weight_map": index}
    file = folder / "diffusion_pytorch_model.safetensors.index.json"
    file.write_text(json.dumps(document))


def _sidecars(folder: Path, adapter: Path) -> None:
    folder.mkdir()
    shutil.copy(adapter, folder / "style.safetensors")
    said = {"sd version": "SD1", "activation text": "x", "sha256": "0", "allowDerivatives": True}
    (folder / "style.json").write_text(json.dumps(said))
    model = {"allowDerivatives": True, "tags": ["a"], "images": [{"hash": "b"}]}
    (folder / "style.civitai.info").write_text(json.dumps({"id": 1, "model": model}))
    (folder / "style.yaml").write_text("license: mit\ntags: [a, b]\ninner: &x {a: 1}\nmore: *x\n")
    (folder / "style.md").write_text("---\nlicense: mit\ntags:\n- lora\n---\n# Style\n")
    (folder / "style.txt").write_text("a style")


def _one_file(path: Path) -> None:
    """Bring what SQLite keeps in its log into the file itself."""
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = DELETE")
    database.close()


def _weights(path: Path) -> None:
    """Open a base model and read a few of its weights."""
    model = load_base_model(path)
    for module in sorted(model.spec.modules)[:3]:
        model.weight(module)
