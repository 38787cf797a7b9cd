"""librosa, which is loaded late and by one process at a time.

What librosa lets numba compile is compiled when it is imported first (about 40 s), and kept on disk
in pairs of files. Two processes that do so at once can leave a pair whose halves don't belong
together, and then every later process of that environment ends in a segmentation fault.

Source: https://github.com/numba/numba/issues/10128, open as of numba 0.68.
"""

import contextlib
import logging
import sys
from pathlib import Path
from types import ModuleType

from c2ser_jax.data.files import cache_directory

_LOG = logging.getLogger(__name__)


def load_librosa(*, lock: bool = True) -> ModuleType:
    """Returns librosa with all that this project uses of it loaded.

    `lock=False` is for the processes of a pool whose parent has loaded it before: they needn't
    wait for each other.
    """
    loaded = "librosa.core.pitch" in sys.modules
    with contextlib.nullcontext() if loaded or not lock else _alone():
        return _import()


def lock_file() -> Path:
    """The file that is locked meanwhile."""
    return cache_directory() / "librosa.lock"


def _import() -> ModuleType:
    import librosa
    import librosa.core.audio
    import librosa.core.pitch  # which asks for librosa.util
    import librosa.feature
    import librosa.filters

    return librosa


def _alone() -> contextlib.AbstractContextManager:
    """Holds the lock; without one where no file can be written."""
    from filelock import FileLock

    stack = contextlib.ExitStack()
    try:
        lock_file().parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(lock_file()))
    except (OSError, NotImplementedError) as error:  # filelock 3's, without flock
        _LOG.warning("librosa is loaded without a lock (%s)", error)
    return stack
