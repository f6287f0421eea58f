"""Orbax folders of every layout give the arrays that orbax wrote; damaged ones one line each."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from numpy.testing import assert_array_equal

from prolora_jax.errors import BaseModelError
from prolora_jax.io.containers.orbax_tree import OrbaxTree, orbax_item

KERNEL = np.arange(12, dtype=np.float32).reshape(3, 4)
TREE: dict[str, Any] = {
    "a": {"kernel": KERNEL, "half": KERNEL.astype(ml_dtypes.bfloat16)},
    "b/c": {"zero.": np.zeros((2, 5), np.float16), "one": np.ones(3, np.int32)},
    "step": 7,
}
PLACES = {("a", "kernel"), ("a", "half"), ("b/c", "zero."), ("b/c", "one"), ("step",)}

LAYOUTS = {
    "one database": {},
    "one database, zarr3": {"use_zarr3": True},
    "a folder each": {"use_ocdbt": False},
    "a folder each, zarr3": {"use_ocdbt": False, "use_zarr3": True},
}


def written(folder: Path, tree: Any, **layout: Any) -> Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**layout)) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))
    item = orbax_item(folder)
    assert item is not None
    return item


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_every_layout_gives_what_orbax_wrote(tmp_path, layout):
    tree = OrbaxTree(written(tmp_path / "net", TREE, **layout))
    assert set(tree.leaves) == PLACES
    for place in PLACES:
        want: Any = TREE
        for name in place:
            want = want[name]
        want = np.asarray(want)
        assert tree.leaves[place].shape == want.shape
        assert tree.leaves[place].dtype == want.dtype.name
        got = tree.read(place)
        assert got.dtype == want.dtype
        assert_array_equal(got, want)


def test_texts_lists_and_nothing_are_no_arrays(tmp_path):
    tree = {"a": KERNEL, "b": [KERNEL, KERNEL], "c": None, "d": {}, "e": "text"}
    assert set(OrbaxTree(written(tmp_path / "net", tree)).leaves) == {("a",)}


def test_a_chunk_that_was_left_out_is_zero_where_orbax_left_out_zeros(tmp_path):
    folder = written(tmp_path / "net", {"zero": np.zeros((2, 2), np.float32)}, use_ocdbt=False)
    (folder / "zero" / "0.0").unlink()
    with pytest.raises(BaseModelError, match=r"its arrays cannot be read .*missing"):
        OrbaxTree(folder).read(("zero",))
    document = json.loads((folder / "_METADATA").read_text())
    del document["store_array_data_equal_to_fill_value"]  # folders from before it was noted
    (folder / "_METADATA").write_text(json.dumps(document))
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as orbax:
        assert_array_equal(orbax.restore(folder)["zero"], np.zeros((2, 2)))
    assert_array_equal(OrbaxTree(folder).read(("zero",)), np.zeros((2, 2)))


# An exception that ends a thread of TensorStore's is printed by the process, past any `except`.
CHILD = """
import sys
from pathlib import Path
from prolora_jax.errors import BaseModelError
from prolora_jax.io.containers.orbax_tree import OrbaxTree
for folder in sys.argv[1:]:
    try:
        tree = OrbaxTree(Path(folder))
        for place in tree.leaves:
            tree.read(place)
    except BaseModelError as refusal:
        print(refusal, file=sys.stderr)
"""


def test_damaged_folders_say_one_line_each_and_nothing_else(tmp_path):
    many = {f"m{i}": np.full((4, 4), i, np.float32) for i in range(40)}
    folders = []
    for use_ocdbt in (True, False):
        good = written(tmp_path / f"good{use_ocdbt}", many, use_ocdbt=use_ocdbt)
        for file in sorted(path for path in good.rglob("*") if path.is_file()):
            if file.parent.name in many and file.parent.name != "m7":
                continue  # of the folders with one array, one is enough
            content = file.read_bytes()
            for broken in (content[: len(content) // 2], b"\xff" * len(content)):
                file.write_bytes(broken)
                folders.append(tmp_path / f"bad{len(folders)}")
                shutil.copytree(good, folders[-1])
            file.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, folders)], capture_output=True, timeout=300
    )
    told = done.stderr.decode().splitlines()
    assert done.returncode == 0
    assert len(told) > len(folders) / 4
    want = "expected a folder that orbax wrote; copy it again"
    starts = tuple(f"{folder}: its arrays cannot be read (" for folder in folders)
    assert [line for line in told if not (line.startswith(starts) and line.endswith(want))] == []
