"""Makes batches ahead of their use, in threads or worker processes, in exact order (grain)."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import numpy as np

Batch = dict[str, Any]


class Prefetched(Iterator[Batch]):
    """Yields `make(step)` for every step of a range, made ahead by grain.

    `workers` 0 makes them in `threads` threads of this process; otherwise `make` is pickled and
    sent to that many processes. The order and content are the same. `close()` stops the workers;
    what is still open is closed before the interpreter ends. Workers leave SIGTERM and SIGINT,
    which often go to all processes of a run, to the process that started them, and end when it is
    gone, however it went.
    """

    def __init__(self, make: Callable[[int], Batch], steps: range, *, workers: int, threads: int):
        import grain

        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        dataset = grain.MapDataset.range(steps.start, steps.stop).map(make).to_iter_dataset(read)
        if workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain's workers read absl flags
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=workers)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_begin_worker)
        self._copies = workers > 0
        self._started = False
        self._iterator: Any = iter(dataset)
        if not _open:  # registered late, so that it runs before multiprocessing's own clean-up
            atexit.unregister(_close_all)
            atexit.register(_close_all)
        _open.add(self)

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        if self._started:
            batch = next(self._iterator)
        else:
            with _signals_held():  # grain starts the workers here, and they inherit what is held
                batch = next(self._iterator)
            self._started = True
        if self._copies:  # gives the workers' shared memory back at once
            batch = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}
        return batch

    def close(self) -> None:
        """Stops making batches; iteration ends."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Holds SIGTERM and SIGINT back from this thread until the end of the block."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows sends neither to a group of processes
        yield
        return
    resource_tracker.ensure_running()  # its start, left to grain, would let both through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(index: int, count: int) -> None:
    """Ends this worker as soon as the process that started it is gone."""
    del index, count
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


_open: weakref.WeakSet[Prefetched] = weakref.WeakSet()


def _close_all() -> None:
    for prefetched in list(_open):
        prefetched.close()
