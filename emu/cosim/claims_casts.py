"""What must hold of the units without a clock: each answers a record by itself."""

from __future__ import annotations

from dataclasses import replace

from emu.cosim.model import Model
from emu.cosim.question import Question, signed_code
from emu.golden import formula
from emu.golden.flagged import FlagQuantizerSpec
from emu.golden.units import QuantizerSpec, Unit, quantizer_unit
from emu.golden.update import OPERANDS
from emu.number import Cast, Rounding
from emu.update import UpdateSpec


def cast_question(unit: Unit, model: Model, any_rounding: bool) -> Question:
    spec: QuantizerSpec = unit.source
    to, state = spec.cast, model.state()
    value = model.port(state, "value_i", spec.source.signed)
    shift, rand = model.port(state, "shift_i"), model.port(state, "rand_i")
    rounding = model.port(state, "rounding_i") if any_rounding else None
    code, overflowed = formula.cast(value << spec.pre_shift, formula.least(shift, spec.max_shift),
                                    to, rand, rounding)
    seen = {"value_i": value, "shift_i": shift, "rand_i": rand,
            "code_o": model.port(state, "code_o"), "ovf_o": model.port(state, "ovf_o")}
    claims = [seen["code_o"] == (code & (1 << to.format.width) - 1),
              seen["ovf_o"] == formula.pick(overflowed, 1, 0)]
    if any_rounding:
        seen["rounding_i"] = rounding

    def tell(bits):
        told = unit
        if any_rounding:
            mode = Rounding(bits["rounding_i"] if bits["rounding_i"] <= 11 else 0)
            rand_bits = to.rand_bits if mode == Rounding.STOCHASTIC else 0
            told = quantizer_unit(replace(spec, cast=Cast(to.format, mode, to.overflow,
                                                          rand_bits)))
        value = signed_code(bits["value_i"], spec.source.width, spec.source.signed)
        rand = bits["rand_i"] if told.source.cast.rand_bits else bits["rand_i"] & 1
        return (value, bits["shift_i"], rand), told, 0

    return Question("a cast", model, claims, [seen["code_o"] + seen["ovf_o"] > 0],
                    seen, tell)


def flag_question(unit: Unit, model: Model) -> Question:
    """A flagged cast: its bits, what they stand for, and whether it overflowed."""
    spec: FlagQuantizerSpec = unit.source
    to, coarse, state = spec.cast, spec.coarse, model.state()
    value = model.port(state, "value_i", spec.source.signed)
    shift, rand = model.port(state, "shift_i"), model.port(state, "rand_i")
    code, overflowed = formula.flag_cast(value << unit.parameters["PRE_SHIFT"],
                                         formula.least(shift, coarse.max_shift), to, rand)
    seen = {"value_i": value, "shift_i": shift, "rand_i": rand,
            **{name: model.port(state, name) for name in ("code_o", "operand_o", "ovf_o")}}
    claims = [seen["code_o"] == formula.flag_pack(code, to),
              seen["operand_o"] == (code & (1 << to.format.width) - 1),
              seen["ovf_o"] == formula.pick(overflowed, 1, 0)]

    def tell(bits):
        value = signed_code(bits["value_i"], spec.source.width, spec.source.signed)
        return (value, bits["shift_i"], bits["rand_i"] & (1 << to.rand_bits) - 1), unit, 0

    return Question("a flagged cast", model, claims, [seen["code_o"] + seen["operand_o"] > 0],
                    seen, tell)


def update_question(unit: Unit, model: Model) -> Question:
    """An update of one weight."""
    spec: UpdateSpec = unit.source
    state = model.state()
    forms = {name: getattr(spec, name).format for name in OPERANDS}
    codes = {name: model.port(state, f"{name}_i", form.signed) for name, form in forms.items()}
    rands = {f"rand_{name}": model.port(state, f"rand_{name}_i") for name in ("momentum", "weight")}
    kept = model.port(state, "momentum_o", forms["momentum"].signed)  # claimed of it besides
    new = formula.sgd(spec, codes, kept, **rands)
    seen = {f"{name}_i": port for name, port in (codes | rands).items()}
    claims = []
    for name, (code, overflowed) in new.items():
        seen |= {f"{name}_o": model.port(state, f"{name}_o"),
                 f"ovf_{name}_o": model.port(state, f"ovf_{name}_o")}
        claims += [seen[f"{name}_o"] == (code & (1 << forms[name].width) - 1),
                   seen[f"ovf_{name}_o"] == formula.pick(overflowed, 1, 0)]

    def tell(bits):
        operands = [signed_code(bits[f"{name}_i"], form.width, form.signed)
                    for name, form in forms.items()]
        drawn = [bits[f"rand_{name}_i"] & (1 << getattr(spec, name).rand_bits) - 1
                 for name in ("momentum", "weight")]
        return (*operands, *drawn), unit, 0

    return Question("an update", model, claims, [seen["weight_o"] + seen["momentum_o"] > 0], seen,
                    tell)
