"""Pages of 2 MiB for XLA:CPU's temporaries, which every step of a program maps anew."""

import os
import sys
from pathlib import Path

OPTION = "glibc.malloc.hugetlb"
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages(name: str) -> None:
    """Starts this command over, in its own process, with glibc asking Linux for huge pages.

    In pages of 4 KiB the kernel takes up to three tenths of a CPU training step to hand memory out.
    glibc reads the option when a process starts and not later. `name` is that of the module or
    script on the command line: nothing happens where another program, such as a notebook, runs it,
    where GLIBC_TUNABLES has the option already ("glibc.malloc.hugetlb=0" refuses huge pages), or
    where Linux wouldn't wait to be asked.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if OPTION in tunables or name not in sys.orig_argv or not _on_request():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{OPTION}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _on_request() -> bool:
    """Whether Linux gives huge pages to those who ask, and to no others."""
    try:
        return "[madvise]" in SETTING.read_text()
    except OSError:
        return False
