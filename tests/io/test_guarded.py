"""What a user gave is opened only if it is a regular file, and read only within its budget."""

import os
import socket
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from prolora_jax.errors import AdapterRefused, BaseModelError, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.documents import (
    MOST_VALUES,
    YAML_VALUES,
    BadDocument,
    parse_json,
    parse_yaml,
    read_json,
    read_json_document,
    read_lines,
    require_options_file,
)
from prolora_jax.io.guarded import UnfitFile, is_regular, open_regular, read_small
from prolora_jax.io.outputs.reports import read_pair_report, read_plan, read_report


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (pipe, "found a pipe"),
    "socket": (listening, "found a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "found a device"),
    "folder": (Path.mkdir, "found a folder"),
}


@pytest.fixture(params=ODD)
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    make, found = ODD[request.param]
    make(tmp_path / "odd")
    return tmp_path / "odd", found


def test_only_regular_files_are_opened(odd: tuple[Path, str], tmp_path: Path):
    path, found = odd
    (tmp_path / "link").symlink_to(path)
    for place in (path, tmp_path / "link"):
        assert not is_regular(place)
        with pytest.raises(UnfitFile) as caught:
            open_regular(place)
        assert caught.value.strerror == f"{found}; expected a regular file"
        with pytest.raises(BadDocument, match=f"cannot be read \\({found}; expected a regular"):
            read_json_document(place)


def test_links_are_followed_to_files_alone(tmp_path: Path):
    file, link, loop = (tmp_path / name for name in ("file", "link", "loop"))
    file.write_text("text")
    link.symlink_to(file)
    loop.symlink_to(loop)
    with open_regular(link) as opened:
        assert opened.read() == b"text"
    assert is_regular(link)
    assert not is_regular(loop)
    with pytest.raises(UnfitFile, match="found a link"):
        open_regular(link, follow=False)
    with pytest.raises(OSError, match="symbolic link"):
        open_regular(loop)


def test_a_pipe_put_in_between_does_not_hold_anybody(tmp_path: Path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("text")
    stat = os.stat

    def seen_and_swapped(path, **more):
        status = stat(path, **more)
        file.unlink()
        os.mkfifo(file)
        return status

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", seen_and_swapped)
        with pytest.raises(UnfitFile, match="found a pipe"):
            open_regular(file)


def test_a_budget_is_of_bytes_read_not_of_bytes_claimed(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    assert len(read_small(file, 100)) == 100
    with pytest.raises(UnfitFile, match="found 100 bytes; at most 99 are read"):
        read_small(file, 99)
    with file.open("wb") as sparse:
        sparse.truncate(3 * 2**30)
    with pytest.raises(BadDocument, match="found 3221225472 bytes; at most"):
        read_json_document(file)


@pytest.mark.parametrize("load", [load_adapter, load_base_model, read_plan, read_pair_report])
def test_no_reader_waits_for_a_pipe(load: Callable[[Path], object], tmp_path: Path):
    for name in ("a.safetensors", "b.msgpack", "c.bin", "pair.report.json"):
        os.mkfifo(tmp_path / name)
        given = tmp_path if load is read_pair_report else tmp_path / name
        if load is read_pair_report and name != "pair.report.json":
            continue
        with pytest.raises((UsageError, AdapterRefused, BaseModelError), match="found a pipe"):
            load(given)


def test_a_report_that_is_a_pipe_or_deep_is_none(tmp_path: Path):
    os.mkfifo(tmp_path / "a.safetensors.report.json")
    with pytest.raises(UsageError, match="found a pipe.*Remove what is there and migrate again"):
        read_report(tmp_path / "a.safetensors")
    deep = '{"x":' + "[" * 100_000
    (tmp_path / "b.safetensors.report.json").write_text(deep)
    (tmp_path / "pair.report.json").write_text(deep)
    (tmp_path / "plan.json").write_text(deep)
    with pytest.raises(UsageError, match="found no migration report"):
        read_report(tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match="found no report about a pair"):
        read_pair_report(tmp_path)
    with pytest.raises(UsageError, match="found no plan"):
        read_plan(tmp_path / "plan.json")


# --- documents ---


def bomb(levels: int, width: int = 12) -> str:
    """Maps of aliases: a line more is twelve times the values."""
    lines = ["m0: &m0 {x: 1}"]
    for i in range(1, levels):
        names = ", ".join(f"k{j}: *m{i - 1}" for j in range(width))
        lines.append(f"m{i}: &m{i} {{{names}}}")
    return "\n".join(lines)


YAML = {
    "maps of aliases": (bomb(8), f"more than {YAML_VALUES} values"),
    "lists of aliases": (
        "a: &a [1,2,3,4,5,6,7,8]\n"
        + "\n".join(f"{y}: &{y} [{','.join(['*' + x] * 8)}]" for x, y in pairwise("abcdef")),
        f"more than {YAML_VALUES} values",
    ),
    "merges": ("a: &a {b: 1}\nc: {<<: [" + "*a," * 9000 + "]}", f"more than {YAML_VALUES} values"),
    "long list": ("- 1\n" * 60_000, f"more than {YAML_VALUES} values"),
    "large": ("a: " + "x" * 2**18, "characters of YAML; at most"),
    "deep": ("[" * 10_000, "more than 100 levels"),
    "deep blocks": ("- " * 10_000, "more than 100 levels"),
    "itself": ("a: &a [*a]", "an alias inside of what it stands for"),
    "long number": ("a: 1" + ":1" * 10_000, "a number of 20001 characters"),
    "python": ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "no number": ("a: !!int ''", "found no YAML"),
    "no truth": ("a: !!bool perhaps", "found no YAML"),
    "no day": ("a: !!timestamp 2001-99-99", "found no YAML"),
    "list as key": ("? [1]\n: 2", "found no YAML"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_over_a_budget(name: str):
    text, found = YAML[name]
    with pytest.raises(BadDocument, match=found):
        parse_yaml(text)


def test_yaml_within_its_budgets_is_as_it_was():
    text = bomb(3, 2) + "\nlong: " + "x" * 1000 + "\nmerged: {<<: *m1, y: true}\n"
    leaf = {"x": 1}
    one = {"k0": leaf, "k1": leaf}
    assert parse_yaml(text) == {
        "m0": leaf,
        "m1": one,
        "m2": {"k0": one, "k1": one},
        "long": "x" * 1000,
        "merged": {**one, "y": True},
    }


JSON = {
    "deep": (b"[" * 900 + b"]" * 900, "more than 100 levels"),
    "too deep for a parser": (b'{"a":' * 200_000, "more than 100 levels"),
    "maps and lists": (b'{"a":[' * 60 + b"]}" * 60, "more than 100 levels"),
    "values": (b"[" + b"0," * MOST_VALUES + b"0]", f"more than {MOST_VALUES} values"),
    "long number": (b"1" * 5000, "found no JSON"),
    "cut off": (b'{"a": ', "found no JSON"),
    "no text": (b'"\xff"', "found no JSON"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_over_a_budget(name: str):
    content, found = JSON[name]
    with pytest.raises(BadDocument, match=found):
        parse_json(content)


def test_json_within_its_budgets_is_as_it_was():
    assert parse_json(b"\xef\xbb\xbf[1, {}]") == [1, {}]
    assert parse_json(b'["' + b"," * (MOST_VALUES + 1) + b'"]') == ["," * (MOST_VALUES + 1)]
    assert parse_json(b"[" * 99 + b"]" * 99)


def test_own_records_that_are_damaged_are_as_good_as_none(tmp_path: Path):
    for content in ("", "{", "[" * 100_000):
        (tmp_path / "x.json").write_text(content)
        assert read_json(tmp_path / "x.json") is None
    (tmp_path / "x.json").write_text("[" * 100_000)
    assert read_lines(tmp_path / "x.json") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("scale: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("scale: &a [*a]", "an alias inside of what it stands for"),
        ("1: 2", "no map of names"),
        ("- a", "no map of names"),
    ],
)
def test_a_file_of_options_that_is_none(text: str, found: str, tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"{found}.*Check --config"):
        require_options_file(file)
    for good in ("", "scale: 1\n"):
        file.write_text(good)
        require_options_file(file)
