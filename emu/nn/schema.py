"""The settings of a layer as pydantic types: what a configuration may say, and where it is wrong.

They follow from the fields of `LayerSpec` and of the specs in it, so there is no second list of
them. A setting of a configuration need not be complete: the operands of a MAC follow from others.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    PlainSerializer,
    Tag,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from emu.kind import AnyCast, ClosedCast, FlagCast
from emu.number import Cast, Format
from emu.rule import Rule, parse_cast
from emu.spec import LayerSpec
from emu.value import Text, parse_mapping, unknown

PHASES = ("training", "evaluation")
TAGS = ("<value>", "<phases>")  # of a union's branches: pydantic puts them into its locations


class Settings(BaseModel):
    """A mapping of settings; those that are not written are not set, `none` takes one away."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        if isinstance(value, Text) or (isinstance(value, str) and value.strip()[:1] == "{"):
            value = _checked(parse_mapping)(str(value))
        if isinstance(value, cls):
            return value
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise refusal(f"{value!r}: needs a mapping with keys {', '.join(cls.model_fields)}")
        for key in value:
            if key not in cls.model_fields:
                raise refusal(str(unknown("key", key, cls.model_fields)), key)
        return dict(value)

    def settings(self) -> dict:
        """What is set: values, and settings as mappings of values."""
        return {name: value.settings() if isinstance(value := getattr(self, name), Settings)
                else value for name in type(self).model_fields if name in self.model_fields_set}


class Phases(Settings):
    """One setting for each phase; a phase that is left out keeps what a wider setting says."""


def refusal(message: str, *keys) -> PydanticCustomError:
    """A mistake, at these keys within the place that is checked."""
    return PydanticCustomError("emu", "{message}", {"message": message, "keys": keys})


def _checked(parse):
    """The parser, its ValueErrors as pydantic's."""
    def parsed(value):
        try:
            return parse(value)
        except ValueError as error:
            raise refusal(str(error)) from None
    return parsed


def _text(parse, kinds, about: str, examples: list[str]):
    """The type of a value with a text form."""
    return Annotated[
        Any, BeforeValidator(_checked(lambda x: x if isinstance(x, kinds) else parse(str(x)))),
        PlainSerializer(str, when_used="unless-none"),
        WithJsonSchema({"type": "string", "description": about, "examples": examples})]


FORMAT = _text(Format.parse, Format, "a format", ["s8", "u8f4"])
CAST = _text(Cast.parse, Cast, "a format, a rounding and an overflow",
             ["s8f4 ties_even sat", "s20 sat"])
TENSOR = _text(parse_cast, AnyCast | Rule, "a cast, or a format without frac and the rule that "
               "chooses it", ["s8f4 ties_even sat", "s8 auto:max ties_even sat", "s8 fixed",
                              "flag s8 auto:shift ties_even sat_sym"])


def _truth(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError(f"{value!r}: write true or false")
    return str(value).lower() == "true"


BOOL = Annotated[bool, BeforeValidator(_checked(_truth))]


def _none(value: Any) -> Any:
    return None if str(value).lower() == "none" else value


def _type(hint: Any):
    """The pydantic type of a spec's field."""
    options = [x for x in (typing.get_args(hint) or (hint,)) if x is not types.NoneType]
    known = {(Format,): FORMAT, (Cast,): CAST, (Cast, FlagCast, ClosedCast, Rule): TENSOR,
             (bool,): BOOL}
    specs = [x for x in options if is_dataclass(x) and tuple(options) not in known]
    return known.get(tuple(options)) or (partial(*specs) if specs else options[0])


def partial(*specs: type) -> type[Settings]:
    """Settings with every field of these specs, none of them needed."""
    hints = {}
    for spec in specs:
        found = typing.get_type_hints(spec)
        hints |= {field.name: found[field.name] for field in fields(spec)}
    return create_model(specs[0].__name__.removesuffix("Spec") + "Settings", __base__=Settings,
                        __doc__=specs[0].__doc__.splitlines()[0],
                        **{name: (_or_none(_type(hint)), None) for name, hint in hints.items()})


def _or_none(kind):
    return Annotated[kind | None, BeforeValidator(_none)]


def _setting(name: str, hint: Any):
    """A setting of a layer: a value, or one for each phase; an update has one phase only."""
    kind = _type(hint)
    if name == "update":
        return _or_none(kind)
    phases = create_model(f"{name}Phases", __base__=Phases, __doc__=Phases.__doc__,
                          **{phase: (_or_none(kind), None) for phase in PHASES})
    return Annotated[
        Annotated[_or_none(kind), Tag(TAGS[0])] | Annotated[phases, Tag(TAGS[1])],
        Discriminator(_branch(isinstance(kind, type) and issubclass(kind, Settings))),
        BeforeValidator(_mapping_of_phases)]


def _mapping_of_phases(value: Any) -> Any:
    if isinstance(value, str) and any(f"{phase}:" in value for phase in PHASES):
        return _checked(parse_mapping)(value)
    return value


def _branch(mapped: bool):
    """Which branch a value is of; `mapped` says whether a value for both phases is a mapping."""
    def branch(value: Any) -> str:
        return TAGS[isinstance(value, Phases) or (isinstance(value, Mapping) and not (
            mapped and value.keys().isdisjoint(PHASES)))]
    return branch


_hints = typing.get_type_hints(LayerSpec)
LayerSettings = create_model(
    "LayerSettings", __base__=Settings, __module__=__name__,
    __doc__="The settings of a layer, of the fields of `emu.LayerSpec`.",
    **{field.name: (_setting(field.name, _hints[field.name]), None) for field in fields(LayerSpec)})


def explained(error: ValidationError) -> ValueError:
    """The first mistake as one line that begins with its key."""
    first = error.errors()[0]
    context = first.get("ctx", {})
    where = ".".join(str(key) for key in [*first["loc"], *context.get("keys", ())]
                     if key not in TAGS)
    message = context.get("message") or f"{first['input']!r}: {first['msg']}"
    return ValueError(f"config {where}: {message}" if where else f"config {message}")
