"""Huge pages: asked for once, in place, and by nobody else's command."""

import subprocess
import sys
from pathlib import Path

import pytest

from c2ser_jax import huge_pages
from c2ser_jax.huge_pages import use_huge_pages

ROOT = Path(__file__).resolve().parents[2]
OFFERED = "always [madvise] never\n"


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """Calls of execv, which does nothing here; Linux gives huge pages on request."""
    calls = []
    (tmp_path / "enabled").write_text(OFFERED)
    monkeypatch.setattr(huge_pages, "SETTING", tmp_path / "enabled")
    monkeypatch.setattr(huge_pages.os, "execv", lambda *call: calls.append(call))
    monkeypatch.setattr(sys, "orig_argv", ["py", "-m", "a.b", "--x"])
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    return calls


def test_the_same_command_starts_over_once(executed):
    use_huge_pages("a.b")
    use_huge_pages("a.b")
    assert executed == [(sys.executable, [sys.executable, "-m", "a.b", "--x"])]


def test_other_options_are_kept(executed, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=1")
    use_huge_pages("a.b")
    found = huge_pages.os.environ["GLIBC_TUNABLES"]
    assert found == "glibc.malloc.tcache_count=1:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]", None])
def test_nothing_happens_where_linux_would_not_heed_it(executed, setting):
    huge_pages.SETTING.unlink()
    if setting is not None:
        huge_pages.SETTING.write_text(setting)
    use_huge_pages("a.b")
    assert not executed


def test_nothing_happens_inside_another_program(executed, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["py", "-m", "notebook"])
    use_huge_pages("a.b")
    assert not executed


def test_they_can_be_refused(executed, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    use_huge_pages("a.b")
    assert not executed


def test_a_real_command_keeps_its_process_and_its_arguments(tmp_path):
    (tmp_path / "enabled").write_text(OFFERED)
    script = tmp_path / "command.py"
    script.write_text(
        "import os, pathlib, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from c2ser_jax import huge_pages\n"
        f"huge_pages.SETTING = pathlib.Path({str(tmp_path / 'enabled')!r})\n"
        "huge_pages.use_huge_pages(sys.argv[0])\n"
        "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], sys.flags.utf8_mode)\n"
    )
    command = [sys.executable, "-X", "utf8", str(script), "two words", ""]
    with subprocess.Popen(command, env={}, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=60)
    assert out == f"{process.pid} glibc.malloc.hugetlb=1 ['two words', ''] 1\n"
