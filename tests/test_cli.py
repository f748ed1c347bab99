"""The commands as a user types them: what they print, their exit status, and bad input."""

import hashlib
import re
import shutil
import sys
from pathlib import Path

import pytest

from emu import cli, cosim

ROOT = Path(__file__).parents[1]
SPEC = "{a: s8, b: s8, acc: s16 sat, lanes: 2}"


@pytest.fixture
def emu(monkeypatch, capfd, tmp_path):
    """Run a command in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["emu", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return run


def test_train_writes_a_run_and_prints_its_telemetry(emu, tmp_path):
    status, out, err = emu("train", "digits-mlp-int8", "--epochs", "1", "--record", "step")
    assert (status, err) == (0, "")
    assert out.startswith("what the hardware did in 5 of 45 steps\n")
    assert re.search(r"\n fc2.grad_input +102,400 +[\d,]+ +[\d,]+ +[\d,]+ +\d+ of 14 *\n", out)
    assert re.search(r"\n fc1.grad_w +20,480 +[\d,]+ +9 of 8 +[+-]0\.\d{4} *\n", out)
    assert "test accuracy" in out
    assert (tmp_path / "runs" / "digits-mlp-int8" / "weights.safetensors").is_file()
    assert emu("cosim", "step")[0] == 0


def test_train_takes_a_seed_and_changes_of_hardware(emu, tmp_path):
    changes = "{default: {w: s7 auto:max ties_even sat}}"
    status, _, err = emu("train", "digits-mlp-int8", "--epochs", "1", "--monitor", "0", "--seed",
                         "5", "--hardware", changes)
    assert (status, err) == (0, "")
    kept = (tmp_path / "runs" / "digits-mlp-int8" / "config.yaml").read_text()
    assert "\n  seed: 5\n" in kept and "w: s7 auto:max ties_even sat" in kept
    assert emu("train", "digits-mlp-int8", "--hardware", "3")[0] == 2


def test_train_shows_nothing_that_it_did_not_watch(emu):
    status, out, _ = emu("train", "digits-mlp-int8", "--epochs", "1", "--monitor", "0")
    assert (status, out.startswith("test accuracy")) == (0, True)


def test_train_resumes_and_diff_finds_runs_equal(emu):
    emu("train", "digits-mlp-int8", "--epochs", "1", "--out", "a")
    assert emu("train", "digits-mlp-int8", "--epochs", "2", "--out", "a", "--resume")[0] == 0
    emu("train", "digits-mlp-int8", "--epochs", "2", "--out", "b")
    assert emu("diff", "a", "b") == (0, "", "")


def test_train_computes_in_the_verilog_what_is_asked(emu, monkeypatch):
    asked = []

    def train(recipe, *rest):
        asked.append((recipe.monitor, rest[-1].__name__))
        raise ValueError("enough")

    monkeypatch.setattr("emu.lab.train.train", train)
    for arguments in ([], ["--backend", "rtl"]):
        assert emu("train", "digits-mlp-int8", *arguments) == (2, "", "emu: enough\n")
    assert asked == [(10, "Backend"), (0, "RtlBackend")]


def test_vectors_of_a_spec_replay(emu):
    status, out, _ = emu("vectors", SPEC, "--out", "mine")
    assert (status, out.split()[1]) == (0, "files,")
    status, out, _ = emu("cosim", "mine", "--junit", "report.xml")
    assert status == 0
    assert out.rstrip().endswith(" 0 differences")
    assert "<testsuite" in Path("report.xml").read_text()


def test_a_backend_replays_as_arrays_and_required_tools_must_be_here(emu, monkeypatch):
    emu("vectors", SPEC, "--out", "mine")
    status, out, _ = emu("cosim", "mine", "--backend", "netlist", "--require", "icarus,yosys")
    assert (status, out.split()[-2:]) == (0, ["0", "differences"])
    status, _, err = emu("cosim", "mine", "--backend", "netlist", "--waves", "w.fst")
    assert (status, err) == (2, "emu: --waves: netlist is fed arrays and keeps none; --sim icarus "
                                "writes .fst and --sim verilator .vcd\n")
    monkeypatch.setenv("PATH", "/nowhere")
    status, _, err = emu("cosim", "mine", "--require", "icarus")
    assert (status, err) == (2, "emu: icarus is not installed: apt-get install iverilog\n")


def test_vectors_are_the_same_bytes_again(emu):
    emu("vectors", SPEC, "--out", "a")
    emu("vectors", SPEC, "--out", "b")
    assert emu("diff", "a", "b") == (0, "", "")


def test_mutated_rtl_exits_1_and_prints_an_equation(emu, tmp_path):
    emu("vectors", SPEC, "--out", "mine")
    mac = (cosim.hardware() / "rtl" / "mac.v").read_text()
    mutant = tmp_path / "mac.v"
    mutant.write_text(mac.replace("a_wide * b_wide", "a_wide * b_wide + 1'b1"))
    status, out, _ = emu("cosim", "mine", "--rtl", mutant)
    assert status == 1
    assert "=> acc_o=" in out
    assert "expected" in out


def test_rtl_that_replaces_nothing_is_refused(emu, tmp_path):
    (tmp_path / "mine.v").write_text("module my_mac (input wire a); endmodule\n")
    status, _, err = emu("cosim", "--rtl", "mine.v")
    assert (status, err.count("\n")) == (2, 1)
    assert "my_mac, and so replaces nothing; name the module as ours: delay, flag_quantizer" in err


def test_a_simulation_that_fails_leaves_no_report(emu, tmp_path):
    emu("vectors", SPEC, "--out", "mine")
    (tmp_path / "mac.v").write_text("module mac (input wire a) endmodule\n")
    status, _, err = emu("cosim", "mine", "--rtl", "mac.v", "--junit", "r.xml", "--waves", "w.fst")
    assert (status, err.count("\n")) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mac.v", "mine"]


def test_diff_of_vector_sets_names_file_and_line(emu):
    emu("vectors", SPEC, "--out", "a")
    shutil.copytree("a", "b")
    path, = Path("b").rglob("*.hex")
    lines = path.read_text().splitlines(keepends=True)
    fields = lines[6].rstrip().split("_")
    fields[6] = f"{int(fields[6], 16) ^ 1:04x}"
    lines[6] = "_".join(fields) + "\n"
    path.write_text("".join(lines))
    manifest = Path("b/manifest.json")
    old = hashlib.sha256((Path("a") / path.relative_to("b")).read_bytes()).hexdigest()
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(manifest.read_text().replace(old, new))
    status, out, _ = emu("diff", "a", "b")
    assert status == 1
    assert f"{path.relative_to('b')}:7  " in out
    assert "acc_o=" in out


def test_bounds_of_a_run_and_of_its_recipe(emu):
    emu("train", "digits-mlp-int8", "--epochs", "1", "--out", "a")
    for model in ("a", "digits-mlp-int8"):
        status, out, err = emu("bounds", model)
        assert (status, err, len(out.splitlines())) == (0, "", 8)
        assert "fc2    grad_weight  32  s15f0 sat" in out
        assert "acc lacks 6 bits" in out


def test_presets_are_listed_and_printed_in_full(emu):
    status, out, err = emu("presets")
    assert (status, err) == (0, "")
    assert "x86_vpdpbusds            {a: u8f0, b: s8f0, acc: s32f0 to_neg sat, lanes: 4}" in out
    status, out, _ = emu("presets", "nvdla_int8")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "nvdla_int8", "mac", "out", "source", "covers", "leaves"]


def test_help_lists_the_commands(emu):
    status, out, _ = emu("--help")
    assert status == 0
    assert all(name in out for name in ("train", "vectors", "cosim", "diff", "bounds", "presets"))


@pytest.mark.parametrize(("arguments", "message"), [
    (["train", "digits-mpl-int8"],
     "unknown recipe 'digits-mpl-int8': did you mean 'digits-mlp-int8'"),
    (["train", "digits-mlp-int8", "--data", "mnist:nowhere"], "nowhere: does not exist"),
    (["train", "digits-mlp-int8", "--data", "cifar"], "write digits, patches, lookup, or mnist"),
    (["train", "digits-mlp-int8", "--resume"], "has no config.yaml to resume"),
    (["train", "digits-mlp-int8", "--monitor", "-1"], "monitor -1: needs a whole number"),
    (["train", "digits-mlp-int8", "--epochs", "-1"], "epochs -1: needs a whole number"),
    (["vectors", "{a: s8, b: s8, acc: s70}", "--out", "v"],
     "format width 70: needs a whole number from 1 to 64"),
    (["vectors", "{a: s8, b: s8, acc: s20 satt}", "--out", "v"],
     "'satt': did you mean 'sat'"),
    (["vectors", "{a: s8, b: s8, product: s14f-2, acc: s20}", "--out", "v"],
     "their frac differs (-2 and 0)"),
    (["vectors", "{a: s8, b: s8, acc: s20 stochastic16}", "--out", "v"],
     "a MAC has no random operand"),
    (["vectors", "{a: s32, b: s32, acc: s62, lanes: 4}", "--out", "v"],
     "leaves int64"),
    (["vectors", "s0 -> s8", "--out", "v"],
     "format width 0: needs a whole number"),
    (["vectors", "lfsr16"], "name their folder with --out"),
    (["vectors", "--level", "2"], "name their folder with --out"),
    (["train", "digits-mlp-int8", "--epochs", "0"], "epochs 0: needs a whole number"),
    (["cosim", "nowhere"], "nowhere"),
    (["cosim", "--junit", "/dev/null/report.xml"], "cannot be written"),
    (["cosim", "--waves", "/dev/null/waves.fst"], "cannot be written"),
    (["cosim", "--waves", "w.vcd"], "icarus does not write such waves; of vectors, icarus .fst"),
    (["cosim", "--waves", "w.fst", "--sim", "verilator"], "verilator .vcd"),
    (["bounds", "nowhere"], "unknown recipe 'nowhere': known: digits-cnn-int8"),
    (["presets", "ne17"], "unknown preset 'ne17': did you mean 'ne16'?"),
    (["coverage", "lfsr8"], "no situations are listed for lfsr; emu mutate --spec"),
    (["diff", "nowhere", "elsewhere"], "nowhere: has no config.yaml"),
])
def test_bad_input_is_one_line_and_exit_status_2(emu, tmp_path, arguments, message):
    status, out, err = emu(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("emu: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_exits_2(emu):
    assert emu("train", "digits-mlp-int8", "--epoch", "3")[0] == 2


def test_output_folder_that_is_not_ours_is_kept(emu, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    status, _, err = emu("vectors", SPEC, "--out", "mine")
    assert status == 2
    assert "mine" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_output_folder_under_a_file_is_refused(emu, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments in (["vectors", SPEC, "--out", "file/out"],
                      ["train", "digits-mlp-int8", "--out", "file/out"]):
        status, _, err = emu(*arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert "cannot be written" in err


def test_truncated_and_altered_vectors_are_refused(emu, tmp_path):
    emu("vectors", SPEC, "--out", "mine")
    file = next((tmp_path / "mine").rglob("*.hex"))
    whole = file.read_bytes()
    for spoiled in (whole[:-4], whole.replace(b"f", b"e", 1)):
        file.write_bytes(spoiled)
        status, _, err = emu("cosim", "mine")
        assert (status, err.count("\n")) == (2, 1)
        assert file.name in err


def test_missing_simulator_is_one_line_with_the_way_out(emu, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    status, _, err = emu("cosim")
    assert (status, err.count("\n")) == (2, 1)
    assert "iverilog" in err
    assert "install" in err


def test_the_simulator_is_here():
    # A missing simulator must fail the build, not skip its tests.
    assert shutil.which("iverilog")
    assert shutil.which("vvp")
