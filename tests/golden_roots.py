"""Where golden values lie: tests/golden, and the wider collection beside the project, if any."""

import filecmp
import functools
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def golden_roots() -> list[Path]:
    """Folders that hold golden cases, the repository's own first."""
    beside = _HERE.parent.parent / "shared" / "golden"
    return [_HERE / "golden", *([beside] if beside.is_dir() else [])]


@functools.cache
def golden_cases(relative: str) -> list[Path]:
    """Every different copy of one case, such as `emotion2vec/e2vs_tiny`; never empty.

    A copy with the same files, byte for byte, would only test the same once more.
    """
    found: list[Path] = []
    for root in golden_roots():
        case = root / relative
        if case.exists() and not any(_same(case, other) for other in found):
            found.append(case)
    if not found:
        raise FileNotFoundError(f"no golden case {relative!r} in {golden_roots()}")
    return found


def _same(case: Path, other: Path) -> bool:
    names = _files(case)
    return names == _files(other) and all(
        filecmp.cmp(case / name, other / name, shallow=False) for name in names
    )


def _files(case: Path) -> list[Path]:
    """The files of a case relative to it; of a case that is one file, the empty path."""
    paths = [case] if case.is_file() else [path for path in case.rglob("*") if path.is_file()]
    return sorted(path.relative_to(case) for path in paths)
