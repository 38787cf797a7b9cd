"""Huge pages: asked for once, in place, and by nobody else's command."""

import os
import runpy
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
    for name in ("GLIBC_TUNABLES", "C2SER_HUGE_PAGES"):  # set first, to be restored at the end
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return calls


def test_the_same_command_starts_over_once(executed, monkeypatch):
    use_huge_pages("a.b")
    monkeypatch.delenv("GLIBC_TUNABLES")  # as glibc does where a program has more rights
    use_huge_pages("a.b")
    assert executed == [(sys.executable, [sys.executable, "-m", "a.b", "--x"])]


def test_other_options_are_kept(executed, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=1")
    use_huge_pages("a.b")
    found = os.environ["GLIBC_TUNABLES"]
    assert found == "glibc.malloc.tcache_count=1:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]", None])
def test_nothing_happens_where_linux_would_not_heed_it(executed, setting):
    huge_pages.SETTING.unlink()
    if setting is not None:
        huge_pages.SETTING.write_text(setting)
    use_huge_pages("a.b")
    assert not executed


@pytest.mark.parametrize(
    "line",
    ["-m notebook", "-m pdb -m a.b", "/bin/coverage run -m a.b", "-m other a.b", "-c a.b", "-"],
)
def test_nothing_happens_inside_another_program(executed, monkeypatch, line):
    monkeypatch.setattr(sys, "orig_argv", ["py", *line.split()])
    use_huge_pages("a.b")
    assert not executed


@pytest.mark.parametrize("line", ["-u -m a.b", "-X dev -W error -m a.b --x -m", "a.b -m other"])
def test_options_of_the_interpreter_are_passed_over(executed, monkeypatch, line):
    monkeypatch.setattr(sys, "orig_argv", ["py", *line.split()])
    use_huge_pages("a.b")
    assert executed == [(sys.executable, [sys.executable, *line.split()])]


@pytest.mark.parametrize(
    ("name", "value"), [("C2SER_HUGE_PAGES", "off"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")]
)
def test_they_can_be_refused(executed, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    use_huge_pages("a.b")
    assert not executed


def test_a_command_that_cannot_start_over_goes_on(executed, monkeypatch):
    def refused(*call):
        executed.append(call)
        raise OSError("not here")

    monkeypatch.setattr(huge_pages.os, "execv", refused)
    use_huge_pages("a.b")
    assert len(executed) == 1


def test_training_asks_for_them(executed, monkeypatch):
    def leave(*call):
        raise SystemExit(f"started over: {call[1][1:]}")

    command = ["-m", "c2ser_jax.train", "--config", "x"]
    monkeypatch.setattr(huge_pages.os, "execv", leave)
    monkeypatch.setattr(sys, "orig_argv", ["py", *command])
    monkeypatch.delitem(sys.modules, "c2ser_jax.train", raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("c2ser_jax.train", run_name="__main__")
    assert stopped.value.code == f"started over: {command}"


def test_a_real_command_keeps_its_process_and_its_arguments(tmp_path):
    (tmp_path / "enabled").write_text(OFFERED)
    script = tmp_path / "command.py"
    script.write_text(
        "import os, pathlib, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from c2ser_jax import huge_pages\n"
        f"huge_pages.SETTING = pathlib.Path({str(tmp_path / 'enabled')!r})\n"
        "huge_pages.use_huge_pages(sys.argv[0])\n"
        "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], sys.flags.optimize)\n"
    )
    command = [sys.executable, "-O", str(script), "two words", ""]
    own = {"GLIBC_TUNABLES", "C2SER_HUGE_PAGES"}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=60)
    assert out == f"{process.pid} glibc.malloc.hugetlb=1 ['two words', ''] 1\n"
