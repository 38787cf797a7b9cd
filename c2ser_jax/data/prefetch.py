"""Makes batches ahead of their use, in threads or worker processes, in exact order (grain)."""

import atexit
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Batch = dict[str, Any]


class Prefetched(Iterator[Batch]):
    """Yields `make(step)` for every step of a range, made ahead by grain.

    `workers` 0 makes them in `threads` threads of this process; otherwise `make` is pickled and
    sent to that many processes. The order and content are the same. `close()` stops the workers;
    what is still open is closed before the interpreter ends.
    """

    def __init__(self, make: Callable[[int], Batch], steps: range, *, workers: int, threads: int):
        import grain

        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        dataset = grain.MapDataset.range(steps.start, steps.stop).map(make).to_iter_dataset(read)
        if workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain's workers read absl flags
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        self._copies = workers > 0
        self._iterator: Any = iter(dataset)
        if not _open:  # registered late, so that it runs before multiprocessing's own clean-up
            atexit.unregister(_close_all)
            atexit.register(_close_all)
        _open.add(self)

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        batch = next(self._iterator)
        if self._copies:  # gives the workers' shared memory back at once
            batch = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}
        return batch

    def close(self) -> None:
        """Stops making batches; iteration ends."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()


_open: weakref.WeakSet[Prefetched] = weakref.WeakSet()


def _close_all() -> None:
    for prefetched in list(_open):
        prefetched.close()
