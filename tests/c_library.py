"""The C library of hw/c, compiled with every warning an error, and called through ctypes."""

import ctypes
import shutil
import subprocess
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64
from pathlib import Path

from emu.cosim import hardware
from emu.number import Cast, Format
from emu.spec import MacSpec

C = hardware() / "c"
DPI = hardware() / "dpi" / "emu_dpi.c"
STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion",
          "-Werror"]
COMPILERS = {  # undefined behaviour ends the program
    "gcc": ["-O1", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"],
    "clang": ["-O2"],
}


def compile_c(compiler: str, arguments: list) -> None:
    assert shutil.which(compiler), f"{compiler} is missing; apt-get install {compiler}"
    done = subprocess.run([compiler, *map(str, arguments)], text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.returncode, done.stdout) == (0, "")


class CFormat(ctypes.Structure):
    _fields_ = [("width", c_int), ("frac", c_int), ("is_signed", c_int)]


class CCast(ctypes.Structure):
    _fields_ = [("format", CFormat), ("rounding", c_int), ("overflow", c_int),
                ("rand_bits", c_int)]


class CMac(ctypes.Structure):
    _fields_ = [("a", CFormat), ("b", CFormat), ("product", CCast), ("acc", CCast),
                ("outer", CCast), ("lanes", c_int), ("block", c_int), ("tile", c_int),
                ("reload", c_int)]


def c_format(form: Format) -> CFormat:
    return CFormat(form.width, form.frac, form.signed)


def c_cast(to: Cast | None) -> CCast:
    if to is None:
        return CCast()
    return CCast(c_format(to.format), to.rounding, to.overflow, to.rand_bits)


def c_mac(mac: MacSpec) -> CMac:
    return CMac(c_format(mac.a), c_format(mac.b), c_cast(mac.product), c_cast(mac.acc),
                c_cast(mac.outer), mac.lanes, mac.block, mac.tile or 0, mac.reload)


class Library:
    """The functions of emu.h on Python ints."""

    def __init__(self, compiler: str, folder: Path):
        path = folder / f"libemu-{compiler}.so"
        compile_c(compiler, [*STRICT, *COMPILERS[compiler], "-fPIC", "-shared", "-o", path,
                             *sorted(C.glob("*.c"))])
        self.lib = ctypes.CDLL(str(path))
        for name, result, *arguments in (
                ("emu_cast", c_int64, c_int64, c_int, POINTER(CCast), c_uint32, POINTER(c_int)),
                ("emu_cast_unsigned", c_int64, c_uint64, c_int, POINTER(CCast), c_uint32,
                 POINTER(c_int)),
                ("emu_dot", c_int64, POINTER(CMac), POINTER(c_int64), POINTER(c_int64), c_size_t,
                 c_int64, POINTER(c_size_t)),
                ("emu_lfsr", c_uint32, POINTER(c_uint32), c_int),
                ("emu_check_cast", c_char_p, POINTER(CCast)),
                ("emu_check_mac", c_char_p, POINTER(CMac)),
                ("emu_parse_format", c_char_p, c_char_p, POINTER(CFormat)),
                ("emu_parse_cast", c_char_p, c_char_p, POINTER(CCast)),
                ("emu_parse_mac", c_char_p, c_char_p, POINTER(CMac))):
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments

    def caster(self, to: Cast):
        """(code, overflowed) of (code, frac, rand), as many times as wanted."""
        target, lost = c_cast(to), c_int()
        signed, unsigned = self.lib.emu_cast, self.lib.emu_cast_unsigned
        mask = 0 if to.format.signed else 2**64 - 1
        at, out = byref(target), byref(lost)

        def cast(x, frac, rand=None):
            function = signed if x < 2**63 else unsigned
            code = function(x, frac, at, rand or 0, out)
            return code & mask if mask else code, bool(lost.value)

        return cast

    def dot(self, mac: MacSpec, a: list[int], b: list[int], bias: int) -> tuple[int, int]:
        """(result, steps that overflowed)."""
        array, lost = c_int64 * len(a), c_size_t()
        code = self.lib.emu_dot(byref(c_mac(mac)), array(*a), array(*b), len(a), bias, byref(lost))
        return code, lost.value

    def lfsr(self, state: int, rand_bits: int) -> tuple[int, int]:
        """(next state, operand)."""
        word = c_uint32(state)
        operand = self.lib.emu_lfsr(byref(word), rand_bits)
        return word.value, operand

    def parsed(self, kind: type, text: str):
        """The bytes of a parsed value, or the complaint."""
        name, value = {Format: ("format", CFormat()), Cast: ("cast", CCast()),
                       MacSpec: ("mac", CMac())}[kind]
        wrong = getattr(self.lib, f"emu_parse_{name}")(text.encode(), byref(value))
        return bytes(value) if wrong is None else wrong.decode()

    def refuses(self, value: CCast | CMac) -> str | None:
        """What a check says against a value."""
        check = self.lib.emu_check_mac if isinstance(value, CMac) else self.lib.emu_check_cast
        wrong = check(byref(value))
        return wrong and wrong.decode()
