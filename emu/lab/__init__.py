"""Experiments on the hardware: train a recipe, record a step, compare two runs.

Needs what the extra `emu[train]` installs.
"""

import emu.nn  # noqa: F401 (says which extra to install where torch is missing)
