"""Hypothesis strategies for the values of `emu.number` and `emu.spec`; every run draws the same."""

from hypothesis import reject, settings
from hypothesis import strategies as st

from emu.affine import Rescale
from emu.number import Cast, Format, Overflow, Rounding
from emu.rule import Rule
from emu.spec import LayerSpec, MacSpec
from emu.update import BufferSpec, UpdateSpec

STOCHASTIC = Rounding.STOCHASTIC
DETERMINISTIC = [rounding for rounding in Rounding if rounding != STOCHASTIC]


def examples(count):
    """The settings of a property test: `count` examples, the same ones in every run."""
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


def or_reject(build, **fields):
    """A value, or no example where the value refuses its fields."""
    try:
        return build(**fields)
    except ValueError:
        reject()


@st.composite
def formats(draw, widths=(1, 64), fracs=(-512, 512)):
    """Any format."""
    return Format(draw(st.integers(*widths)), draw(st.integers(*fracs)), draw(st.booleans()))


@st.composite
def modes(draw, signed, width, stochastic=True):
    """A rounding, an overflow and random bits that a cast of this width takes."""
    overflows = [o for o in Overflow if o != Overflow.SAT_SYM or not signed or width > 1]
    rounding = draw(st.sampled_from(list(Rounding) if stochastic else DETERMINISTIC))
    bits = draw(st.integers(1, 32)) if rounding == STOCHASTIC else 0
    return rounding, draw(st.sampled_from(overflows)), bits


@st.composite
def casts(draw, widths=(1, 64), fracs=(-512, 512), stochastic=True):
    """Any cast."""
    form = draw(formats(widths, fracs))
    return Cast(form, *draw(modes(form.signed, form.width, stochastic)))


@st.composite
def rules(draw):
    """Any rule."""
    form = draw(formats())
    scale = draw(st.sampled_from(["max", "shift", "3sigma", "percentile99.9", "percentile5",
                                  "sweep"]))
    scale = f"auto:{scale}{draw(st.sampled_from(['', '@previous', '=f14', '@previous=f-3']))}"
    kind = draw(st.sampled_from(["", "", "", "flag", "closed"]))
    return or_reject(Rule, width=form.width, signed=form.signed,
                     scale=draw(st.sampled_from([scale, "f3=f5"])), kind=kind,
                     **dict(zip(("rounding", "overflow", "rand_bits"),
                                draw(modes(form.signed, form.width)), strict=True)))


@st.composite
def macs(draw, operands=(1, 32), products=(1, 64), accs=(2, 62), fracs=(-62, 62), lanes=16,
         a=None, b=None):
    """Any MacSpec that is not refused."""
    a = draw(formats(operands, (0, 0))) if a is None else a
    b = draw(formats(operands, (0, 0))) if b is None else b
    frac = draw(st.sampled_from([0, draw(st.integers(*fracs))]))
    product = draw(casts(products, (frac, frac), stochastic=False))
    levels = {"lanes": draw(st.integers(1, lanes)), "block": draw(st.integers(1, 64))}
    if draw(st.booleans()):
        levels["tile"] = levels["lanes"] * draw(st.integers(1, 4))
        outer_fracs = (frac - 8, min(frac + 8, 512))
        levels["outer"] = draw(casts(accs, outer_fracs, stochastic=False))
        levels["reload"] = draw(st.booleans()) and levels["outer"].format.frac <= frac
    if frac == 0 and draw(st.booleans()):
        product = None
    acc = draw(casts(accs, (frac, frac), stochastic=False))
    return or_reject(MacSpec, a=a, b=b, product=product, acc=acc, **levels)


@st.composite
def updates(draw, bits=62, stochastic=True):
    """Any UpdateSpec that is not refused; its exact sums have up to about `bits` bits."""
    momentum = draw(casts((1, min(32, bits - 3)), (-64, 64), stochastic))
    casts_of = {"momentum": momentum}
    for factor, addend in (("mu", "grad"), ("lr", "weight")):
        width = draw(st.integers(1, min(31, bits - 2 - momentum.format.width)))
        casts_of[factor] = draw(casts((width, width), (-64, 64), stochastic=False))
        frac = casts_of[factor].format.frac + momentum.format.frac
        shift = draw(st.integers(-8, bits - 1 - width - momentum.format.width))
        casts_of[addend] = draw(casts((1, bits - 1 - max(-shift, 0)), (frac + shift,) * 2,
                                      stochastic))
    return or_reject(UpdateSpec, **casts_of)


@st.composite
def rescales(draw, channels=4, shifts=(0, 62)):
    """Any Rescale; its multipliers have as many bits as its shifts, more or less."""
    to = draw(casts((1, 32), (0, 0), stochastic=False))
    count = draw(st.integers(1, channels))
    shift = draw(st.lists(st.integers(*shifts), min_size=count, max_size=count))
    multiplier = [draw(st.integers(0, 2 ** draw(st.integers(0, 31)) - 1)) for _ in shift]
    clamp = st.lists(st.integers(*to.range), min_size=2, max_size=2).map(sorted)
    return Rescale(multiplier, shift, to, draw(st.booleans()),
                   draw(st.sampled_from([0, draw(st.integers(-(2**31), 2**31 - 1))])),
                   draw(st.integers(to.format.lo, to.format.hi)), draw(st.none() | clamp))


@st.composite
def buffers(draw, bits=61):
    """Any (BufferSpec, shift) that is not refused."""
    weight, grad = draw(casts((1, bits), (-40, 40))), draw(casts((1, bits), (-40, 40)))
    width = draw(st.integers(2, bits))
    frac = grad.format.frac + draw(st.integers(0, bits - grad.format.width))
    to = Cast(Format(width, frac), overflow=draw(st.sampled_from(Overflow)))
    spec = or_reject(BufferSpec, weight=weight, buffer=to, grad=grad)
    return spec, draw(st.integers(1, width - 1)) + weight.format.frac - frac


@st.composite
def layers(draw):
    """Any LayerSpec, of casts, rules and passes that agree with them."""
    fields = {name: draw(st.none() | casts((1, 16)) | rules())
              for name in ("x", "w", "b", "y", "error", "grad_w", "grad_b")}
    one = Format(1, 0, signed=False)
    for name, sides in {"forward": "xw", "grad_input": "ew", "grad_weight": "xe",
                        "grad_bias": "e1"}.items():
        if draw(st.booleans()):
            operands = {}
            for side, tensor in zip("ab", sides, strict=True):
                value = fields[{"e": "error"}.get(tensor, tensor)] if tensor != "1" else one
                form = getattr(value, "operand", getattr(value, "format", value))
                operands[side] = form and Format(form.width, 0, form.signed)
            fields[name] = draw(macs((1, 16), lanes=4, **operands))
    if draw(st.booleans()):
        fields["update"] = draw(updates(30))
    return or_reject(LayerSpec, **fields)


@st.composite
def codes(draw, form):
    """A code of a format, its bounds often."""
    edges = [form.lo, form.hi, 0, max(form.lo, -1), min(form.hi, 1)]
    return draw(st.sampled_from(edges) | st.integers(form.lo, form.hi))
