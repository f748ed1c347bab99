"""How kernels are compiled, cached on disk and launched."""

import functools
import hashlib
import os
import sys
import threading
from pathlib import Path

from numba import config, njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

from emu import number

TEAM = 1 << 20  # additions that are worth starting a team of threads for
CAST = 8  # additions that take as long as one cast

# Torch's threads are OpenMP's too: two other kinds of teams would take the cores from each other.
config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
_team = threading.Lock()  # two at once would share the cores; numba's workqueue layer aborts then
_forked = []  # not empty in a process that was forked
os.register_at_fork(after_in_child=lambda: _forked.append(os.getpid()))


@functools.cache
def sources() -> str:
    """A digest of every kernel's source, and of the modes whose numbers are compiled in."""
    digest = hashlib.sha256()
    for path in [*sorted(Path(__file__).parent.glob("*.py")), Path(number.__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _announce() -> None:
    print("emu: compiling kernels, once on this machine (emu warmup compiles all)",
          file=sys.stderr)


class KeyedFiles(IndexDataCacheFile):
    """Numba's files, where what is found must name its key.

    Two processes that compile at once may have chosen the same file: it holds the code of one of
    them, and the index may say that it is the other's.
    """

    def save(self, key, data):
        super().save(key, (key, data))

    def load(self, key):
        found = super().load(key)
        return found[1] if found is not None and found[0] == key else None


class KernelCache(FunctionCache):
    """Numba's on-disk cache, keyed by every kernel file and by a name.

    Numba itself looks only at the file of the function it compiles: a helper in another file could
    change under a cached caller. The name tells apart kernels that one factory returns.
    """

    def __init__(self, function, name: str):
        super().__init__(function)
        self.name = name
        self._cache_file = KeyedFiles(self.cache_path, self._impl.filename_base, sources())

    def _index_key(self, sig, codegen):
        return sig, codegen.magic_tuple(), self.name, sources()

    def load_overload(self, sig, target_context):
        found = super().load_overload(sig, target_context)
        if found is None and sys.stderr.isatty():
            _announce()
        return found


def kernel(function=None, name: str = "", **options):
    """Compile a function on its first call, or load what an earlier process compiled."""
    if function is None:
        return functools.partial(kernel, name=name, **options)
    name = name or function.__name__
    compiled = _compiled(function, name, options)
    if options.get("parallel"):
        compiled.serial = functools.cache(lambda: _compiled(function, f"{name}.serial", {}))
    return compiled


def _compiled(function, name, options):
    compiled = njit(**options)(function)
    compiled._cache = KernelCache(function, name)  # what cache=True does, with another cache
    return compiled


def launch(kernel, additions: int, *arguments):
    """Run a parallel kernel, or where a team would start and end for too little, its serial twin.

    A team costs tens of microseconds on an idle machine, and milliseconds on a busy one. A forked
    process (a data loader's worker) must not touch the OpenMP of its parent: it runs serially.
    """
    if additions < TEAM or _forked:
        return kernel.serial()(*arguments)
    with _team:
        return kernel(*arguments)
