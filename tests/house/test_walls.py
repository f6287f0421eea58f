"""Who may know whom in the package: each wing's door says it, a walk over the syntax checks it.

Lazy imports inside functions, relative ones and `import_module("...")` are seen, too. Each rule is
also shown to bite, on a made-up package that breaks it.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import Door, called, circle, imports, listed_wrongly, read_door

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "prolora_jax"
MOST_LINES = 400
GROUND = {"errors", "layout", "__init__", "__main__"}
"""What lies loose at the top; everything else is in a wing."""

GROUND_MAY_KNOW = {"errors": set(), "layout": set(), "__main__": {"cli"}}
"""`__init__` names what is public, and loads it when it is asked for."""

# The two halves of the check: neither the dense recomputation nor anything it brings along may come
# from the package.
ALONE = {Path("verification/dense.py")}

ORACLES = {"torch", "diffusers", "transformers", "peft", "lycoris"}
# The one reads pickles, in a process of its own; the other is measured beside ours, never used.
PICKLE_CHILD = Path("io/containers/pickle_child.py")
MAY_KNOW_TORCH = {PICKLE_CHILD, Path("benchmarks/baselines.py")}
# Flax's samplers and stock pipelines are theirs: the extra `pipelines`.
FLAX_OF_OTHERS = {Path("nets/pipelines/diffusers_flax.py")}
EXEMPT = {
    "torch": MAY_KNOW_TORCH,
    "diffusers": FLAX_OF_OTHERS,
    "transformers": FLAX_OF_OTHERS,
}
DISK_LIBRARIES = {"safetensors", "orbax", "tensorstore", "huggingface_hub"}
JAX = {"jax", "jaxlib", "flax", "optax"}
FILE_METHODS = {"open", "read_text", "write_text", "read_bytes", "write_bytes"}


def wings(package: Path) -> dict[str, Door]:
    """The doors of a package's wings, by name."""
    return {
        init.parent.name: read_door(init, wing=True)
        for init in sorted(package.glob("*/__init__.py"))
    }


def offences(package: Path) -> list[str]:
    """Every broken rule under `package` as `file:line: what`."""
    try:
        doors = wings(package)
    except ValueError as error:
        return [f"a door {error}"]
    found = [*door_problems(package, doors)]
    graph: dict[str, set[str]] = {}
    for file in sorted(package.rglob("*.py")):
        where = file.relative_to(package)
        part = where.parts[0].removesuffix(".py")
        tree = ast.parse(file.read_text())
        for line, module in imports(tree, (package.name, *where.parts[:-1])):
            top, *rest = module.split(".")
            if top == package.name:
                known = rest[0] if rest else "the package itself"
                graph.setdefault(part, set()).add(known)
                problem = inside_problem(part, known, where, doors)
            elif where in EXEMPT.get(top, ()):
                problem = None
            else:
                problem = outside_problem(part, top, where, doors)
            if problem:
                found.append(f"{where}:{line}: {problem}")
        found += [f"{where}:{line}: {p}" for line, p in call_problems(tree, part, where)]
        if file.stem in {"utils", "common"}:
            found.append(f"{where}:1: say what the file is for")
        found += long_file(file, package)
    graph.pop("__init__", None)
    if round_trip := circle({wing: {*known} - {wing} for wing, known in graph.items()}):
        found.append(f"a circle: {' -> '.join(round_trip)}")
    return found + names_used_twice(package)


def door_problems(package: Path, doors: dict[str, Door]) -> Iterator[str]:
    """What is wrong with the doors themselves, and what lies loose at the top."""
    for file in package.glob("*.py"):
        if file.stem not in GROUND:
            yield f"{file.name}:1: lies loose at the top"
    for init in sorted(package.rglob("*/__init__.py")):
        folder = init.parent
        wing = folder.parent == package
        try:
            problem = listed_wrongly(folder, read_door(init, wing=wing))
        except ValueError as error:
            problem = str(error)
        if problem:
            yield f"{init.relative_to(package)}:1: {problem}"
    for wing, door in doors.items():
        unknown = ((door.may or set()) | door.barred) - {*doors} - GROUND
        if unknown:
            yield f"{wing}/__init__.py:1: names {sorted(unknown)}, which are no wings"


def names_used_twice(package: Path) -> list[str]:
    """Classes of one name in two files."""
    homes: dict[str, list[str]] = {}
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(file.relative_to(package)))
    return [f"class {name} stands in {files}" for name, files in homes.items() if len(files) > 1]


def inside_problem(part: str, known: str, where: Path, doors: dict[str, Door]) -> str | None:
    """What is wrong with a file of `part` importing the part `known` of this package."""
    if where in ALONE:
        return f"{where.stem} shares nothing with the package"
    if part == known or part == "__init__":
        return None
    if part in GROUND_MAY_KNOW:
        return None if known in GROUND_MAY_KNOW[part] else f"{part} may not know {known}"
    return None if doors[part].admits(known) else f"{part} may not know {known}"


def outside_problem(part: str, library: str, where: Path, doors: dict[str, Door]) -> str | None:
    """What is wrong with a file of `part` importing a library."""
    if library in ORACLES:
        return f"{library} is an oracle for tests"
    if library in DISK_LIBRARIES and part != "io":
        return f"only io may know {library}"
    door = doors.get(part)
    without = part in GROUND if door is None else "jax" in door.never
    if library in JAX and without and not (door and where.stem in door.never["jax"]):
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
    assert offences(PACKAGE) == []


def test_every_wing_is_there():
    assert {*wings(PACKAGE)} >= {"adapters", "architectures", "io", "method", "migration", "plans"}
    assert Counter(p.stem for p in PACKAGE.glob("*.py")) == Counter(GROUND)


def test_tests_and_scripts_are_short():
    files = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("scripts/**/*.py")]
    assert [line for file in files for line in long_file(file, ROOT)] == []


DOORS = {
    "method": ("linalg basis similarity", "jax (but in linalg), files", "errors"),
    "adapters": ("adapter formats/", "jax, files", "errors, layout, architectures"),
    "architectures": ("spec", "jax, files", "errors, layout"),
    "plans": ("plan", "jax, files", "errors, architectures, adapters"),
    "io": ("tensors", "jax", "errors, layout, architectures, adapters, method, plans"),
    "verification": ("dense adapter", "jax, files", "errors, architectures, adapters, plans"),
    "migration": ("single", "files", "anything but catalog, nets, cli"),
    "catalog": ("run", "jax, files", "anything but nets, cli"),
    "nets": ("unet", "files", "errors, layout, io"),
    "benchmarks": ("baselines", "files", "anything but cli"),
    "cli": ("main", "files", "anything"),
}


def small_package(root: Path) -> Path:
    """A package with doors like ours and empty files behind them."""
    package = root / "prolora_jax"
    for name in sorted(GROUND):
        write(package / f"{name}.py", "")
    for wing, (files, never, may) in DOORS.items():
        names = [name if name.endswith("/") else f"{name}.py" for name in files.split()]
        lines = "\n".join(f"{name}: What it is for." for name in names)
        door = f'"""A wing.\n\n{lines}\n\nNever: {never}.\nMay import: {may}.\n"""\n'
        write(package / wing / "__init__.py", door)
        for name in names:
            if name.endswith("/"):
                write(package / wing / name / "__init__.py", '"""A room.\n\nkohya.py: Keys.\n"""\n')
                write(package / wing / name / "kohya.py", "")
            else:
                write(package / wing / name, "")
    return package


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_small_package_is_innocent(tmp_path):
    assert offences(small_package(tmp_path)) == []


BROKEN = [
    ("method/basis.py", "import jax", "method may not know jax"),
    ("method/basis.py", "def f():\n    from flax import linen", "method may not know flax"),
    ("method/basis.py", "from prolora_jax.plans.plan import Plan", "method may not know plans"),
    ("method/basis.py", "from prolora_jax import io", "method may not know io"),
    ("method/basis.py", "import prolora_jax", "method may not know the package itself"),
    ("method/basis.py", "import safetensors", "only io may know safetensors"),
    ("adapters/formats/kohya.py", "from ...method.linalg import matmul", "may not know method"),
    ("adapters/formats/kohya.py", "from jax import Array", "adapters may not know jax"),
    ("adapters/adapter.py", "from ..plans import plan", "adapters may not know plans"),
    ("architectures/spec.py", "from prolora_jax import adapters", "may not know adapters"),
    ("plans/plan.py", "def f():\n    import jax.numpy as jnp", "plans may not know jax"),
    ("layout.py", "from flax import linen", "layout may not know flax"),
    ("errors.py", "from prolora_jax import layout", "errors may not know layout"),
    ("__main__.py", "from prolora_jax.nets import unet", "__main__ may not know nets"),
    ("migration/single.py", "import orbax.checkpoint", "only io may know orbax"),
    ("migration/single.py", "import tensorstore", "only io may know tensorstore"),
    ("cli/main.py", "import huggingface_hub", "only io may know huggingface_hub"),
    ("migration/single.py", "x = open('a')", "only io opens files, open()"),
    ("catalog/run.py", "x = path.read_text()", "only io opens files, read_text()"),
    ("cli/main.py", "path.write_bytes(b'')", "only io opens files, write_bytes()"),
    ("catalog/run.py", "with path.open() as f: pass", "only io opens files, open()"),
    ("catalog/run.py", "from io import open\nopen('a')", "only io opens files, open()"),
    ("migration/single.py", "print('done')", "only cli prints"),
    ("io/tensors.py", "def f():\n    import torch.nn", "torch is an oracle"),
    ("io/tensors.py", "import importlib\nimportlib.import_module('diffusers')", "is an oracle"),
    ("io/tensors.py", "import jax", "io may not know jax"),
    ("nets/unet.py", "from diffusers.models import vae_flax", "diffusers is an oracle"),
    ("migration/single.py", "from prolora_jax.nets.unet import UNet", "may not know nets"),
    ("catalog/run.py", "from prolora_jax.cli.main import main", "catalog may not know cli"),
    ("verification/adapter.py", "from prolora_jax.method import linalg", "may not know method"),
    ("verification/adapter.py", "import jax", "verification may not know jax"),
    ("verification/dense.py", "from prolora_jax.verification import adapter", "shares nothing"),
    ("verification/dense.py", "import jax", "verification may not know jax"),
    ("plans/plan.py", "x = 1\n" * (MOST_LINES + 1), "longer than 400 lines"),
    ("loose.py", "", "lies loose at the top"),
    ("method/new.py", "", "does not list ['new.py']"),
    ("adapters/formats/new.py", "", "does not list ['new.py']"),
    ("nets/__init__.py", '"""A wing.\n\nMay import: io.\n"""', "does not list ['unet.py']"),
    ("nets/__init__.py", '"""A wing.\n\nunet.py: A net.\n"""', "does not end in a line"),
    ("nets/__init__.py", '"""A wing.\n\nunet\n\nMay import: io.\n"""', "is not 'file: what"),
    ("nets/__init__.py", '"""A.\n\nunet.py: N.\n\nMay import: yard.\n"""', "are no wings"),
    (
        "nets/__init__.py",
        '"""A.\n\nunet.py: N.\nunet.py: N.\n\nMay import: io.\n"""',
        "lists ['unet.py'] twice",
    ),
    (
        "nets/__init__.py",
        '"""A.\n\nunet.py: N.\nold.py: N.\n\nMay import: io.\n"""',
        "lists ['old.py'], which is not there",
    ),
    ("nets/__init__.py", '"""A.\n\nunet.py: N.\n\nMay import: io.\n"""\nx = 1', "holds more than"),
    ("nets/__init__.py", "", "has no docstring"),
]


@pytest.mark.parametrize(("file", "text", "expected"), BROKEN)
def test_each_rule_bites(tmp_path, file, text, expected):
    package = small_package(tmp_path)
    write(package / file, text)
    (found,) = offences(package)
    assert expected in found


def test_files_named_for_nothing_are_seen(tmp_path):
    package = small_package(tmp_path)
    write(package / "io" / "utils.py", "")
    assert any("say what the file is for" in line for line in offences(package))


def test_a_class_name_that_stands_twice_is_seen(tmp_path):
    package = small_package(tmp_path)
    write(package / "plans" / "plan.py", "class Batch: ...")
    write(package / "catalog" / "run.py", "class Batch: ...")
    assert offences(package) == ["class Batch stands in ['catalog/run.py', 'plans/plan.py']"]


def test_a_circle_of_wings_is_seen(tmp_path):
    package = small_package(tmp_path)
    write(package / "migration" / "single.py", "from prolora_jax.benchmarks import baselines")
    write(package / "benchmarks" / "baselines.py", "from prolora_jax.migration import single")
    assert offences(package) == ["a circle: benchmarks -> migration -> benchmarks"]


INNOCENT = {
    "io/tensors.py": "import safetensors\nopen('a')\nfrom . import tensors\nfrom .. import layout",
    "method/linalg.py": "import jax\nfrom prolora_jax.errors import x\nfrom .basis import y",
    "method/similarity.py": "from .basis import Basis\nimport jaxtyping\nimport numpy",
    "adapters/formats/kohya.py": "from ..adapter import Adapter\nfrom .kohya import x",
    "benchmarks/baselines.py": "def f():\n    import torch",
    "cli/main.py": "print(1)\nfrom prolora_jax.io import atomic\natomic.write_text('a', 'b')",
    "catalog/run.py": "from prolora_jax.io.atomic import write_text as put\nput('a', 'b')",
    "__main__.py": "from prolora_jax.cli.main import main",
    "plans/plan.py": "imprint(1)\nreopen(2)\nx = print\n# import jax\n'''import jax'''",
    "verification/adapter.py": "from prolora_jax.adapters.adapter import A\nfrom .dense import x",
}


def test_innocent_files_pass(tmp_path):
    package = small_package(tmp_path)
    for file, text in INNOCENT.items():
        write(package / file, text)
    assert offences(package) == []
