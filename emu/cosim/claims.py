"""What must hold of a unit for its Verilog to be what its spec says, at its ports.

`emu.golden.formula` says what a record answers. Of a clocked unit is claimed besides that a clock
without en_i is as if it had not been, and that reset empties it: so all that its ports can ever
show follows, from any state of its registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from emu.cosim.claims_casts import cast_question, flag_question, update_question
from emu.cosim.model import Model, smt_text
from emu.cosim.question import Question, signed_code
from emu.cosim.smt import Number
from emu.golden import formula
from emu.golden.units import Unit, lfsr_records, mac_records
from emu.number import Format
from emu.spec import MacSpec

RUN = {"rst_ni": 1, "en_i": 1}  # an ordinary clock
MAC_OUTPUTS = ["step_o", "valid_o", "acc_o", "ovf_o", "ovf_count_o"]
def questions(unit: Unit, more: Mapping[str, int], sources: Sequence[Path], change: str = ""
              ) -> Iterator[Question]:
    """All that must hold of a unit for it to be what its spec says.

    `more` are parameters beside its own, `change` a command of Yosys on what it has read.
    """
    model = partial(Model, smt_text(unit, more, sources, change), unit.module)
    if unit.latency == 0:
        yield {"quantizer": partial(cast_question, any_rounding=bool(more.get("ROUNDING_PORT"))),
               "flag_quantizer": flag_question, "sgd_update": update_question,
               }[unit.module](unit, model())
        return
    if unit.module == "mac_tiled":  # its registers are not all at its ports: whole transactions
        for steps, bubbles in _transactions(unit.source):
            yield _dot_question(unit, model(), steps, bubbles)
    else:
        yield {"mac": _mac_question, "lfsr": _lfsr_question}[unit.module](unit, model())
    outputs = ["valid_o", "rand_o"] if unit.module == "lfsr" else MAC_OUTPUTS
    yield _still_question(model(), _stall_question(unit, model(), outputs))
    yield _reset_question(unit, model(), outputs)


def _mac_question(unit: Unit, model: Model) -> Question:
    """A record, or a clock without one, and what is at the outputs `latency` clocks later."""
    mac: MacSpec = unit.source
    first = before = model.state(**RUN)
    for _ in range(unit.latency - 1):
        before = model.clock(before, **RUN)
    after = model.clock(before)
    form, lanes = mac.acc.format, mac.lanes
    load, last, valid = (model.port(first, f"{name}_i") for name in ("load", "last", "valid"))
    a_port, b_port = model.port(first, "a_i"), model.port(first, "b_i")
    a, b = _lanes(model, a_port, mac.a, lanes), _lanes(model, b_port, mac.b, lanes)
    bias = model.port(first, "bias_i", form.signed)
    acc = model.port(before, "acc_o", form.signed)
    ovf, count = model.port(before, "ovf_o"), model.port(before, "ovf_count_o")

    base = formula.pick(load == 1, bias, acc)
    code, overflowed = formula.mac_step(mac, a, b, base)
    most = (1 << unit.parameters["COUNT_WIDTH"]) - 1
    counted = formula.pick(load == 1, 0, count)
    counted = counted + formula.pick(overflowed & (counted < most), 1, 0)
    sticky = formula.pick(overflowed | (load == 0) & (ovf == 1), 1, 0)
    new = {name: model.port(after, name) for name in MAC_OUTPUTS}
    mask = (1 << form.width) - 1
    claims = [new["step_o"] == valid, new["valid_o"] == valid * last,
              new["acc_o"] == formula.pick(valid == 1, code & mask, acc & mask),
              new["ovf_o"] == formula.pick(valid == 1, sticky, ovf),
              new["ovf_count_o"] == formula.pick(valid == 1, counted, count)]
    seen = {"load_i": load, "last_i": last, "valid_i": valid, "bias_i": bias, "a_i": a_port,
            "b_i": b_port, "acc": acc, "ovf": ovf, "count": count, **new}
    lo, hi = mac.acc.range

    def tell(bits):
        if bits["step_o"] != 1 or not bits["valid_i"] or bits["ovf"] or bits["count"]:
            return None
        codes = [_codes(bits["a_i"], mac.a, lanes), _codes(bits["b_i"], mac.b, lanes)]
        if bits["load_i"]:
            return (*codes, signed_code(bits["bias_i"], form.width, form.signed)), unit, 0
        padded = [[0] * lanes + some for some in codes]
        return (*padded, signed_code(bits["acc"], form.width, form.signed)), unit, 1

    shows = [valid == 1, last == 1]
    prefer = [[*shows, load == 1, ovf == 0, count == 0, acc == 0],
              [*shows, load == 0, ovf == 0, count == 0, acc >= lo, acc <= hi]]
    return Question("a step", model, claims, [port > 0 for port in new.values()], seen, tell,
                    prefer)


def _transactions(mac: MacSpec) -> list[tuple[int, bool]]:
    """(steps, whether a bubble follows each): two tiles and one step more, and a short one."""
    tile = mac.tile // mac.lanes
    return [(2 * tile + 1, False), (2 * tile + 1, True), (1, False)]


def _dot_question(unit: Unit, model: Model, steps: int, bubbles: bool) -> Question:
    """From any state: a load, so many steps, and what is at the outputs after each."""
    mac: MacSpec = unit.source
    form, lanes, gap = mac.result.format, mac.lanes, 1 + bubbles
    before, fed, states = model.state(), [], []
    for clock in range(steps * gap + unit.latency):
        step, bubble = divmod(clock, gap)
        drive = RUN if step >= steps else RUN | {"valid_i": int(not bubble)}
        if step < steps and not bubble:
            drive = drive | {"load_i": int(step == 0), "last_i": int(step == steps - 1)}
            fed.append(clock)
        states.append(model.clock(states[-1] if states else before, **drive))
    reset = model.port(before, "rst_ni")
    bias = model.port(states[0], "bias_i", form.signed)
    ports = [(model.port(states[clock], "a_i"), model.port(states[clock], "b_i"))
             for clock in fed]
    codes = [(_lanes(model, a, mac.a, lanes), _lanes(model, b, mac.b, lanes)) for a, b in ports]
    claims, seen, mask = [], {"bias_i": bias, "rst_ni": reset}, (1 << form.width) - 1
    sticky, count = False, 0
    for i, (code, overflowed) in enumerate(formula.dot_steps(mac, codes, bias)):
        sticky, count = sticky | overflowed, count + formula.pick(overflowed, 1, 0)
        got = {name: model.port(states[fed[i] + unit.latency], name) for name in MAC_OUTPUTS}
        want = (1, int(i == steps - 1), code & mask, formula.pick(sticky, 1, 0), count)
        claims += [got[name] == value for name, value in zip(MAC_OUTPUTS, want, strict=True)]
        if bubbles and i < steps - 1:
            later = {name: model.port(states[fed[i] + unit.latency + 1], name)
                     for name in MAC_OUTPUTS}
            claims += [later["step_o"] == 0, later["valid_o"] == 0, later["acc_o"] == got["acc_o"],
                       later["ovf_o"] == got["ovf_o"]]
        seen |= {f"a_i {i}": ports[i][0], f"b_i {i}": ports[i][1]}
        seen |= {f"{name} {i}": port for name, port in got.items()}

    def tell(bits):
        a, b = ([code for i in range(steps) for code in _codes(bits[f"{name}_i {i}"], f, lanes)]
                for name, f in (("a", mac.a), ("b", mac.b)))
        case = a, b, signed_code(bits["bias_i"], form.width, form.signed)
        for i, record in enumerate(mac_records(mac, *case)):
            got = {name: bits[f"{name} {i}"] for name in MAC_OUTPUTS}
            if (1, *record[5:]) != tuple(got.values()):
                bits |= got
                return (case, unit, i) if got["step_o"] and not bits["rst_ni"] else None
        return None

    covers = [model.port(states[fed[-1] + unit.latency], name) > 0
              for name in MAC_OUTPUTS]
    what = f"a dot product of {steps} steps{' with bubbles' * bubbles}"
    return Question(what, model, claims, covers, seen, tell, prefer=[[reset == 0]])


def _codes(bits: int, form: Format, lanes: int) -> list[int]:
    """The codes packed in an operand port, lane 0 lowest."""
    return [signed_code(bits >> i * form.width & (1 << form.width) - 1, form.width, form.signed)
            for i in range(lanes)]


def _lanes(model: Model, port: Number, form: Format, lanes: int) -> list[Number]:
    """The codes packed in an operand port, lane 0 lowest."""
    width = form.width
    return [model.script.number(f"((_ extract {i * width + width - 1} {i * width}) {port.name})",
                                width, form.signed) for i in range(lanes)]


def _clocks(unit: Unit) -> int:
    """After how many clocks the outputs have told of every register."""
    return -(-32 // unit.source) + 1 if unit.module == "lfsr" else unit.latency


def _lfsr_question(unit: Unit, model: Model) -> Question:
    """A load and then draws, until every bit of the state has been seen after one."""
    bits, state = unit.source, model.state(**RUN, load_i=1)
    load = model.port(state, "state_i")
    claims, seen = [], {"state_i": load}
    lfsr = formula.pick(load == 0, 1, load)
    for draw in range(_clocks(unit)):
        lfsr, rand = formula.lfsr_draw(lfsr, bits)
        state = model.clock(state, **RUN, load_i=0)
        claims += [model.port(state, "rand_o") == rand, model.port(state, "valid_o") == 1]
        seen[f"rand_o {draw}"] = model.port(state, "rand_o")

    def tell(values):
        records = list(lfsr_records(bits, [(values["state_i"], draw + 1)]))
        wrong = next((i for i in range(draw + 1) if records[i][2] != values[f"rand_o {i}"]), None)
        if wrong is None:  # the draws are right, and not said to be there
            return None
        values["rand_o"] = values[f"rand_o {wrong}"]
        return (values["state_i"], draw + 1), unit, wrong

    return Question("draws after a load", model, claims,
                    [load > 0, model.port(state, "rand_o") > 0], seen, tell)


def _still_question(model: Model, stalls: Question) -> Question:
    """A clock without en_i leaves every register, seen or not, as it is."""
    state = model.state(rst_ni=1, en_i=0)
    return Question("registers hold", model, [model.holds(state)], [], {}, lambda bits: None,
                    implies=stalls)


def _stall_question(unit: Unit, model: Model, outputs: list[str]) -> Question:
    """A clock without en_i leaves the outputs, and all that follows, as without that clock."""
    origin = model.state(**RUN)
    stalled, plain = model.clock(origin, rst_ni=1, en_i=0), model.clock(origin, **RUN)
    late = model.clock(stalled, inputs=plain)
    same = lambda name: model.port(late, name) == model.port(plain, name)  # noqa: E731
    claims = [same(name) for name in outputs]
    if unit.module == "lfsr":  # whose valid_o follows en_i; without it rand_o says nothing
        claims = [model.port(late, "valid_o") == 0]
    for _ in range(_clocks(unit)):
        plain = model.clock(plain, **RUN)
        late = model.clock(late, inputs=plain)
        claims += [same(name) for name in outputs]
    covers = [model.port(late, name) > 0 for name in outputs]
    return Question("a clock without en_i changes nothing", model, claims, covers, {},
                    lambda bits: None)


def _reset_question(unit: Unit, model: Model, outputs: list[str]) -> Question:
    """A clock in reset leaves zeros and nothing under way; an LFSR draws from 1 next."""
    before = model.state(rst_ni=0)
    state = model.clock(before, **RUN, **({"load_i": 0} if unit.module == "lfsr" else {}))
    covers = [model.port(before, name) > 0 for name in outputs]
    claims = [model.port(state, name) == 0 for name in outputs]
    if unit.module == "lfsr":
        claims, lfsr = [model.port(state, "valid_o") == 0], 1
        for _ in range(_clocks(unit)):
            lfsr, rand = formula.lfsr_draw(lfsr, unit.source)
            state = model.clock(state, **RUN, load_i=0)
            claims.append(model.port(state, "rand_o") == rand)
    else:
        for _ in range(unit.latency - 1):
            state = model.clock(state, **RUN)
            claims += [model.port(state, name) == 0 for name in outputs]
    return Question("reset leaves zeros and nothing under way", model, claims, covers, {},
                    lambda bits: None)
