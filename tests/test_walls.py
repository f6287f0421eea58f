"""Who may know whom in the package: the walls of docs/architecture.md, by a walk over the syntax.

Lazy imports inside functions, relative ones and `import_module("...")` are seen, too. Each rule is
also shown to bite, on a made-up file that breaks it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "prolora_jax"
MOST_LINES = 400

# Top-level parts of the package, and the parts that each may import beside itself.
# A process that computes bases or operators has no JAX.
HOST_NUMBERS = {"decomposition", "basis", "similarity", "operators", "operator_store"} | {
    "singular",
    "energies",
    "blocks",
    "workers",
    "basis_workers",
    "pair_work",
}
LOW_NAMES = {"layout", "architectures", "adapter", "options", "encoding", "errors"}
ALIGNING = {"alignment", "structure", "aligner", "matching"}
NAMES = LOW_NAMES | ALIGNING | {"formats", "plan", "report"}
MAY_KNOW = {
    "linalg": {"errors"},
    "decomposition": {"errors"},
    "basis": {"errors", "decomposition"},
    "device_bases": {"errors", "linalg", "basis", "decomposition"},
    "similarity": {"errors", "basis"},
    "operators": {"errors"},
    "singular": {"encoding"},
    "energies": set(),
    "blocks": LOW_NAMES,
    "operator_store": {"operators"},
    "workers": set(),
    "projection": {"linalg", "energies", "operators"},
    **dict.fromkeys(LOW_NAMES, LOW_NAMES),
    "formats": LOW_NAMES,
    **dict.fromkeys(ALIGNING, LOW_NAMES | ALIGNING),
    **dict.fromkeys(("plan", "report"), NAMES),
    "prefetch": set(),
    # These two check the numbers and share no code with them.
    "dense": set(),
    "verify": NAMES | {"dense"},
}
# `__init__` names what is public, and loads it when it is asked for.
KNOWN_ONLY_BY = {
    "models": {"evaluation", "cli", "__init__"},
    "cli": {"__main__"},
    "benchmarks": {"cli"},
}

ORACLES = {"torch", "diffusers", "transformers", "peft", "lycoris"}
# The one reads pickles, in a process of its own; the other is measured beside ours, never used.
PICKLE_CHILD = Path("io/pickle_child.py")
MAY_KNOW_TORCH = {PICKLE_CHILD, Path("benchmarks/baselines.py")}
# Flax's text encoders, VAE and samplers are theirs: the extra `pipelines`.
FLAX_OF_OTHERS = {Path("models/diffusers_flax.py")}
EXEMPT = {
    "torch": MAY_KNOW_TORCH,
    "diffusers": FLAX_OF_OTHERS,
    "transformers": FLAX_OF_OTHERS,
}
DISK_LIBRARIES = {"safetensors", "orbax", "etils", "huggingface_hub"}
DEVICE_LIBRARIES = {"jax", "jaxlib", "flax", "optax"}
FILE_METHODS = {"open", "read_text", "write_text", "read_bytes", "write_bytes"}


def offences(package: Path) -> list[str]:
    """Every broken rule under `package` as `file:line: what`."""
    found = []
    for file in sorted(package.rglob("*.py")):
        text = file.read_text()
        where = file.relative_to(package)
        part = where.parts[0].removesuffix(".py")
        tree = ast.parse(text)
        for line, module in imports(tree, (package.name, *where.parts[:-1])):
            top, *rest = module.split(".")
            if top == package.name:
                problem = inside_problem(part, rest[0] if rest else "the package itself")
            elif where in EXEMPT.get(top, ()):
                problem = None
            else:
                problem = outside_problem(part, top)
            if problem:
                found.append(f"{where}:{line}: {problem}")
        found += [
            f"{where}:{line}: {problem}" for line, problem in call_problems(tree, part, where)
        ]
        if file.stem in {"utils", "common"}:
            found.append(f"{where}:1: say what the file is for")
        found += long_file(file, package)
    return found


def imports(tree: ast.Module, folder: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """`(line, dotted name)` of everything imported by a file in the package folder `folder`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the file's own folder, each further one the next folder up.
            above = folder[: len(folder) + 1 - node.level] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def called(node: ast.Call) -> str:
    """`f` of both `f(...)` and `x.f(...)`; empty for other calls."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def inside_problem(part: str, known: str) -> str | None:
    """What is wrong with `part` importing the part `known` of this package."""
    if part == known:
        return None
    if part in MAY_KNOW and known not in MAY_KNOW[part]:
        return f"{part} may not know {known}"
    if known in KNOWN_ONLY_BY and part not in KNOWN_ONLY_BY[known]:
        return f"only {sorted(KNOWN_ONLY_BY[known])} may know {known}, {part} does"
    return None


def outside_problem(part: str, library: str) -> str | None:
    """What is wrong with `part` importing a library."""
    if library in ORACLES:
        return f"{library} is an oracle for tests"
    if library in DISK_LIBRARIES and part != "io":
        return f"only io may know {library}"
    if library in DEVICE_LIBRARIES and part in NAMES | HOST_NUMBERS | {
        "dense",
        "verify",
        "prefetch",
    }:
        return f"{part} may not know {library}"
    return None


def call_problems(tree: ast.Module, part: str, where: Path) -> Iterator[tuple[int, str]]:
    """`(line, what)` of prints outside `cli`, and files opened outside `io`."""
    from_io = names_from_io(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not from_io.isdisjoint(
            ast.unparse(node.func).split(".")
        ):
            continue
        name = called(node)
        if name == "print" and part != "cli" and where != PICKLE_CHILD:
            yield node.lineno, "only cli prints"
        if name in FILE_METHODS and part != "io":
            yield node.lineno, f"only io opens files, {name}() does"


def names_from_io(tree: ast.Module) -> set[str]:
    """Names that a file has from our `io`: `atomic.write_text(...)` is how to write."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        # The standard library's `from io import open` has neither dots nor a package before it.
        if isinstance(node, ast.ImportFrom)
        and ".io." in f"{'.' if node.level else ''}{node.module}."
        for alias in node.names
    }


def long_file(file: Path, root: Path) -> list[str]:
    """One line when a file has more than `MOST_LINES` lines."""
    lines = len(file.read_text().splitlines())
    too_long = f"{file.relative_to(root)}:{lines}: longer than {MOST_LINES} lines"
    return [too_long] if lines > MOST_LINES else []


def test_package_keeps_its_walls():
    assert (PACKAGE / "projection.py").exists()
    assert offences(PACKAGE) == []


def test_parts_of_the_rules_exist():
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    assert set(MAY_KNOW) | set(KNOWN_ONLY_BY) <= parts


def test_tests_and_scripts_are_short():
    files = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("scripts/**/*.py")]
    assert [line for file in files for line in long_file(file, ROOT)] == []


BROKEN = [
    ("linalg.py", "from prolora_jax import basis", "linalg may not know basis"),
    ("basis.py", "import prolora_jax.similarity", "basis may not know similarity"),
    ("singular.py", "from .basis import Basis", "singular may not know basis"),
    ("device_bases.py", "from . import prefetch", "device_bases may not know prefetch"),
    ("prefetch.py", "from .errors import ProloraError", "prefetch may not know errors"),
    ("singular.py", "import jax", "singular may not know jax"),
    ("prefetch.py", "import jax", "prefetch may not know jax"),
    ("basis_workers.py", "import jax", "basis_workers may not know jax"),
    ("similarity.py", "from prolora_jax.projection import x", "similarity may not know projection"),
    ("projection.py", "from prolora_jax.plan import Plan", "projection may not know plan"),
    ("projection.py", "def f():\n    from prolora_jax import io", "projection may not know io"),
    ("basis.py", "import safetensors", "only io may know safetensors"),
    ("plan.py", "from prolora_jax.basis import Basis", "plan may not know basis"),
    ("plan.py", "import prolora_jax", "plan may not know the package itself"),
    ("matching.py", "def f():\n    import jax.numpy as jnp", "matching may not know jax"),
    ("formats/kohya.py", "from ..linalg import matmul", "formats may not know linalg"),
    ("formats/kohya.py", "from jax import Array", "formats may not know jax"),
    ("adapter.py", "from prolora_jax import formats", "adapter may not know formats"),
    ("layout.py", "from flax import linen", "layout may not know flax"),
    ("migrate.py", "import orbax.checkpoint", "only io may know orbax"),
    ("migrate.py", "from etils import epath", "only io may know etils"),
    ("cli/main.py", "import huggingface_hub", "only io may know huggingface_hub"),
    ("migrate.py", "x = open('a')", "only io opens files, open()"),
    ("catalog.py", "x = path.read_text()", "only io opens files, read_text()"),
    ("cli/main.py", "path.write_bytes(b'')", "only io opens files, write_bytes()"),
    ("evaluation/page.py", "with path.open() as f: pass", "only io opens files, open()"),
    ("catalog.py", "from io import open\nopen('a')", "only io opens files, open()"),
    ("migrate.py", "print('done')", "only cli prints"),
    ("io/pickles.py", "def f():\n    import torch.nn", "torch is an oracle"),
    ("pickle_child.py", "import torch", "torch is an oracle"),
    ("benchmarks/bases.py", "import torch", "torch is an oracle"),
    ("bases.py", "from prolora_jax.benchmarks import timing", "may know benchmarks, bases does"),
    ("io/x.py", "import importlib\nimportlib.import_module('diffusers')", "diffusers is an oracle"),
    ("models/unet.py", "from diffusers.models import vae_flax", "diffusers is an oracle"),
    ("models/diffusers_flax.py", "import torch", "torch is an oracle"),
    ("migrate.py", "from prolora_jax.models.unet import UNet", "may know models, migrate does"),
    ("catalog.py", "from prolora_jax.cli import main", "may know cli, catalog does"),
    ("verify.py", "from prolora_jax.projection import project", "verify may not know projection"),
    ("verify.py", "from prolora_jax import linalg", "verify may not know linalg"),
    ("verify.py", "import jax", "verify may not know jax"),
    ("dense.py", "from prolora_jax.linalg import decompose", "dense may not know linalg"),
    ("dense.py", "import jax", "dense may not know jax"),
    ("utils.py", "", "say what the file is for"),
    ("io/common.py", "", "say what the file is for"),
    ("plan.py", "x = 1\n" * (MOST_LINES + 1), "longer than 400 lines"),
]


@pytest.mark.parametrize(("file", "text", "expected"), BROKEN)
def test_each_rule_bites(tmp_path, file, text, expected):
    target = tmp_path / "prolora_jax" / file
    target.parent.mkdir(parents=True)
    target.write_text(text)
    (found,) = offences(tmp_path / "prolora_jax")
    assert found.startswith(f"{file}:")
    assert expected in found


INNOCENT = {
    "io/pickle_child.py": "def f():\n    import torch\n    print(1)",
    "benchmarks/baselines.py": "def f():\n    import torch",
    "io/tensors.py": "import safetensors\nopen('a')\nfrom . import atomic\nfrom .. import layout",
    "models/diffusers_flax.py": "from transformers.models.clip import modeling_flax_clip",
    "projection.py": "import jax\nfrom prolora_jax import energies\nfrom .linalg import matmul",
    "formats/kohya.py": "from ..adapter import Adapter\nfrom .peft import x\nimport jaxtyping",
    "cli/main.py": "print(1)\nfrom prolora_jax.models import unet",
    "cli/demo.py": "from prolora_jax.io import atomic\natomic.write_text('a', 'b')",
    "cli/page.py": "from prolora_jax.io.atomic import write_text as put\nput('a', 'b')",
    "__main__.py": "from prolora_jax.cli import main",
    "matching.py": "imprint(1)\nreopen(2)\nx = print\n# import jax\n'''import jax'''",
    "verify.py": "from prolora_jax.adapter import Adapter\nfrom prolora_jax.dense import x",
}


def test_innocent_files_pass(tmp_path):
    for file, text in INNOCENT.items():
        target = tmp_path / "prolora_jax" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    assert offences(tmp_path / "prolora_jax") == []
