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
import tensorstore
from numpy.testing import assert_array_equal

from prolora_jax.errors import BaseModelError
from prolora_jax.io.containers.orbax_tree import OrbaxTree, orbax_item, orbax_items, passed_over

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


ZEROS = "store_array_data_equal_to_fill_value"


def noted(folder: Path, zeros: bool | None) -> OrbaxTree:
    """A tree whose description says whether zeros are stored; None as before it was noted."""
    document = json.loads((folder / "_METADATA").read_text())
    document = {key: value for key, value in document.items() if key != ZEROS}
    document |= {} if zeros is None else {ZEROS: zeros}
    (folder / "_METADATA").write_text(json.dumps(document))
    return OrbaxTree(folder)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_a_lost_chunk_is_refused_unless_orbax_says_that_it_left_out_zeros(tmp_path, layout):
    folder = written(tmp_path / "net", {"a": {"zero": np.zeros((2, 2), np.float32)}}, **layout)
    files = f"file://{folder}/"
    spec = {"driver": "ocdbt", "base": files} if layout.get("use_ocdbt", True) else files
    store = tensorstore.KvStore.open(spec).result()
    listed = store.list().result()
    (chunk,) = (key for key in listed if key.startswith(b"a.zero/") and b"zarr" not in key)
    store.write(chunk, None).result()
    for zeros in (True, None):
        words = r"net: its arrays cannot be read \(array a.zero: .*a.zero/.*missing"
        with pytest.raises(BaseModelError, match=words) as refused:
            noted(folder, zeros).read(("a", "zero"))
        assert ("with an orbax that stores zeros" in str(refused.value)) == (zeros is None)
    assert_array_equal(noted(folder, False).read(("a", "zero")), np.zeros((2, 2)))


@pytest.mark.parametrize("harm", ["empty", "no metadata", "cut", "an item lacks", "not committed"])
def test_the_newest_whole_step_is_taken_and_it_is_said(tmp_path, harm):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (3, 20):
            items = {name: ocp.args.PyTreeSave({"a": KERNEL * step}) for name in ("net", "other")}
            manager.save(step, args=ocp.args.Composite(**items))
    folder, step = tmp_path / "run", tmp_path / "run/20"
    item = orbax_item(folder)
    assert item is not None
    assert item == step / "net"
    assert passed_over(folder, item) is None
    assert passed_over(folder / "3", folder / "3/net") is None  # which was asked for
    if harm == "empty":
        shutil.rmtree(step)
        step.mkdir()
    elif harm == "no metadata":
        (step / "net/_METADATA").unlink()
        shutil.rmtree(step / "other")
    elif harm == "cut":
        (step / "net/manifest.ocdbt").write_bytes(b"")
    elif harm == "an item lacks":
        shutil.rmtree(step / "net")
    else:
        notes = json.loads((step / "_CHECKPOINT_METADATA").read_text())
        text = json.dumps(notes | {"commit_timestamp_nsecs": None})
        (step / "_CHECKPOINT_METADATA").write_text(text)
    item = orbax_item(folder)
    assert item is not None
    assert item == folder / "3/net"
    said = "which is not whole or has nothing to read; step 3 is read"
    assert passed_over(folder, item) == f"newest-step-left: found step 20, {said}"


def test_a_step_that_orbax_was_writing_when_it_was_killed_is_none(tmp_path: Path):
    for name in ("10", "12.orbax-checkpoint-tmp-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "_METADATA").write_text("{}")
    assert [*orbax_items(tmp_path)] == [tmp_path / "10"]


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
