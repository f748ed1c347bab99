"""Settings of the whole test run: the same examples every time, and one thread unless asked."""

import os

from hypothesis import HealthCheck, settings

# Before numba is imported: on one core it would refuse the second thread that is compared.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, os.cpu_count() or 1)))

import numba

numba.set_num_threads(1)  # arrays this small only wait for their threads

settings.register_profile("emu", derandomize=True, deadline=None,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much,
                                                 HealthCheck.data_too_large])
settings.load_profile("emu")
