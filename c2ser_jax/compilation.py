"""The persistent compilation cache: a second run of the same program compiles nothing."""

import hashlib
import logging
import os
from pathlib import Path

import jax

from c2ser_jax.data.files import cache_directory

VARIABLE = "C2SER_COMPILATION_CACHE"
_LOG = logging.getLogger(__name__)


def enable_compilation_cache() -> Path | None:
    """Turns the cache on for every program, however small, and returns its directory.

    C2SER_COMPILATION_CACHE names another directory, or "off"; JAX's own JAX_COMPILATION_CACHE_DIR
    is kept when set. The default lies under the user's cache directory, apart for each kind of
    processor, because compiled code for one may not run on another that shares the home directory.
    Returns None when the cache is off or no directory can be written (a run never fails for it).
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is not None and chosen.lower() in ("", "0", "off", "none", "false"):
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    chosen = chosen or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    directory = Path(chosen) if chosen else cache_directory() / f"xla-{_processor()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise OSError(f"{directory} is not writable")
    except OSError as error:
        _LOG.warning("no compilation cache: %s (set %s to another place)", error, VARIABLE)
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return directory


def _processor() -> str:
    """A short hash of what the processor can do, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [" ".join(os.uname())]
    told = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
