"""`on_full_disk.py STUDY FOLDER COMMAND ...`: a command in a copy of a study that fills its disk.

Started in a mount namespace of its own. Exit code: the command's, or 99 where a file outside
``.work`` is not as it was.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

from semires.files import sha256_file


def digests(folder: Path) -> dict[Path, str]:
    found = (p for p in folder.rglob("*") if p.is_file() and ".work" not in p.parts)
    return {path: sha256_file(path) for path in found}


def main() -> int:
    study, folder, *command = sys.argv[1:]
    size = subprocess.run(["du", "-sk", study], capture_output=True, text=True, check=True).stdout
    options = f"size={int(size.split()[0]) + 200}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "x", folder], check=True)
    shutil.copytree(study, folder, dirs_exist_ok=True)
    with contextlib.suppress(OSError), open(Path(folder) / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    before = digests(Path(folder))
    code = subprocess.run(command, cwd=folder, check=False).returncode
    return code if digests(Path(folder)) == before else 99


if __name__ == "__main__":
    sys.exit(main())
