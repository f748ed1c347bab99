"""What stands before a master while a module computes, and how its scales move."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def called(inputs) -> tuple[object, Mapping]:
    """(the input, the overrides) of a call whose argument may be a dict."""
    if not isinstance(inputs, Mapping):
        return inputs, {}
    overrides = {key: value for key, value in inputs.items() if key != "inputs"}
    wrong = [key for key in overrides if not key.endswith("_fix")]
    if wrong:
        raise ValueError(f"inputs[{wrong[0]!r}]: beside 'inputs' a call takes '<name>_fix' and "
                         "'<name>_grad_fix'")
    return inputs["inputs"], overrides


class Shadow:
    """A tensor of which forward sees the quantised copy, until `close` ends that."""

    def __init__(self, owner: torch.nn.Module, leaf: str, master: torch.Tensor, out: torch.Tensor):
        self.owner, self.leaf, self.master, self.out = owner, leaf, master, out
        self.given = out.detach().clone() if leaf in owner._buffers else out

    @torch.no_grad()
    def close(self, module: torch.nn.Module) -> None:
        """Write a buffer back that forward changed, and only that: evaluation changes none."""
        now = self.owner._buffers.get(self.leaf, self.master)
        if now is self.master and not torch.equal(self.out, self.given):
            self.master.copy_(self.out)
        if self.owner is not module or now is not self.master:
            self.owner.__dict__.pop(self.leaf, None)


def moved(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`old`, with the device of `new`; a new tensor where torch cannot change a tensor so."""
    values = new if old.is_meta else old
    moved = values.detach().to(new.device, old.dtype)
    if not torch._has_compatible_shallow_copy_type(old, moved):
        return moved
    old.data = moved
    return old
