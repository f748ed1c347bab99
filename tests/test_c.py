"""The C library equals the reference: every code of small widths, every mode, both compilers."""

from itertools import product

import pytest
from c_library import COMPILERS, DPI, STRICT, C, Library, c_cast, c_format, c_mac, compile_c
from hypothesis import given
from hypothesis import strategies as st
from strategies import casts, codes, examples, formats, macs

from emu.number import Cast, Format, Overflow, Rounding
from emu.reference import cast, dot_steps, lfsr_draw, overflows, round_shift
from emu.spec import MacSpec

TARGETS = [Format(1), Format(2), Format(4), Format(1, 0, False), Format(3, 0, False)]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """The library by each compiler."""
    folder = tmp_path_factory.mktemp("c")
    return [Library(compiler, folder) for compiler in COMPILERS]


def every_cast():
    """All modes on small formats."""
    for form, rounding, overflow in product(TARGETS, Rounding, Overflow):
        if (form.width, form.signed, overflow) != (1, True, Overflow.SAT_SYM):
            bits = 3 if rounding == Rounding.STOCHASTIC else 0
            yield Cast(form, rounding, overflow, bits)


def test_every_small_code_in_every_mode(libraries):
    compared = 0
    for to in every_cast():
        functions = [library.caster(to) for library in libraries]
        rands = range(8) if to.rand_bits else [None]
        for n, rand in product((-2, 0, 1, 2, 3, 4, 7), rands):
            for x in range(-33, 34):
                rounded = round_shift(x, n, to, rand)
                want = cast(x, n, to, rand), overflows(rounded, to)
                for function in functions:
                    assert function(x, n, rand) == want, (str(to), x, n, rand)
                compared += 1
    assert compared > 150_000


@examples(400)
@given(st.data())
def test_wide_codes_and_any_shift(libraries, data):
    to = data.draw(casts())
    source = data.draw(formats((1, 64), (0, 0)))
    frac = to.format.frac + data.draw(st.one_of(st.integers(-70, 70), st.integers(-500, 500)))
    rand = data.draw(st.integers(0, 2**to.rand_bits - 1)) if to.rand_bits else None
    functions = [library.caster(to) for library in libraries]
    near = [1 << k for k in range(source.width - source.signed)]
    for x in {*source_ends(source), data.draw(codes(source)), *near, *(-k for k in near)}:
        if source.lo <= x <= source.hi:
            want = cast(x, frac, to, rand), overflows(
                round_shift(x, frac - to.format.frac, to, rand), to)
            for function in functions:
                assert function(x, frac, rand) == want, (str(to), x, frac, rand)


def source_ends(form):
    return form.lo, form.lo + 1, -1, 0, 1, form.hi - 1, form.hi


@pytest.mark.parametrize("text", [
    "{a: s2, b: s2, acc: s3 sat}", "{a: s2, b: u2, acc: s4 wrap, lanes: 2}",
    "{a: u2, b: u2, product: u3f-1 ties_even sat, acc: u3f-1 sat_zero, lanes: 3}",
    "{a: s2, b: s2, acc: s3 sat_sym, tile: 2, outer: s3f-1 ties_away sat}",
    "{a: s2, b: u1, acc: s3 sat, tile: 1, outer: s3f-1 to_odd sat_zero, reload: true}",
])
def test_every_dot_product_of_three(libraries, text):
    mac = MacSpec.parse(text)
    form, lanes = mac.result.format, range(3)
    for a in product(range(mac.a.lo, mac.a.hi + 1), repeat=3):
        for b in product(range(mac.b.lo, mac.b.hi + 1), repeat=3):
            bias = (form.lo, 0, form.hi)[sum(a[k] + b[k] for k in lanes) % 3]
            want = expected(mac, list(a), list(b), bias)
            for library in libraries:
                assert library.dot(mac, a, b, bias) == want, (text, a, b, bias)


@examples(120)
@given(st.data())
def test_dot_products_of_any_mac(libraries, data):
    mac = data.draw(macs())
    count = data.draw(st.integers(0, 4 * mac.lanes + 1))
    a, b = [[data.draw(codes(form)) for _ in range(count)] for form in (mac.a, mac.b)]
    bias = data.draw(codes(mac.result.format))
    for library in libraries:
        assert library.dot(mac, a, b, bias) == expected(mac, a, b, bias), str(mac)


def expected(mac, a, b, bias):
    steps = list(dot_steps(a, b, mac, bias))
    return steps[-1][0] if steps else bias, sum(lost for _, lost in steps)


def test_lfsr(libraries):
    for library, bits in product(libraries, range(1, 33)):
        for load in (1, 2, 0x80000000, 0xFFFFFFFF, 0x12345678):
            state = load
            for _ in range(20):
                want = lfsr_draw(state, bits)
                assert library.lfsr(state, bits) == want
                state, _ = want
        assert library.lfsr(0, bits) == library.lfsr(1, bits)


@examples(120)
@given(st.data())
def test_texts_are_read_as_python_reads_them(libraries, data):
    for kind, some, same in ((Format, formats(), c_format), (Cast, casts(), c_cast),
                             (MacSpec, macs(), c_mac)):
        value = data.draw(some)
        text = str(value)
        for library in libraries:
            got = library.parsed(kind, text)
            if kind is not MacSpec or "product" in text:
                assert got == bytes(same(value)), text
            else:  # an exact product, whose narrowest format stands in Python, the widest in C
                want = bytes(same(value))
                assert (got[:24], got[48:]) == (want[:24], want[48:]), text


TEXTS = {
    Format: ["s8", " u8f0 ", "s20f-2", "", "8", "x8", "s", "s8f", "s8f-", "s0", "s65", "s8f513",
             "s8 f4", "s8f4x", "S8", "s99999999999"],
    Cast: ["s8f4", "s8f4 sat", "s8f4 sat ties_even", " s8  wrap\tto_odd ", "s8f4 stochastic16",
           "s1 sat_sym", "u1 sat_sym sat", "s8 sat wrap", "s8 to_neg to_neg", "s8 stochastic",
           "s8 stochastic0", "s8 stochastic33", "s8 stochastic4x", "s8 tie_even", "sat", ""],
    MacSpec: ["{a: s8, b: s8, acc: s20 sat}", "a: s8, b: s8, acc: s20 sat, lanes: 4,",
              " { a : s8 , b:s8,acc:s20f-2, product: s14f-2 } ", "{a: s8, b: s8}", "{}", "",
              "{a: s8, a: s8, b: s8, acc: s20}", "{a: s8, b: s8, acc: s20, lane: 4}",
              "{a: s8, b: s8, acc: s20, lanes: 0}", "{a: s8, b: s8, acc: s20, lanes: x}",
              "{a: s8, b: s8, acc: s20, tile: 4}", "{a: s8, b: s8, acc: s20, reload: true}",
              "{a: s8, b: s8, acc: s20, tile: 3, outer: s20, lanes: 2}", "{a: s8, b}",
              "{a: s8, b: s8, acc: s20, reload: maybe}", "{a: s8f1, b: s8, acc: s20}",
              "{a: s33, b: s8, acc: s20}", "{a: u32, b: u32, acc: s62}", "{a: s8, b: s8, acc: s63}",
              "{a: u32, b: s32, acc: u2}", "{a: s2, b: u1, product: s64f62, acc: u20f62}",
              "{a: s2, b: u1, product: s64f62 sat_sym, acc: u20f62}",
              "{a: s8, b: s8, acc: s20f1}", "{a: s8, b: s8, acc: s20 stochastic4}",
              "{a: s8, b: s8, product: s9f-3 stochastic4, acc: s20f-3}",
              "{a: s8, b: s8, acc: s20, lanes: 2, tile: 2, outer: s20f4, reload: true}",
              "{a: s8, b: s8, acc: s20, lanes: 2, tile: 2, outer: s20f4, reload: false}"],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, t) for kind in TEXTS for t in TEXTS[kind]])
def test_texts_are_refused_where_python_refuses_them(libraries, kind, text):
    try:
        kind.parse(text)
        legal = True
    except ValueError:
        legal = False
    for library in libraries:
        assert isinstance(library.parsed(kind, text), bytes) == legal


@examples(200)
@given(st.data())
def test_macs_are_refused_where_python_refuses_them(libraries, data):
    """Near int64 above all."""
    fracs = st.sampled_from([0, 0, *range(-62, 63)])
    frac = data.draw(fracs)
    fields = {
        "a": data.draw(formats((20, 32), (0, 0))), "b": data.draw(formats((20, 32), (0, 0))),
        "product": data.draw(casts((1, 64), (frac, frac), stochastic=False)),
        "acc": data.draw(casts((50, 62), (frac, frac), stochastic=False)),
        "lanes": data.draw(st.sampled_from([1, 2, 3, 1 << 20])), "block": 1,
    }
    if data.draw(st.booleans()):
        fields |= {"tile": 6, "outer": data.draw(casts((50, 62), (frac - 9, frac + 9), False)),
                   "reload": data.draw(st.booleans())}
    text = "{" + ", ".join(f"{name}: {str(x).lower()}" for name, x in fields.items()) + "}"
    try:
        legal = bool(MacSpec(**fields))
    except ValueError:
        legal = False
    for library in libraries:
        assert isinstance(library.parsed(MacSpec, text), bytes) == legal, text


def test_values_filled_by_hand_are_checked(libraries):
    good = c_mac(MacSpec.parse("{a: s8, b: s8, acc: s20 sat, tile: 4, outer: s20}"))
    for library in libraries:
        assert library.refuses(good) is None
        for name, value in (("lanes", 0), ("tile", -1), ("reload", 2), ("block", 1 << 21)):
            bad = type(good).from_buffer_copy(good)
            setattr(bad, name, value)
            assert library.refuses(bad), name
        for name, value in (("rounding", 12), ("overflow", -1), ("rand_bits", 3)):
            bad = c_cast(Cast.parse("s8 ties_even sat"))
            setattr(bad, name, value)
            assert library.refuses(bad), name
        bad = c_cast(Cast.parse("s8 ties_even sat"))
        bad.format.is_signed = 2
        assert "is_signed" in library.refuses(bad)


@pytest.mark.parametrize("command", [["gcc"], ["clang"], ["g++", "-x", "c++"],
                                     ["clang++", "-x", "c++"]])
def test_library_and_dpi_compile_without_a_warning(command):
    """Verilator gives C files to its C++ compiler."""
    flags = ["-std=c++11" if len(command) > 1 and flag == "-std=c99" else flag for flag in STRICT]
    compile_c(command[0], [*command[1:], *flags, "-fsyntax-only", *sorted(C.glob("*.c")), DPI])
