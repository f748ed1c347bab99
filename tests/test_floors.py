"""A file imports only from the floors below it, and hardware people install no framework."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CASTS = {"emu.value", "emu.number", "emu.kind"}
# What each place may import besides the standard library and itself.
FLOORS = {
    "emu/value.py": set(),
    "emu/number.py": {"emu.value"},
    "emu/kind.py": {"emu.value", "emu.number"},
    "emu/rule.py": CASTS,
    "emu/update.py": CASTS,
    "emu/spec.py": {*CASTS, "emu.rule", "emu.update", "emu.norm_casts"},
    "emu/affine.py": CASTS,
    "emu/norm.py": CASTS,
    "emu/norm_casts.py": {*CASTS, "emu.norm"},
    "emu/functions.py": set(),
    "emu/table.py": {*CASTS, "emu.rule", "emu.functions"},
    "emu/preset.py": {*CASTS, "emu.spec"},
    "emu/reference": {*CASTS, "emu.rule", "emu.spec", "emu.update", "emu.affine", "emu.norm",
                      "emu.table"},
    "emu/engine": {*CASTS, "emu.rule", "emu.spec", "emu.update", "emu.affine", "emu.norm",
                   "emu.table", "numpy", "numba", "llvmlite"},
    "emu/bounds.py": {*CASTS, "emu.spec", "emu.reference", "emu.engine", "numpy"},
    "emu/golden": {*CASTS, "emu.spec", "emu.update", "emu.reference", "emu.__version__"},
    "emu/cosim": {*CASTS, "emu.spec", "emu.update", "emu.reference", "emu.golden", "numpy",
                  "numba", "cocotb", "cocotb_tools", "find_libpython", "tomli"},
    "emu/nn": {*CASTS, "emu.rule", "emu.spec", "emu.update", "emu.norm", "emu.norm_casts",
               "emu.table", "emu.engine", "numpy", "torch", "yaml", "pydantic", "pydantic_core",
               "rich"},
    "emu/lab": {"emu.__version__", *CASTS, "emu.norm", "emu.rule", "emu.spec", "emu.update",
                "emu.reference", "emu.engine", "emu.bounds", "emu.golden", "emu.cosim", "emu.nn",
                "numpy", "torch", "yaml", "safetensors", "sklearn", "matplotlib"},
    "emu/compat": {*CASTS, "emu.rule", "emu.spec", "emu.update", "emu.engine", "emu.nn",
                   "emu.lab", "numpy", "torch", "yaml", "rich"},
    "hw/tb": {"emu.golden.vectors", "cocotb", "bench"},
}
FILES = [(place, path) for place in FLOORS for path in
         ([ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py")))]


def imported(path: Path) -> set[str]:
    """Every module a file imports, `from emu import x` being `emu.x` where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                module = ROOT / f"{node.module}.{alias.name}".replace(".", "/")
                is_module = module.is_dir() or module.with_suffix(".py").is_file()
                whole = is_module or node.module == "emu"  # whose lazy names are other floors
                found.add(f"{node.module}.{alias.name}" if whole else node.module)
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}


def test_every_place_is_judged():
    assert {place for place, _ in FILES} == set(FLOORS)
    judged = {path for _, path in FILES} | {ROOT / "emu/__init__.py"}
    judged |= set((ROOT / "emu/cli").glob("*.py"))
    assert set((ROOT / "emu").rglob("*.py")) <= judged


@pytest.mark.parametrize(("place", "path"), FILES, ids=lambda x: str(x).removeprefix(f"{ROOT}/"))
def test_imports_come_from_lower_floors(place, path):
    own = place.removesuffix(".py").replace("/", ".")
    allowed = FLOORS[place]
    bad = {name for name in imported(path)
           if name != own and not name.startswith(f"{own}.")
           and not any(name == ok or name.startswith(f"{ok}.") for ok in allowed)}
    assert not bad


@pytest.mark.parametrize("module", ["emu", "emu.reference", "emu.engine", "emu.bounds",
                                    "emu.golden", "emu.cosim", "emu.cli"])
def test_works_without_torch(module):
    code = f"import sys; sys.modules['torch'] = None; import {module}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_emu_nn_without_torch_names_the_extra():
    code = "import sys; sys.modules['torch'] = None; import emu.nn"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True,
                          text=True)
    assert "emu.nn needs torch; install emu[train]" in done.stderr


def test_import_emu_loads_no_numba():
    code = "import sys, emu; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
