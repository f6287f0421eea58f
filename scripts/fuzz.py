"""Break valid adapter files in many ways; each must be parsed, or refused with a code.

    python scripts/fuzz.py --n 20000 --out docs/fuzz.json

Each file goes to `load_adapter`, without and with a base model, and to `load_base_model`. It fails
the check if anything but a `ProloraError` of one printable line comes out, a warning included, or
if it takes longer or more memory than allowed here. Case `i` of seed `s` depends on `s` and `i`
alone: `--only i` repeats it and shows the traceback.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
from fuzz_mutations import BYTES, HEADER, KEYS
from safetensors.numpy import save

from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.unet.table import UNetTensors, unet_table
from prolora_jax.errors import ProloraError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model

MOST_SECONDS = 2.0
MOST_BYTES = 32 * 2**20
MOST_CHARACTERS = 3_000
"""Of a message."""
MOST_FAILURES = 20
"""Listed in the result; all are counted."""

_XL = UNetTensors(
    block_out_channels=(16, 32, 32),
    down_depths=(0, 1, 1),
    up_depths=(1, 1, 0),
    cross_attention_dim=24,
    add_embedding_dim=40,
    linear_projection=True,
)
_BASE = UNetTensors((8, 16), (1, 0), (0, 1), layers_per_block=1, cross_attention_dim=8)
SPEC = spec_from_config(_XL, name="tiny-xl")
_BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
# Dotted path, LDM's flat name, shapes of down and up.
_MODULES = [
    (f"{_BLOCK}.attn1.to_q", "input_blocks_4_1_transformer_blocks_0_attn1_to_q", (2, 32), (32, 2)),
    (f"{_BLOCK}.attn2.to_k", "input_blocks_4_1_transformer_blocks_0_attn2_to_k", (4, 24), (32, 4)),
    (f"{_BLOCK}.attn2.to_out.0", "input_blocks_4_1_transformer_blocks_0_attn2_to_out_0")
    + ((2, 32), (32, 2)),
]
_CONV = ("down_blocks.1.resnets.0.conv1", "input_blocks_4_0_in_layers_2")
_CONV += ((2, 16, 3, 3), (32, 2, 1, 1))
_TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
_CONFIG = json.dumps({"unet.lora_alpha": 4, "unet.r": 2, "unet.alpha_pattern": {"to_k": 8}})

Tensors = dict[str, np.ndarray]


def seeds() -> dict[str, tuple[Tensors, dict[str, str]]]:
    """Valid files of every convention, by name: tensors and header strings."""
    rng = np.random.default_rng(0)

    def pairs(
        name: Callable[[str, str], str], down: str, up: str, alpha: str = "", conv: bool = True
    ) -> Tensors:
        tensors: Tensors = {}
        for dotted, ldm, a, b in [*_MODULES, *([_CONV] if conv else [])]:
            module = name(dotted, ldm)
            tensors[module + down] = rng.standard_normal(a).astype(np.float16)
            tensors[module + up] = rng.standard_normal(b).astype(np.float16)
            if alpha:
                tensors[module + alpha] = np.asarray(2.0, np.float16)
        return tensors

    def text(name: str, down: str, up: str) -> Tensors:
        wide = rng.standard_normal((2, 16)).astype(np.float16)
        return {name + down: wide, name + up: wide.T.copy()}

    kohya = (".lora_down.weight", ".lora_up.weight")
    new, mid = (".lora_A.weight", ".lora_B.weight"), (".lora.down.weight", ".lora.up.weight")
    ldm = pairs(lambda _, flat: f"lora_unet_{flat}", *kohya, ".alpha")
    flat = pairs(lambda path, _: f"lora_unet_{path.replace('.', '_')}", *kohya, ".alpha")
    dotted = pairs(lambda path, _: f"unet.{path}", *new)
    old_names = {
        path: f"unet.{path.removesuffix('.0').rpartition('.')[0]}.processor."
        + f"{path.removesuffix('.0').rpartition('.')[2]}_lora"
        for path, *_ in _MODULES
    }
    return {
        "kohya-ldm": (
            ldm | text("lora_te1_" + _TEXT.replace(".", "_"), *kohya),
            {"ss_v2": "False"},
        ),
        "kohya-diffusers": (flat, {"ss_network_dim": "2", "ss_tag_frequency": '{"a": {"b": 1}}'}),
        "kohya-bf16": ({k: v.astype(ml_dtypes.bfloat16) for k, v in ldm.items()}, {}),
        "kohya-f32": ({k: v.astype(np.float32) for k, v in flat.items()}, {}),
        "diffusers": (dotted | text(f"text_encoder.{_TEXT}", *new), {"format": "pt"}),
        "diffusers-config": (dotted, {"format": "pt", "lora_adapter_metadata": _CONFIG}),
        "diffusers-mid": (
            pairs(lambda path, _: f"unet.{path}", *mid)
            | text(
                f"text_encoder.{_TEXT}",
                ".lora_linear_layer.down.weight",
                ".lora_linear_layer.up.weight",
            ),
            {},
        ),
        "diffusers-old": (
            pairs(lambda path, _: old_names[path], ".down.weight", ".up.weight", conv=False),
            {},
        ),
        "peft": (pairs(lambda path, _: f"base_model.model.{path}", *new), {"format": "pt"}),
        "base": (
            {key: np.zeros(shape, np.float16) for key, shape in unet_table(_BASE).items()},
            {"format": "pt"},
        ),
    }


SEEDS = seeds()
# The base model has ten times the tensors of the others, and takes ten times as long.
_WEIGHTS = np.array([0.3 if name == "base" else 1.0 for name in SEEDS])


@dataclass
class Case:
    """One broken file: how it was made, and its bytes."""

    seed_file: str
    recipe: list[str] = field(default_factory=list)
    content: bytes = b""


def make_case(seed: int, number: int) -> Case:
    """Case `number` of `seed`; the same for the same two numbers."""
    rng = np.random.default_rng((seed, number))
    name = str(rng.choice(list(SEEDS), p=_WEIGHTS / _WEIGHTS.sum()))
    case = Case(name)
    tensors, metadata = dict(SEEDS[name][0]), dict(SEEDS[name][1])
    level = rng.choice(["bytes", "header", "keys", "keys+header"], p=[0.2, 0.25, 0.4, 0.15])
    if "keys" in level:
        for _ in range(rng.choice([1, 1, 2, 3])):
            mutate = KEYS[rng.integers(len(KEYS))]
            case.recipe.append(mutate.__name__)
            with np.errstate(all="ignore"):
                mutate(rng, tensors, metadata)
    ordered = {key: np.ascontiguousarray(a).reshape(a.shape) for key, a in tensors.items()}
    case.content = with_sorted_header(save(ordered, metadata or None))
    mutations = {"bytes": BYTES, "header": HEADER, "keys+header": HEADER}.get(str(level), [])
    for _ in range(rng.choice([1, 1, 2, 3]) if mutations else 0):
        mutate = mutations[rng.integers(len(mutations))]
        case.recipe.append(mutate.__name__)
        case.content = mutate(rng, case.content)
    return case


def with_sorted_header(content: bytes) -> bytes:
    """The same file with its header in order: the library writes header strings in a random one."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def jobs(file: Path) -> dict[str, Callable[[], object]]:
    """What is done with a file."""
    return {
        "adapter": lambda: load_adapter(file),
        "adapter-with-base": lambda: load_adapter(file, SPEC),
        "base-model": lambda: load_base_model(file),
    }


def outcome(job: Callable[[], object], file: Path) -> str:
    """`parsed`, a code, or `failure: ...`."""
    try:
        job()
    except ProloraError as error:
        text = str(error)
        if not text.isprintable() or len(text) > MOST_CHARACTERS or not text.startswith(str(file)):
            return f"failure: message {text[:200]!r}"
        return str(error.code)
    except BaseException as error:  # noqa: BLE001 - panics of the library are no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"failure: {type(error).__name__}: {error}"[:300].replace(str(file), "FILE")
    return "parsed"


def run(n: int, seed: int, folder: Path, *, memory: bool = True) -> dict[str, object]:
    """Try `n` cases; the result is ready for JSON. Measuring memory takes most of the time."""
    counts = {name: Counter() for name in jobs(folder)}
    slowest, peak, failures, failed = (0.0, 0), (0, 0), [], 0
    file = folder / "case.safetensors"
    logging.disable(logging.WARNING)
    # Tables that are made once, when they are first needed, are no case's fault.
    arrays, metadata = SEEDS["base"]
    file.write_bytes(save(arrays, metadata))
    for job in jobs(file).values():
        outcome(job, file)
    if memory:
        tracemalloc.start()
    try:
        for number in range(n):
            case = make_case(seed, number)
            file.write_bytes(case.content)
            for name, job in jobs(file).items():
                if memory:
                    tracemalloc.reset_peak()
                before, start = tracemalloc.get_traced_memory()[0], time.process_time()
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    found = outcome(job, file)
                seconds = time.process_time() - start
                taken = tracemalloc.get_traced_memory()[1] - before
                slowest, peak = max(slowest, (seconds, number)), max(peak, (taken, number))
                if seconds > MOST_SECONDS or taken > MOST_BYTES:
                    found = f"failure: {seconds:.2f} s, {taken} bytes"
                if found.startswith("failure"):
                    failed += 1
                    recipe = {"case": number, "file": case.seed_file, "mutations": case.recipe}
                    if len(failures) < MOST_FAILURES:
                        failures.append(recipe | {"job": name, "found": found})
                counts[name][found if not found.startswith("failure") else "failure"] += 1
    finally:
        tracemalloc.stop()
        logging.disable(logging.NOTSET)
    return {
        "n": n,
        "seed": seed,
        "counts": {name: dict(sorted(counter.items())) for name, counter in counts.items()},
        "max_seconds": round(slowest[0], 4),
        "slowest_case": slowest[1],
        "peak_bytes": peak[0],
        "largest_case": peak[1],
        "failed": failed,
        "failures": failures,
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", type=int, help="repeat this case and show what happens")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.only is not None:
            return show(make_case(options.seed, options.only), Path(folder) / "case.safetensors")
        result = run(options.n, options.seed, Path(folder))
    text = json.dumps(result, indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text)
    sys.stdout.write(text)
    return 1 if result["failed"] else 0


def show(case: Case, file: Path) -> int:
    """Repeat one case, tracebacks included."""
    file.write_bytes(case.content)
    print(case.seed_file, case.recipe, case.content[:2000])
    for name, job in jobs(file).items():
        try:
            print(name, job())
        except Exception:  # noqa: BLE001 - it is there to be shown
            print(name, traceback.format_exc())
    return 0


if __name__ == "__main__":
    sys.exit(main())
