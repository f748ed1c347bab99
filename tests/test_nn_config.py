"""Which hardware each module gets: precedence, forms of a configuration, and its mistakes."""

import copy
import json
import pickle
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from fixed_layers import HARDWARE, UPDATE

from emu import LayerSpec, MacSpec
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
    ({"defaults": {}}, "config defaults: unknown key 'defaults': did you mean 'default'"),
    ({"by_types": {}}, "config by_types: unknown key 'by_types': did you mean 'by_type'"),
    ({"default": {"grad_W": "s8"}},
     "config default.grad_W: unknown key 'grad_W': did you mean 'grad_w'"),
    ({"by_type": {"Linear": {"forwards": {}}}},
     "config by_type.Linear.forwards: unknown key 'forwards': did you mean 'forward'"),
    ({"by_type": {"Linear": {"forward": {"ac": "s20"}}}},
     "config by_type.Linear.forward.ac: unknown key 'ac': did you mean 'acc'"),
    ({"by_name": {"fc*": {"err": "s8"}}},
     "config by_name.fc*.err: unknown key 'err': did you mean 'error'"),
    ({"by_type": "Linear"}, "config by_type: 'Linear': needs a mapping of names to layer settings"),
    ({"by_name": {"fc": "s8"}}, "config by_name.fc: 's8': needs a mapping with keys x, w"),
    ({"default": {"x": "s8 ties_evn"}},
     "config default.x: unknown mode in 's8 ties_evn': 'ties_evn': did you mean 'ties_even'"),
    ({"default": {"x": "q8"}}, "config default.x: format 'q8': write s or u, the width"),
    ({"default": {"x": "s8 fixd"}},
     "config default.x: unknown scale rule 'fixd': did you mean 'fixed'"),
    ({"default": {"x": "s8 auto:maks"}},
     "config default.x: unknown scale rule 'auto:maks': did you mean 'auto:max'"),
    ({"by_type": {"Linear": {"forward": {"acc": "s20 st"}}}},
     "config by_type.Linear.forward.acc: unknown mode in 's20 st': 'st': did you mean 'sat'"),
    ({"default": {"forward": {"acc": "s20", "lanes": "four"}}},
     "config default.forward.lanes: 'four': Input should be a valid integer"),
    ({"default": {"x": {"train": "s8"}}},
     "config default.x.train: unknown key 'train': did you mean 'training'"),
    ({"default": {"x": {"evaluation": "s8 auto"}}},
     "config default.x.evaluation: unknown scale rule 'auto'"),
    ({"default": {"norm": {"xhatt": "s8"}}},
     "config default.norm.xhatt: unknown key 'xhatt': did you mean 'xhat'"),
    ({"default": {"forward": {"acc": "s20", "reload": "yes"}}},
     "config default.forward.reload: 'yes': write true or false"),
    ({"default": {"norm": {"eps_var": "tiny"}}},
     "config default.norm.eps_var: 'tiny': Input should be a valid integer"),
    ({"default": {"update": {"training": {}}}},
     "config default.update.training: unknown key 'training': known: weight, momentum"),
])
@pytest.mark.parametrize("read", [Config.parse, lambda config: Config(**config)],
                         ids=["parse", "constructor"])
def test_a_mistake_is_answered_with_what_there_is(read, config, message):
    with pytest.raises(ValueError) as caught:
        read(config)
    assert str(caught.value).startswith(message)
    assert type(caught.value) is ValueError


def test_an_empty_text_is_no_configuration():
    with pytest.raises(ValueError, match="config None: needs a mapping with keys default, by_type"):
        Config.parse("")


@pytest.mark.parametrize("layer, message", [
    ({"x": "s8", "forward": {"acc": "s20"}}, "forward: operand b is not known; give the layer a"),
    ({"x": "s8", "w": "s8", "forward": {"acc": "s63"}}, "forward: acc s63f0: an accumulator has"),
    ({"x": "s8", "w": "s8", "forward": {"a": "s7", "acc": "s20"}}, "forward.a s7f0: the layer's x"),
    ({"update": {"weight": "s8"}}, "update: 'momentum' is missing; it needs weight, momentum"),
])
def test_a_mistake_in_what_belongs_together_names_the_layer_and_the_key(layer, message):
    with pytest.raises(ValueError, match=rf"layer 'head.fc1' \(Linear\): config default.{message}"):
        Config.parse({"default": layer}).resolve(FC)


def test_a_mistake_names_the_key_that_wins():
    config = Config.parse({"default": {"x": "s8", "w": "s8", "forward": {"acc": "s20"}},
                           "by_name": {"head.*": {"forward": {"evaluation": {"acc": "s63"}}}}})
    assert str(config.resolve(FC).forward.acc) == "s20f0 to_neg wrap"
    with pytest.raises(ValueError, match=r"config by_name.head.\*.forward.evaluation: acc s63f0"):
        config.resolve(FC._replace(training=False))


PHASED = {"default": {"x": {"training": "s8 auto:max", "evaluation": "s8 fixed"}, "w": "s8f4",
                      "y": {"evaluation": "s4f1"},
                      "forward": {"training": {"acc": "s30"}, "evaluation": {"acc": "s12 sat"}}}}


@pytest.mark.parametrize("training, x, y, acc", [
    (True, "s8 auto:max to_neg wrap", "None", "s30f0 to_neg wrap"),
    (False, "s8 fixed to_neg wrap", "s4f1 to_neg wrap", "s12f0 to_neg sat")])
def test_a_setting_may_differ_by_phase(training, x, y, acc):
    got = Config.parse(PHASED).resolve(FC._replace(training=training))
    assert (str(got.x), str(got.y), str(got.forward.acc)) == (x, y, acc)


def test_a_phase_that_is_left_out_keeps_what_a_wider_setting_says():
    config = {**PHASED, "by_type": {"Linear": {"x": {"evaluation": "u4f2"}}}}
    got = [str(Config.parse(config).resolve(FC._replace(training=phase)).x)
           for phase in (True, False)]
    assert got == ["s8 auto:max to_neg wrap", "u4f2 to_neg wrap"]


@pytest.mark.parametrize("text", ["{training: s8f4, evaluation: none}",
                                  {"training": "s8f4", "evaluation": None}])
def test_phases_may_be_a_text(text):
    got = [str(Config.parse({"default": {"x": text}}).resolve(FC._replace(training=phase)).x)
           for phase in (True, False)]
    assert got == ["s8f4 to_neg wrap", "None"]


FULL = {"default": {**HARDWARE, "norm": {"xhat": "s12f8", "unbiased": "false", "eps_std": "1"},
                    "update": UPDATE, "x": {"training": "s6 auto:max", "evaluation":
                                                        "s6 fixed ties_even"}},
        "by_type": {"Linear": {"y": "none", "forward": {"acc": "s20 sat", "lanes": 4, "tile": 8,
                                                        "outer": "s24 sat", "reload": True}}},
        "by_name": {"0": {"x": "u8f7"}, "head.*": {"y": {"evaluation": "none"}}}}


@pytest.mark.parametrize("copied", [
    lambda config: Config.parse(config.dump()), lambda config: Config.parse(str(config)),
    lambda config: Config.parse(json.loads(json.dumps(config.dump()))),
    lambda config: Config.model_validate_json(config.model_dump_json(exclude_unset=True)),
    copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))],
    ids=["dump", "yaml", "json", "pydantic", "deepcopy", "pickle"])
def test_a_configuration_survives_being_written_and_read(copied):
    config = Config.parse(FULL)
    again = copied(config)
    assert again == config
    assert str(again) == str(config)
    for site in (FC, FC._replace(training=False), Site("0", "ReLU")):
        assert again.resolve(site) == config.resolve(site)


def test_what_was_taken_away_is_not_what_was_never_set():
    config = Config.parse({"default": {"x": "s8"}, "by_type": {"Linear": {"x": None}}})
    assert config.dump() == {"default": {"x": "s8f0 to_neg wrap"},
                             "by_type": {"Linear": {"x": None}}}
    assert Config.parse(config.dump()).resolve(FC).x is None


def test_names_that_yaml_reads_as_numbers_are_names():
    assert str(Config.parse("by_name: {0: {y: s8}}").resolve(Site("0", "Linear")).y)[:4] == "s8f0"


@pytest.mark.parametrize("value", [LayerSpec.parse(HARDWARE), str(LayerSpec.parse(HARDWARE)),
                                   dict(vars(LayerSpec.parse(HARDWARE)))],
                         ids=["value", "text", "values"])
def test_settings_may_be_values(value):
    assert Config(default=value).resolve(FC) == LayerSpec.parse(HARDWARE)


def test_the_schema_has_every_setting_and_every_part_of_it():
    schema = Config.model_json_schema()
    layer = schema["$defs"]["LayerSettings"]
    assert set(layer["properties"]) == {field.name for field in fields(LayerSpec)}
    assert set(schema["$defs"]["MacSettings"]["properties"]) == {f.name for f in fields(MacSpec)}
    assert all(not part["additionalProperties"] for name, part in schema["$defs"].items())


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
