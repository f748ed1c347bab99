"""Short vectors in LLVM IR, so that a kernel can keep a tile of accumulators in registers.

`Vector` writes instructions on LLVM's own vector type, which every target lowers to what it has;
only the methods that name an x86 instruction need that CPU (`has_vnni`).
"""

import functools

from llvmlite import ir
from numba import config
from numba.core import cgutils, codegen

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
DOUBLE = ir.DoubleType()


@functools.cache
def features() -> frozenset:
    """What the CPU that numba compiles for has, by LLVM's names: this one, or one it was told."""
    told = config.CPU_FEATURES
    found = codegen.get_host_cpu_features() if told is None else told
    return frozenset(name[1:] for name in found.split(",") if name.startswith("+"))


def has_vnni() -> bool:
    """Whether this CPU multiplies and adds 8 and 16-bit operands in one 512-bit instruction.

    It then also has those of AVX-512 that a CPU without may lack (DQ).
    """
    return {"avx512vnni", "avx512bw", "avx512dq"} <= features()


def vector_bits() -> int:
    """The width of the registers that tiles are cut to."""
    return 512 if "avx512bw" in features() else 256


class Vector:
    """Writes instructions on vectors of `n` elements of the LLVM type `elem`."""

    def __init__(self, builder, elem, n):
        self.builder, self.elem, self.n = builder, elem, n
        self.type = ir.VectorType(elem, n)
        self.is_float = isinstance(elem, ir.DoubleType)

    def pointer(self, base, index, stored):
        """The address of `n` elements of the stored type from `base[index]` on."""
        address = self.builder.gep(self.builder.bitcast(base, stored.as_pointer()), [index])
        return self.builder.bitcast(address, ir.VectorType(stored, self.n).as_pointer())

    def load(self, base, index, stored):
        """Elements of a signed stored type, widened to this vector's."""
        found = self.builder.load(self.pointer(base, index, stored), align=1)
        if stored == self.elem:
            return found
        if self.is_float:
            return self.builder.sitofp(found, self.type)
        return self.builder.sext(found, self.type)

    def store(self, value, base, index):
        self.builder.store(value, self.pointer(base, index, self.elem), align=1)

    def splat(self, scalar):
        """Every element the same."""
        first = self.builder.insert_element(ir.Constant(self.type, ir.Undefined), scalar,
                                            ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.n), [0] * self.n)
        return self.builder.shuffle_vector(first, ir.Constant(self.type, ir.Undefined), zeros)

    def constant(self, value):
        return ir.Constant(self.type, [value] * self.n)

    def call(self, name, *values):
        """An LLVM intrinsic on values of this vector's type."""
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(self.type, [v.type for v in values]), name)
        return self.builder.call(function, values)

    def _suffix(self):
        return f"v{self.n}{'f' if self.is_float else 'i'}{64 if self.is_float else self.elem.width}"

    def least(self, x, y):
        if self.is_float:
            return self.builder.select(self.builder.fcmp_ordered("<", x, y), x, y)
        return self.call(f"llvm.smin.{self._suffix()}", x, y)

    def greatest(self, x, y):
        if self.is_float:
            return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)
        return self.call(f"llvm.smax.{self._suffix()}", x, y)

    def add_saturating(self, x, y):
        """x + y held at the rails of the element type."""
        return self.call(f"llvm.sadd.sat.{self._suffix()}", x, y)

    def multiply_add(self, x, y, z):
        """x * y + z; of floats with one rounding, of integers modulo their width."""
        if self.is_float:
            return self.call(f"llvm.fma.{self._suffix()}", x, y, z)
        return self.builder.add(self.builder.mul(x, y), z)

    def vpdpwssd(self, z, x, y):
        """z + the sum of two 16-bit products in each 32-bit element, modulo 2^32."""
        return self.call("llvm.x86.avx512.vpdpwssd.512", z, x, y)

    def vpdpwssds(self, z, x, y):
        """The same, held at the rails of int32."""
        return self.call("llvm.x86.avx512.vpdpwssds.512", z, x, y)

    def vpdpbusd(self, z, x, y):
        """z + the sum of four products of u8 (x) and s8 (y), modulo 2^32."""
        return self.call("llvm.x86.avx512.vpdpbusd.512", z, x, y)

    def clamp(self, x, most):
        """x, a vector of 8 doubles, with its magnitude held at `most`, in one instruction."""
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(
            self.type, [self.type, self.type, I32, self.type, I8, I32]),
            "llvm.x86.avx512.mask.range.pd.512")
        # 2: the smaller magnitude under the sign of x; then every element, no change of rounding.
        return self.builder.call(function, [x, most, I32(2), x, I8(-1), I32(4)])

    def any(self, relation, x, y):
        """Whether any element of x stands in the relation to that of y."""
        found = self.builder.bitcast(self.builder.icmp_signed(relation, x, y), ir.IntType(self.n))
        return self.builder.icmp_unsigned("!=", found, ir.Constant(found.type, 0))
