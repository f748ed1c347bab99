"""Which hardware each module gets: precedence, forms of a configuration, and its mistakes."""

from pathlib import Path

import pytest
import yaml
from fixed_layers import HARDWARE

from emu import LayerSpec
from emu.nn import Config, Site

FC = Site("head.fc1", "Linear")
LAYERS = {"default": {"x": "s8f4", "y": "s8f1"}, "by_type": {"Linear": {"y": "s8f2"}},
          "by_name": {"head.*": {"y": "s8f3"}, "head.fc1": {"y": "s8f4"}}}


def y_of(config: dict, site: Site = FC) -> str:
    """The resolved cast y, as text."""
    return str(Config.parse(config).resolve(site).y)


@pytest.mark.parametrize("parts, want", [
    (["default"], "s8f1"), (["default", "by_type"], "s8f2"),
    (["default", "by_type", "by_name"], "s8f4"), (["default", "by_name"], "s8f4"),
    (["by_type"], "s8f2")])
def test_a_more_special_setting_wins(parts, want):
    got = y_of({part: LAYERS[part] for part in parts})
    assert got == f"{want} to_neg wrap"


def test_the_last_matching_pattern_wins():
    patterns = {"head.fc1": {"y": "s8f4"}, "head.*": {"y": "s8f3"}}
    assert y_of({"by_name": patterns}) == "s8f3 to_neg wrap"


@pytest.mark.parametrize("pattern, path, matches", [
    ("fc1", "head.fc1", False), ("*fc1", "head.fc1", True), ("head.fc?", "head.fc1", True),
    ("head.fc[12]", "head.fc3", False), ("HEAD.FC1", "head.fc1", False), ("*", "a.b.c", True)])
def test_a_name_is_a_pattern_of_the_whole_path(pattern, path, matches):
    got = y_of({"by_name": {pattern: {"y": "s8f4"}}}, Site(path, "Linear"))
    assert (got != "None") == matches


def test_settings_of_a_level_are_merged_key_by_key():
    got = Config.parse(LAYERS).resolve(FC)
    assert str(got) == "{x: s8f4 to_neg wrap, y: s8f4 to_neg wrap}"


def test_none_takes_a_cast_away():
    assert y_of({"default": {"y": "s8"}, "by_type": {"Linear": {"y": "none"}}}) == "None"


def test_settings_that_a_module_lacks_are_left_out():
    got = Config.parse({"default": HARDWARE}).resolve(Site("pool", "AvgPool2d", ("y", "error")))
    assert got == LayerSpec.parse({key: HARDWARE[key] for key in ("y", "error")})


def test_a_yaml_text_is_a_configuration():
    assert Config.parse(yaml.safe_dump(LAYERS)).resolve(FC) == Config.parse(LAYERS).resolve(FC)


@pytest.mark.parametrize("form", [Path, str])
def test_a_path_is_a_yaml_file(form, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(LAYERS))
    assert Config.parse(form(path)).resolve(FC) == Config.parse(LAYERS).resolve(FC)


def test_a_path_without_a_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"missing\.yaml"):
        Config.parse("missing.yaml")


def test_a_configuration_passes_through():
    config = Config.parse(LAYERS)
    assert Config.parse(config) is config


def test_a_pass_may_be_a_mapping_of_yaml_values():
    config = Config.parse("""
        default:
          x: s8
          w: s8
          forward: {acc: s20 sat, lanes: 4, tile: 8, outer: s24 sat, reload: true}
          y: null
    """)
    want = "{a: s8f0, b: s8f0, acc: s20f0 to_neg sat, lanes: 4, tile: 8, " \
           "outer: s24f0 to_neg sat, reload: true}"
    assert str(config.resolve(FC).forward) == want


def test_empty_parts_of_a_yaml_text_are_no_settings():
    assert Config.parse("default:\nby_type:\nby_name:").resolve(FC) == LayerSpec()


@pytest.mark.parametrize("config, message", [
    ({"defaults": {}}, "unknown config key 'defaults': did you mean 'default'"),
    ({"by_types": {}}, "unknown config key 'by_types': did you mean 'by_type'"),
    ({"default": {"grad_W": "s8"}}, "unknown config default key 'grad_W': did you mean 'grad_w'"),
    ({"by_type": {"Linear": {"forwards": {}}}},
     "unknown config by_type.Linear key 'forwards': did you mean 'forward'"),
    ({"by_name": {"fc*": {"err": "s8"}}},
     r"unknown config by_name.fc\* key 'err': did you mean 'error'"),
    ({"by_type": "Linear"}, "config by_type 'Linear': needs a mapping of layer settings"),
    ({"by_name": {"fc": "s8"}}, "config by_name.fc 's8': needs a mapping with keys x, w"),
    ("", "config None: needs a mapping with keys default, by_type, by_name"),
])
def test_a_mistake_is_answered_with_what_there_is(config, message):
    with pytest.raises(ValueError, match=message):
        Config.parse(config)


@pytest.mark.parametrize("layer, message", [
    ({"x": "s8 ties_evn"}, "unknown mode in 's8 ties_evn': 'ties_evn': did you mean 'ties_even'"),
    ({"x": "q8"}, "format 'q8': write s or u, the width"),
    ({"x": "s8", "forward": {"acc": "s20"}}, "forward: operand b is not known; give the layer a"),
    ({"x": "s8", "w": "s8", "forward": {"acc": "s63"}}, "forward: acc s63f0: an accumulator has"),
    ({"x": "s8", "w": "s8", "forward": {"a": "s7", "acc": "s20"}}, "forward.a s7f0: the layer's x"),
    ({"update": {"weight": "s8"}}, "update: 'momentum' is missing; it needs weight, momentum"),
])
def test_a_mistake_in_a_value_names_the_layer(layer, message):
    with pytest.raises(ValueError, match=rf"layer 'head.fc1' \(Linear\): {message}"):
        Config.parse({"default": layer}).resolve(FC)


def test_types_and_patterns_without_a_module_are_found():
    config = Config.parse({"by_type": {"Linear": {}, "Conv2d": {}},
                           "by_name": {"head.*": {}, "tail.*": {}}})
    assert config.unused([FC]) == ["by_type.Conv2d", "by_name.tail.*"]


def test_settings_that_one_of_the_matching_modules_has_are_used():
    config = Config.parse({"by_name": {"*": {"x": "s8"}}})
    assert config.unused([FC, Site("relu", "ReLU", ())]) == []


def test_settings_that_no_matching_module_has_are_found():
    config = Config.parse({"by_type": {"ReLU": {"y": "u8"}}, "by_name": {"re*": {"x": "s8"}}})
    got = config.unused([FC, Site("relu", "ReLU", ())])
    assert got == ["by_type.ReLU.y", "by_name.re*.x"]
