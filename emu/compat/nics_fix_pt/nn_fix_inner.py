"""The torch modules that have a fix module from the start."""

import torch

from emu.compat.nics_fix_pt.modules import register_fix_module, registry

for _cls in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d):
    register_fix_module(_cls)

BatchNorm1d_fix, BatchNorm2d_fix = registry["BatchNorm1d_fix"], registry["BatchNorm2d_fix"]
Conv2d_fix, Linear_fix = registry["Conv2d_fix"], registry["Linear_fix"]
