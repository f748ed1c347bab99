"""What the suite of nics_fix_pt itself asks, under its own names: section by section of it."""

import doctest
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import emu.compat.nics_fix_pt as nfp
import emu.compat.nics_fix_pt.nn_fix as nnf
import emu.compat.nics_fix_pt.quant as nfpq


def configs(names, method=0, scale=0, bitwidth=8):
    """As its scripts make them: int32 tensors, the scale among them."""
    return {name: {"method": torch.IntTensor(np.array([method])),
                   "scale": torch.IntTensor(np.array([scale])),
                   "bitwidth": torch.IntTensor(np.array([bitwidth]))} for name in names}


class Weighted(torch.nn.Module):
    """The sum of the inputs times a parameter."""

    def __init__(self, input_num):
        super().__init__()
        self.param = torch.nn.Parameter(torch.zeros(1, input_num))

    def forward(self, inputs):
        return (inputs * self.param).sum(dim=-1)


nfp.fix_modules.register_fix_module(Weighted, register_name="Weighted_fix")


def weighted(data, bitwidth, method, grad_bitwidth=2, grad_method=0):
    """(module, configurations of data and gradient)."""
    cfg = configs(["param"], method, -1, bitwidth)
    grad = configs(["param"], grad_method, -1, grad_bitwidth)
    grad["param"]["method"] = grad_method  # a plain int
    module = nnf.Weighted_fix(input_num=len(data), nf_fix_params=cfg, nf_fix_params_grad=grad)
    module.param.data[0, :] = torch.tensor(data)
    return module, cfg["param"], grad["param"]


@pytest.mark.parametrize(("data", "inputs", "out", "scale"), [
    ([.2513, -.52, .0], [1., 1, 0], 0., 1.), ([.2513, -.5, .0], [1., 1, 0], -.25, .5),
    ([.2513, -.49, -.6], [1., 1, 1], -.5, 1.)])
def test_forward_auto(data, inputs, out, scale):
    module, cfg, _ = weighted(data, 2, nfp.FIX_AUTO)
    with torch.no_grad():
        assert np.isclose(module.forward(torch.tensor(inputs)), out)
    assert np.isclose(cfg["scale"], scale)
    assert np.isclose(module.param_fp_scale, scale)


@pytest.mark.parametrize(("inputs", "grad", "scale"), [
    ([.5, .26], [.5, .25], .5), ([.52, .26], [.5, .5], 1.)])
def test_backward_auto(inputs, grad, scale):
    module, _, cfg = weighted([.2, .3], 4, nfp.FIX_AUTO, 2, nfp.FIX_AUTO)
    kept = cfg["scale"]
    module.forward(torch.tensor(inputs)).backward()
    found = module._parameters["param"].grad.detach()
    assert np.allclose(found, [grad])
    assert cfg["scale"] is kept and np.isclose(kept, scale)


def test_update_auto():
    module, _, _ = weighted([.2513, -.52], 2, nfp.FIX_AUTO, 2, nfp.FIX_AUTO)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0)
    module.forward(torch.tensor([.5, .26])).backward()
    optimizer.step()
    assert np.allclose(module._parameters["param"].detach(), [[.2513 - .5, -.52 - .25]])


def test_batch_norm_in_evaluation():
    cfg = configs(["running_mean", "running_var"], nfp.FIX_NONE, 0, 2)
    for each in cfg.values():
        each["scale"] = torch.tensor([0])  # int64
    module = nnf.BatchNorm1d_fix(2, affine=False, momentum=1.0, nf_fix_params=cfg)
    module(torch.tensor([[.2513, 1.], [.2513, 2.], [.2513, 3.]]))
    module.eval()
    for each in cfg.values():
        each["method"].data.fill_(nfp.FIX_AUTO)
    module(torch.zeros(1, 2))
    assert np.allclose(module.running_mean, [0., 2.])  # R = 2, a step of 1
    assert np.allclose(module._buffers["running_mean"], [.2513, 2.])
    assert np.isclose(cfg["running_mean"]["scale"], 2)


def test_state_of_fixed_scales():
    class Net(nnf.FixTopModule):
        def __init__(self):
            super().__init__()
            self.fc = nnf.Linear_fix(3, 2, nf_fix_params=configs(["weight", "bias"], 1))

        def forward(self, x):
            return self.fc(x)

    first, second = Net(), Net()
    with torch.no_grad():
        first.fc._parameters["weight"] *= .2
    x = torch.randn(4, 3)
    out = first(x)
    second.load_state_dict(first.state_dict())
    second.set_fix_method(nfp.FIX_FIXED)
    assert torch.equal(second(x), out)
    assert np.isclose(second.fc.nf_fix_params["weight"]["scale"],
                      first.fc.nf_fix_params["weight"]["scale"])
    state = second.fix_state_dict()
    cfg = nfp.utils._generate_default_fix_cfg(["w"], method=1)["w"]
    assert np.allclose(state["fc.weight"],
                       nfpq.quantize_cfg(second.fc._parameters["weight"], **cfg)[0].detach())


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], check=True,
                          capture_output=True, text=True).stdout


def test_the_package_under_its_own_name():
    """Modules that an old script imports under the old name are the same registry and scopes."""
    assert run("""
import sys
from pathlib import Path
import emu.compat.nics_fix_pt
sys.modules["nics_fix_pt"] = emu.compat.nics_fix_pt
import nics_fix_pt as nfp
import nics_fix_pt.nn_fix as nnf
from nics_fix_pt import NAR, nn_fix, quant as nfpq
from nics_fix_pt.utils import fix_kwargs_scope
from nics_fix_pt.fix_modules import FixTopModule, register_fix_module
import torch
NAR.Bilinear
class Mine(torch.nn.Linear): pass
register_fix_module(Mine)
cfg = nfp.utils._generate_default_fix_cfg(["weight", "bias"], method=1)
with fix_kwargs_scope(Mine_fix={"nf_fix_params": cfg}):
    layer = nnf.Mine_fix(3, 2)
model = torch.nn.Sequential(layer)
FixTopModule.set_fix_method(model, nfp.FIX_NONE)
print(layer.nf_fix_params["weight"]["method"].item(), nn_fix.Bilinear_fix.__name__)
assert nfp.fix_modules.FixTopModule is nnf.FixTopModule is nfp.FixTopModule
""") == "0 Bilinear_fix\n"


def test_an_old_script_as_it_is(tmp_path):
    script = tmp_path / "old.py"
    (tmp_path / "beside.py").write_text("")
    script.write_text("import beside, sys, nics_fix_pt as nfp, nics_fix_pt.nn_fix as nnf\n"
                      "from nics_fix_pt import quant\n"
                      "print(sys.argv[1:], nfp.__version__, nnf.Linear_fix.__name__,\n"
                      "      quant is nfp.quant, __name__)\n")
    done = subprocess.run([sys.executable, "-m", "emu.compat.nics_fix_pt", script, "--lr", "1"],
                          check=True, capture_output=True, text=True)
    assert done.stdout == "['--lr', '1'] 0.4.0 Linear_fix True __main__\n"
    assert importlib.util.find_spec("nics_fix_pt") is None


def test_the_guide_says_what_happens():
    results = doctest.testfile(str(Path(__file__).parents[1] / "docs" / "migrating.md"), False)
    assert results.attempted >= 8 and not results.failed


def test_a_script_that_is_not_there_is_named(tmp_path):
    done = subprocess.run([sys.executable, "-m", "emu.compat.nics_fix_pt", tmp_path / "no.py"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path / 'no.py'}: no such script; give the path of a Python file\n"
