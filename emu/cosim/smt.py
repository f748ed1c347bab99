"""Exact integers and conditions as terms of SMT-LIB, for `emu.golden.formula` to run on.

A number knows its bounds; every operation is done in as many bits as hold operands and result,
so that a term means the same as the Python expression and no width can be chosen wrongly. What
the bounds alone decide becomes a plain int or bool.
"""

from __future__ import annotations

from emu.golden.formula import pick


class Script:
    """The definitions of the terms built so far."""

    def __init__(self):
        self.lines: list[str] = []
        self.names: dict[tuple[str, str], str] = {}

    def define(self, sort: str, expression: str) -> str:
        """Name an expression, so that it is written once however often it is used."""
        if (sort, expression) not in self.names:
            name = self.names[sort, expression] = f"t{len(self.lines)}"
            self.lines.append(f"(define-fun {name} () {sort} {expression})")
        return self.names[sort, expression]

    def number(self, expression: str, width: int, signed: bool) -> Number:
        """The number that `width` bits hold."""
        lo = -(1 << width - 1) if signed else 0
        return Number(self, lo, lo + (1 << width) - 1,
                      self.define(f"(_ BitVec {width})", expression))

    def truth(self, expression: str) -> Truth:
        """A condition."""
        return Truth(self, self.define("Bool", expression))

    def free(self) -> Truth:
        """A condition that may hold or not."""
        name = f"t{len(self.lines)}"
        self.lines.append(f"(declare-const {name} Bool)")
        return Truth(self, name)


class Number:
    """An integer from lo to hi, in the fewest bits: unsigned where lo >= 0, else signed."""

    __hash__ = None

    def __init__(self, script: Script, lo: int, hi: int, name: str):
        self.script, self.lo, self.hi, self.name = script, lo, hi, name

    def __add__(self, y): return _operate("bvadd", self, y, self.lo + _lo(y), self.hi + _hi(y))
    def __sub__(self, y): return _operate("bvsub", self, y, self.lo - _hi(y), self.hi - _lo(y))
    def __radd__(self, x): return self + x
    def __rsub__(self, x): return _operate("bvsub", x, self, x - self.hi, x - self.lo)

    def __mul__(self, y):
        corners = [p * q for p in (self.lo, self.hi) for q in (_lo(y), _hi(y))]
        return _operate("bvmul", self, y, min(corners), max(corners))

    def __lshift__(self, n): return _shift_left(self, n)
    def __rlshift__(self, x): return _shift_left(x, self)

    def __rshift__(self, n):
        corners = [x >> k for x in (self.lo, self.hi) for k in (_lo(n), _hi(n))]
        return _operate("bvashr" if self.lo < 0 else "bvlshr", self, n, min(corners), max(corners))

    def __and__(self, mask):
        assert _lo(mask) >= 0, "the mask of a negative number has no end"
        return _operate("bvand", self, mask, 0, min(_hi(mask), self.hi) if self.lo >= 0
                        else _hi(mask))

    def __xor__(self, y):
        assert self.lo >= 0 and _lo(y) >= 0
        return _operate("bvxor", self, y, 0, (1 << max(self.hi, _hi(y)).bit_length()) - 1)

    def __rmul__(self, x): return self * x
    def __rand__(self, x): return self & x
    def __rxor__(self, x): return self ^ x

    def __lt__(self, y): return _compare("lt", self, y, self.hi < _lo(y), self.lo >= _hi(y))
    def __le__(self, y): return _compare("le", self, y, self.hi <= _lo(y), self.lo > _hi(y))
    def __gt__(self, y): return _compare("gt", self, y, self.lo > _hi(y), self.hi <= _lo(y))
    def __ge__(self, y): return _compare("ge", self, y, self.lo >= _hi(y), self.hi < _lo(y))

    def __eq__(self, y):
        return _compare("=", self, y, False, self.hi < _lo(y) or self.lo > _hi(y))

    def total(self, numbers: list):
        """The sum of all, each extended before it is added."""
        lo, hi = sum(map(_lo, numbers)), sum(map(_hi, numbers))
        width = _width(min(lo, *map(_lo, numbers)), max(hi, *map(_hi, numbers)))
        parts = " ".join(_at(x, width) for x in numbers)
        name = self.script.define(f"(_ BitVec {width})", f"(bvadd {parts})")
        return _cut(self.script, name, width, lo, hi)

    def least(self, y):
        """The lesser of two numbers."""
        return _narrow(pick(self < y, self, y), min(self.lo, _lo(y)), min(self.hi, _hi(y)))


class Truth:
    """A condition, or a wire, which is one that is high; Python must not branch on it."""

    __hash__ = None

    def __init__(self, script: Script, name: str):
        self.script, self.name = script, name

    def __bool__(self):
        raise TypeError("a formula branches on a solver's condition; use pick")

    def __and__(self, other):
        if isinstance(other, int):
            return self if other else other
        return self.script.truth(f"(and {self.name} {other.name})")

    def __or__(self, other):
        if isinstance(other, int):
            return other if other else self
        return self.script.truth(f"(or {self.name} {other.name})")

    def __xor__(self, other):
        if isinstance(other, int):
            return self.script.truth(f"(not {self.name})") if other else self
        return self.script.truth(f"(xor {self.name} {other.name})") \
            if self.name != other.name else False

    def __rand__(self, other): return self & other
    def __ror__(self, other): return self | other
    def __rxor__(self, other): return self ^ other

    def pick(self, yes, no):
        """`yes` where this holds, else `no`, both numbers."""
        lo, hi = min(_lo(yes), _lo(no)), max(_hi(yes), _hi(no))
        if lo == hi:
            return lo
        width = _width(lo, hi)
        return Number(self.script, lo, hi, self.script.define(
            f"(_ BitVec {width})", f"(ite {self.name} {_at(yes, width)} {_at(no, width)})"))


def _lo(x) -> int:
    return x if isinstance(x, int) else x.lo


def _hi(x) -> int:
    return x if isinstance(x, int) else x.hi


def _width(lo: int, hi: int) -> int:
    """Bits that hold every number from lo to hi."""
    if lo >= 0:
        return max(1, hi.bit_length())
    return 1 + max(hi.bit_length() if hi > 0 else 0, (-lo - 1).bit_length())


def _at(x, width: int) -> str:
    """The number in this many bits, of which it needs no more."""
    if isinstance(x, int):
        return f"(_ bv{x % (1 << width)} {width})"
    more = width - _width(x.lo, x.hi)
    extend = "sign_extend" if x.lo < 0 else "zero_extend"
    return f"((_ {extend} {more}) {x.name})" if more else x.name


def _operate(operator: str, x, y, lo: int, hi: int):
    """The operator, in bits enough for operands and result; a result of one value is an int."""
    if lo == hi:
        return lo
    script = x.script if isinstance(x, Number) else y.script
    width = _width(min(_lo(x), _lo(y), lo), max(_hi(x), _hi(y), hi))
    name = script.define(f"(_ BitVec {width})", f"({operator} {_at(x, width)} {_at(y, width)})")
    return _cut(script, name, width, lo, hi)


def _cut(script: Script, name: str, width: int, lo: int, hi: int) -> Number:
    kept = _width(lo, hi)
    if kept < width:
        name = script.define(f"(_ BitVec {kept})", f"((_ extract {kept - 1} 0) {name})")
    return Number(script, lo, hi, name)


def _narrow(x, lo: int, hi: int):
    """x with tighter bounds, which it is known to keep."""
    if isinstance(x, int) or lo == hi:
        return lo if lo == hi else x
    return _cut(x.script, x.name, _width(x.lo, x.hi), lo, hi)


def _shift_left(x, n):
    assert _lo(n) >= 0
    corners = [v << k for v in (_lo(x), _hi(x)) for k in (_lo(n), _hi(n))]
    return _operate("bvshl", x, n, min(corners), max(corners))


def _compare(operator: str, x: Number, y, always: bool, never: bool):
    if always or never:
        return always
    lo, hi = min(x.lo, _lo(y)), max(x.hi, _hi(y))
    if operator != "=":
        operator = ("bvs" if lo < 0 else "bvu") + operator
    width = _width(lo, hi)
    return x.script.truth(f"({operator} {_at(x, width)} {_at(y, width)})")
