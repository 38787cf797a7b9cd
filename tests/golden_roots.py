"""Where golden values lie: tests/golden, and the wider collection beside the project, if any."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def golden_roots() -> list[Path]:
    """Folders that hold golden cases, the repository's own first."""
    beside = _HERE.parent.parent / "shared" / "golden"
    return [_HERE / "golden", *([beside] if beside.is_dir() else [])]


def golden_cases(relative: str) -> list[Path]:
    """Every existing copy of one case, such as `emotion2vec/e2vs_tiny`; never empty."""
    found = [root / relative for root in golden_roots() if (root / relative).exists()]
    if not found:
        raise FileNotFoundError(f"no golden case {relative!r} in {golden_roots()}")
    return found
