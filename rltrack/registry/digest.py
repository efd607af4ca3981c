"""The digest of a stored model, which shows whether its files were changed since they were stored."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

DIGEST_TAG = "rltrack.digest"
"""Of the stored model, and of each version of a registered model."""

_MLFLOWS_OWN = "registered_model_meta"
_CACHE = "__pycache__"


def digest_of(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of all files in a model's folder.

    It leaves out what MLflow adds: the file that names the registered version, and compiled code.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()):
        relative = path.relative_to(folder)
        if relative.as_posix() == _MLFLOWS_OWN or _CACHE in relative.parts:
            continue
        digest.update(f"{len(relative.as_posix().encode())} {relative.as_posix()} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def remove_compiled_code(folder: Path) -> None:
    """Remove compiled code from a copy of a model: Python would run it instead of the files next to it."""
    for path in list(folder.rglob(_CACHE)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
