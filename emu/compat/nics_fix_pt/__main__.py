"""`python -m emu.compat.nics_fix_pt SCRIPT [ARGUMENTS]`: run a script of nics_fix_pt as it is."""

import importlib
import pkgutil
import runpy
import sys
from pathlib import Path

import emu.compat.nics_fix_pt as package

if len(sys.argv) < 2:
    sys.exit("usage: python -m emu.compat.nics_fix_pt SCRIPT [ARGUMENTS]")
if not Path(sys.argv[1]).is_file():
    sys.exit(f"{sys.argv[1]}: no such script; give the path of a Python file")
sys.modules["nics_fix_pt"] = package
for part in pkgutil.iter_modules(package.__path__):
    if not part.ispkg and part.name != "__main__":
        name = f"{package.__name__}.{part.name}"
        sys.modules[f"nics_fix_pt.{part.name}"] = importlib.import_module(name)
del sys.argv[0]
sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
runpy.run_path(sys.argv[0], run_name="__main__")
