"""What one piece of hardware computes: a MAC, or a whole layer.

Values only, as in `value.py`: frozen, checked once, one text form each. A spec is refused when
any intermediate of the hardware could leave int64, by the spec alone, whatever the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

from emu.kind import AnyCast, ClosedCast, FlagCast
from emu.norm_casts import NormCasts
from emu.number import ACC_WIDTHS, MAX_OPERAND, Cast, Format, Rounding, check_cast
from emu.rule import Rule, parse_cast
from emu.update import BufferSpec, UpdateSpec, parse_update
from emu.value import Text, check_keys, hashed_once, mapping_text, parse_mapping, whole

INT64 = (-(1 << 63), (1 << 63) - 1)
MAX_STEP = 1 << 20  # lanes, block and tile


@hashed_once
@dataclass(frozen=True, repr=False)
class MacSpec(Text):
    """The multiply-accumulate hardware, in integer units (frac 0 operands, free of tensor scales).

        acc = bias
        for each step of `lanes` consecutive products:
            acc = fit(acc + sum of product-cast(a_k * b_k), acc)

    `product` defaults to exact. With `tile` and `outer`, every `tile` products (and at the end)
    `outer = fit(outer + cast(acc, outer))` and acc restarts at 0; with `reload` instead
    `outer = cast(acc, outer)` and acc continues from outer, aligned back and fitted.
    `block` is the channel block of a convolution's order of k.

    Equal hardware is equal: a product cast that the floor and ceiling of every product fit is
    brought to its narrowest form. Raises ValueError for a spec that no int64 datapath holds.

    >>> str(MacSpec.parse("{a: s8, b: s8, acc: s20 sat, lanes: 4}"))
    '{a: s8f0, b: s8f0, acc: s20f0 to_neg sat, lanes: 4}'
    """

    a: Format
    b: Format
    acc: Cast
    product: Cast | None = None
    lanes: int = 1
    block: int = 1
    tile: int | None = None
    outer: Cast | None = None
    reload: bool = False

    def __post_init__(self):
        put = lambda name, x: object.__setattr__(self, name, x)  # noqa: E731
        for name in ("a", "b"):
            _check_operand(name, getattr(self, name))
        for name in ("lanes", "block"):
            put(name, whole(getattr(self, name), 1, MAX_STEP, name))
        put("acc", _accumulator("acc", self.acc))
        product, bounds = _normal_product(self.product, _product_bounds(self.a, self.b))
        put("product", product)
        if product.format.frac != self.acc.format.frac:
            raise ValueError(
                f"product {product.format} and acc {self.acc.format}: their frac differs "
                f"({product.format.frac} and {self.acc.format.frac}); products are added as they "
                f"are, so write both with the same frac")
        _fits(self, "a step's sum", self.lanes * bounds[0], self.lanes * bounds[1])
        low, high = self.acc.format.lo, self.acc.format.hi
        _fits(self, "acc + sum", low + self.lanes * bounds[0], high + self.lanes * bounds[1])
        put("reload", bool(self.reload))
        if (self.tile is None) != (self.outer is None):
            raise ValueError(f"tile {self.tile!r} with outer {self.outer!r}: two-level "
                             "accumulation needs both; give the outer accumulator a cast")
        if self.tile is not None:
            self._check_outer(put)
        elif self.reload:
            raise ValueError("reload without tile: there is nothing to spill; give tile and outer")

    def _check_outer(self, put):
        put("tile", whole(self.tile, 1, MAX_STEP, "tile"))
        check_cast("outer", self.outer)
        if self.tile % self.lanes:
            raise ValueError(f"tile {self.tile}: needs a multiple of lanes {self.lanes}, "
                             "as a tile ends at the end of a step")
        if self.outer.rounding == Rounding.STOCHASTIC:
            raise ValueError(f"outer {self.outer}: a MAC has no random operand; "
                             "use a deterministic rounding")
        shift = self.acc.format.frac - self.outer.format.frac
        outer = _accumulator("outer", self.outer, keep_rounding=shift > 0)
        put("outer", outer)
        if self.reload and shift < 0:
            raise ValueError(f"reload from outer {outer.format} into acc {self.acc.format}: bits "
                             "would be lost without a cast; give outer at most acc's frac")
        spilled = [x << -shift if shift < 0 else (x >> shift) + 1
                   for x in (self.acc.format.lo, self.acc.format.hi)]
        _fits(self, "outer + acc", outer.format.lo + spilled[0] - 1, outer.format.hi + spilled[1])
        if self.reload:
            _fits(self, "outer aligned to acc", outer.format.lo << shift, outer.format.hi << shift)

    @classmethod
    def parse(cls, text: str | Mapping | MacSpec) -> MacSpec:
        """A mapping of texts, or its one-line form `{a: s8, b: s8, acc: s20 sat}`."""
        if isinstance(text, cls):
            return text
        items = parse_mapping(text) if isinstance(text, str) else text
        check_keys(items, [f.name for f in fields(cls)], "MacSpec")
        missing = [key for key in ("a", "b", "acc") if key not in items]
        if missing:
            raise ValueError(f"MacSpec {text}: {missing[0]!r} is missing; a MAC needs a, b and acc")
        return cls(**{key: _MAC_FIELDS[key](value) for key, value in items.items()})

    def __str__(self) -> str:
        shown = {"a": self.a, "b": self.b}
        if not self.exact_product or self.product.format.frac:
            shown["product"] = self.product
        shown["acc"] = self.acc
        shown |= {k: getattr(self, k) for k in ("lanes", "block") if getattr(self, k) != 1}
        if self.tile is not None:
            shown |= {"tile": self.tile, "outer": self.outer}
        if self.reload:
            shown["reload"] = "true"
        return "{" + ", ".join(f"{key}: {value}" for key, value in shown.items()) + "}"

    @cached_property
    def exact_product(self) -> bool:
        """Whether no product is rounded or fitted."""
        low, high = _product_bounds(self.a, self.b)
        frac, (lo, hi) = self.product.format.frac, self.product.range
        return frac >= 0 and lo <= low << frac and high << frac <= hi

    @cached_property
    def result(self) -> Cast:
        """The last stage: its format is that of the result and of the bias."""
        return self.acc if self.outer is None else self.outer


# Each pass of a layer: its operands in the layer's words. The bias gradient multiplies by 1.
PASS_OPERANDS = {
    "forward": ("x", "w"),
    "grad_input": ("error", "w"),
    "grad_weight": ("x", "error"),
    "grad_bias": ("error", None),
}
ONE = Format(1, 0, signed=False)
_KINDS = {"update": (UpdateSpec, BufferSpec), "norm": (NormCasts,), "mask": (str,)}


@dataclass(frozen=True, repr=False)
class LayerSpec(Text):
    """What one layer is in hardware; None where the layer has no such tensor.

    A cast or Rule for x, w, b, y, error, grad_w, grad_b; a MacSpec for each pass; the update; the
    casts inside a normalising layer. Where a cast saturates it stops the gradient, unless `mask` is
    `all`: then gradients pass everywhere, as in WAGEUBN. In text a pass may leave out its operands:
    they follow from the casts of its tensors.
    """

    x: AnyCast | Rule | None = None
    w: AnyCast | Rule | None = None
    b: AnyCast | Rule | None = None
    y: AnyCast | Rule | None = None
    error: AnyCast | Rule | None = None
    grad_w: AnyCast | Rule | None = None
    grad_b: AnyCast | Rule | None = None
    forward: MacSpec | None = None
    grad_input: MacSpec | None = None
    grad_weight: MacSpec | None = None
    grad_bias: MacSpec | None = None
    update: UpdateSpec | BufferSpec | None = None
    norm: NormCasts | None = None
    mask: str | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = _KINDS.get(field.name, (MacSpec,) if field.name in PASS_OPERANDS
                               else (Cast, FlagCast, ClosedCast, Rule))
            if value is not None and not isinstance(value, kinds):
                raise ValueError(f"layer {field.name} {value!r}: LayerSpec.parse takes texts; here "
                                 f"give a {' or '.join(kind.__name__ for kind in kinds)}")
        for name in ("error", "grad_w", "grad_b"):
            value = getattr(self, name)
            if isinstance(value, Rule) and value.learned:
                raise ValueError(f"{name}: {value}: a gradient's threshold has no gradient of its "
                                 "own to learn by; only x, w, b and y do")
        if self.mask not in (None, "all"):
            raise ValueError(f"layer mask {self.mask!r}: write all, or leave it out: gradients "
                             "then pass where a cast does not saturate")
        for name, operands in PASS_OPERANDS.items():
            mac = getattr(self, name)
            for side, operand in zip("ab", operands, strict=True):
                want = _operand_format(self, operand)
                if mac is not None and want is not None and getattr(mac, side) != want:
                    raise ValueError(f"{name}.{side} {getattr(mac, side)}: the layer's "
                                     f"{operand or 'constant 1'} is {want}; leave {side} out, or "
                                     "write the same format")

    @classmethod
    def parse(cls, text: str | Mapping | LayerSpec) -> LayerSpec:
        """A mapping of texts or, for passes and parts, mappings. `none` means no such cast."""
        if isinstance(text, cls):
            return text
        items = parse_mapping(text) if isinstance(text, str) else text
        check_keys(items, [f.name for f in fields(cls)], "layer")
        values = {}
        for key, value in items.items():
            if value is None or str(value).lower() == "none":
                values[key] = None
            elif key == "update":
                values[key] = parse_update(value)
            elif key == "norm":
                values[key] = NormCasts.parse(value)
            elif key == "mask":
                values[key] = str(value)
            elif key not in PASS_OPERANDS:
                values[key] = parse_cast(value)
        casts = cls(**values)
        for key in PASS_OPERANDS.keys() & items.keys() - values.keys():
            values[key] = _parse_pass(casts, key, items[key])
        return cls(**values)

    def __str__(self) -> str:
        return mapping_text(self)


def _parse_pass(layer: LayerSpec, name: str, value: str | Mapping | MacSpec) -> MacSpec:
    if isinstance(value, MacSpec):
        return value
    items = parse_mapping(value) if isinstance(value, str) else value
    check_keys(items, [f.name for f in fields(MacSpec)], name)
    items = dict(items)
    for side, operand in zip("ab", PASS_OPERANDS[name], strict=True):
        derived = _operand_format(layer, operand)
        if side not in items and derived is None:
            raise ValueError(f"{name}: operand {side} is not known; give the layer a cast for "
                             f"{operand}, or write {side}")
        items.setdefault(side, derived)
    try:
        return MacSpec.parse(items)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _operand_format(layer: LayerSpec, operand: str | None) -> Format | None:
    if operand is None:
        return ONE
    value = getattr(layer, operand)
    if isinstance(value, Rule):
        return value.operand
    return None if value is None else value.format.with_frac(0)


def _check_operand(name: str, form: Format) -> None:
    if not isinstance(form, Format):
        raise ValueError(f"operand {name} {form!r}: needs a Format such as s8")
    if form.width > MAX_OPERAND:
        raise ValueError(f"operand {name} {form}: a MAC operand has at most {MAX_OPERAND} bits")
    if form.frac:
        raise ValueError(f"operand {name} {form}: a MacSpec is in integer units; write "
                         f"{form.with_frac(0)}, the tensor's frac travels beside its codes")


def _product_bounds(a: Format, b: Format) -> tuple[int, int]:
    corners = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    low, high = min(corners), max(corners)
    if high > INT64[1]:
        raise ValueError(f"operands {a} and {b}: their product can reach {high} and leaves int64; "
                         "narrow one of them by a bit")
    return low, high


def _normal_product(product: Cast | None, exact: tuple[int, int]) -> tuple[Cast, tuple[int, int]]:
    """The product cast in its narrowest equal form, and the bounds of its codes."""
    if product is None:
        return Cast(Format.holding(*exact)), exact
    check_cast("product", product)
    if product.rounding == Rounding.STOCHASTIC:
        raise ValueError(f"product {product}: a MAC has no random operand; use a deterministic "
                         "rounding, and stochastic rounding in the cast of the result")
    frac = product.format.frac
    if not -62 <= frac <= 62:
        raise ValueError(f"product {product.format}: its frac goes from -62 to 62; a product has "
                         "at most 64 bits")
    if frac >= 0:
        bounds, rounding = (exact[0] << frac, exact[1] << frac), Rounding.TO_NEG
        if bounds[0] < INT64[0] or bounds[1] > INT64[1]:
            raise ValueError(f"product {product.format}: with {frac} zeros appended the product "
                             f"can reach {bounds[1]} and leaves int64; use a smaller frac")
    else:
        bounds, rounding = (exact[0] >> -frac, -(-exact[1] >> -frac)), product.rounding
    low, high = product.range
    if low <= bounds[0] and bounds[1] <= high:
        return Cast(Format.holding(*bounds, frac), rounding), bounds
    return Cast(product.format, rounding, product.overflow), (product.format.lo, product.format.hi)


def _accumulator(name: str, value: Cast, keep_rounding: bool = False) -> Cast:
    check_cast(name, value)
    if value.rounding == Rounding.STOCHASTIC:
        raise ValueError(f"{name} {value}: a MAC has no random operand; nothing is rounded in an "
                         "accumulator, use stochastic rounding in the cast of the result")
    if not ACC_WIDTHS[0] <= value.format.width <= ACC_WIDTHS[1]:
        raise ValueError(f"{name} {value.format}: an accumulator has {ACC_WIDTHS[0]} to "
                         f"{ACC_WIDTHS[1]} bits")
    return Cast(value.format, value.rounding if keep_rounding else Rounding.TO_NEG, value.overflow)


def _fits(mac: MacSpec, what: str, low: int, high: int) -> None:
    if low < INT64[0] or high > INT64[1]:
        raise ValueError(f"{what} can reach {max(-low, high)} and leaves int64 "
                         f"(limit {INT64[1]}) for a {mac.a}, b {mac.b}, acc {mac.acc.format}, "
                         f"lanes {mac.lanes}; use narrower formats or fewer lanes")


def _truth(value: object) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError(f"reload {value!r}: write true or false")
    return str(value).lower() == "true"


def _number(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"{value!r}: lanes, block and tile are whole numbers") from None


def _form(value: object) -> Format:
    return value if isinstance(value, Format) else Format.parse(value)


def _cast(value: object) -> Cast:
    return value if isinstance(value, Cast) else Cast.parse(str(value))


_MAC_FIELDS = {"a": _form, "b": _form, "acc": _cast, "product": _cast, "lanes": _number,
               "block": _number, "tile": _number, "outer": _cast, "reload": _truth}
