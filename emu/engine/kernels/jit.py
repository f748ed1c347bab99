"""How kernels are compiled, cached on disk and launched."""

import functools
import hashlib
from pathlib import Path

from numba import get_num_threads, njit, set_num_threads
from numba.core.caching import FunctionCache

TEAM = 1 << 20  # additions that are worth starting a team of threads for
CAST = 8  # additions that take as long as one cast


@functools.cache
def sources() -> str:
    """A digest of every kernel's source."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class KernelCache(FunctionCache):
    """Numba's on-disk cache, except that a change of any kernel file makes all entries stale.

    Numba itself looks only at the file of the function it compiles: a helper in another file could
    change under a cached caller.
    """

    def _index_key(self, sig, codegen):
        return (*super()._index_key(sig, codegen), sources())


def kernel(function=None, **options):
    """Compile a function on its first call, or load what an earlier process compiled."""
    if function is None:
        return functools.partial(kernel, **options)
    compiled = njit(**options)(function)
    compiled._cache = KernelCache(function)  # what cache=True does, with another cache
    return compiled


def launch(kernel, additions: int, *arguments):
    """Run a parallel kernel, on one thread where a team would start and end for too little.

    A team costs tens of microseconds on an idle machine, and milliseconds on a busy one.
    """
    threads = get_num_threads()
    if threads == 1 or additions >= TEAM:
        return kernel(*arguments)
    set_num_threads(1)
    try:
        return kernel(*arguments)
    finally:
        set_num_threads(threads)
