"""The program that opens pickles: `python -P pickle_child.py INPUT OUTPUT`, run by `pickles`.

A process of its own, with limits, that knows nothing of the package: it reads the tensors of a
pickle with torch's restricted reader, writes them to a safetensors file, or prints one line of JSON
with a code and what was found. The only file of the package that imports torch.
"""

import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

SMALLEST_MEMORY = 2**30
"""Bytes beyond what torch itself takes."""
FIRST_SAFE = (2, 6)
"""Before this version the restricted reader could be made to run code (CVE-2025-32434)."""


def main(source: str, target: str) -> None:
    """Convert one file, or say why not."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as failure:
        answer("missing-library", f"needs torch, which cannot be imported here ({failure})")
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < FIRST_SAFE:
        answer("missing-library", f"needs torch 2.6 or newer, found {torch.__version__}")
    torch.set_num_threads(1)
    limit(Path(source).stat().st_size)
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
        tensors = take_tensors(content, torch)
        save_file(tensors, target)
    except MemoryError:
        answer("file-too-large", "takes more memory than its size explains")
    except Exception as failure:  # noqa: BLE001 - whatever a file can make torch raise
        answer(*explain(str(failure)))


def end_with(parent: int) -> None:
    """End when the parent is gone: it was killed, and no longer counts the seconds."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def limit(size: int) -> None:
    """Limits on memory and written bytes, as far as the system has them."""
    try:
        import resource
    except ImportError:  # Windows
        return
    most = max(SMALLEST_MEMORY, 4 * size)  # the content, a copy in order, what is written
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        now = int(statistics.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + most, now + most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def take_tensors(content: Any, torch: Any) -> dict[str, Any]:
    """The tensors by name, each with memory of its own."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        found = f"not-an-adapter:pickled-{type(content).__name__}: found no names of tensors"
        answer("not-an-adapter", found)
    if "string_to_param" in content:
        answer("not-an-adapter", "not-an-adapter:textual-inversion: found string_to_param")
    tensors = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            shown = f"{type(tensor).__name__} under {name!r:.100}"
            answer("not-an-adapter", f"not-an-adapter:pickled-object: found a {shown}")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            answer("unsupported-dtype", f"found tensor {name!r:.100}, sparse, packed or complex")
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensors


def explain(failure: str) -> tuple[str, str]:
    """Code and finding for an error of torch's."""
    called = re.search(r"GLOBAL ([\w.]+)", failure)
    if called:
        return "pickle-refused", f"found a pickle that would call {called[1]}, not only tensors"
    if "alloc" in failure:
        return "file-too-large", "takes more memory than its size explains"
    reason = " ".join(failure.split())[:200]
    return "pickle-refused", f"found no pickle of tensors ({reason})"


def answer(code: str, found: str) -> NoReturn:
    """Say why there is no output, and leave."""
    print(json.dumps({"code": code, "found": found}))  # noqa: T201 - this is its answer
    sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
