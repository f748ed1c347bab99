"""A multi-layer perceptron trained with quantised data, tested, dumped, reloaded, tested again.

    python -m emu.compat.nics_fix_pt.examples.mnist --data mnist:DIR --epochs 1

FIX_AUTO in training, FIX_FIXED in tests; then the float model, and the fixed one again from the
configurations in the file, which must be as accurate as before. With `--mac "{acc: s16 sat}"` the
layers compute on the integer engine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

import emu.compat.nics_fix_pt as nfp
import emu.compat.nics_fix_pt.nn_fix as nnf
from emu.compat.nics_fix_pt.examples.common import accuracy, configs, load, out, show, train, write


class Net(nnf.FixTopModule):
    """Two linear layers; activations are fixed at the input, before the ReLU and at the logits."""

    def __init__(self, inputs: int, hidden: int, bits: int, grad_bits: int, mac: str | None):
        super().__init__()
        more = {} if mac is None else {"mac": mac}

        def activation():
            return nnf.Activation_fix(nf_fix_params=configs(["activation"], bits, **more),
                                      nf_fix_params_grad=configs(["activation"], grad_bits))

        def linear(inputs: int, outputs: int):
            names = "weight", "bias"
            return nnf.Linear_fix(inputs, outputs, nf_fix_params=configs(names, bits, **more),
                                  nf_fix_params_grad=configs(names, grad_bits))

        self.fix_input, self.fc1, self.fix_fc1 = activation(), linear(inputs, hidden), activation()
        self.fc2, self.fix_fc2 = linear(hidden, 10), activation()

    def forward(self, x):
        x = self.fix_fc1(self.fc1(self.fix_input(x.flatten(1)))).relu()
        return self.fix_fc2(self.fc2(x))


def set_methods(model: Net, method: int) -> None:
    """One method for all data and all gradients."""
    model.set_fix_method(method)
    model.set_fix_method(method, grad=True)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="digits or mnist:DIR")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--test-batch-size", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log-interval", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--bitwidth", type=int, default=4, help="of data")
    parser.add_argument("--bitwidth-grad", type=int, default=8, help="of gradients")
    parser.add_argument("--float", action="store_true", help="train without quantisation")
    parser.add_argument("--mac", help='run the layers on this MAC, such as "{acc: s16 sat}"')
    parser.add_argument("--limit", type=int, help="use the first so many images")
    parser.add_argument("--config", type=Path, default=Path("mnist_fix_config.yaml"),
                        help="where the configurations are dumped")
    parser.add_argument("--save", type=Path, help="where the fixed state is saved")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the flow; returns the accuracies and exits with 1 where the reloaded one is another."""
    args = options(argv)
    torch.manual_seed(args.seed)
    training, test = load(args.data, args.limit)
    model = Net(training.images[0].numel(), args.hidden, args.bitwidth, args.bitwidth_grad,
                args.mac)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, args.momentum)
    generator = torch.Generator().manual_seed(args.seed)
    rows = {}
    for epoch in range(1, args.epochs + 1):
        set_methods(model, nfp.FIX_NONE if args.float else nfp.FIX_AUTO)
        train(model, optimizer, training, args.batch_size, generator, args.log_interval,
              f"epoch {epoch}")
        if not args.float:
            set_methods(model, nfp.FIX_FIXED)
        name = "float" if args.float else "fixed"
        rows[name] = accuracy(model, test, args.test_batch_size)
        out.print(f"epoch {epoch}: {name} {rows[name]:.2f} %")
    if not args.float:
        rows |= reloaded(model, test, args)
    show(f"{args.data}, {args.bitwidth} bits", rows, model.clipped_counts())
    if rows.get("reloaded", 0) != rows.get("fixed", 0):
        raise SystemExit("the reloaded model is another: its accuracy differs")
    return rows


def reloaded(model: Net, test, args: argparse.Namespace) -> dict[str, float]:
    """Dump the configurations, test in float, load them into the model and test it fixed."""
    model.print_fix_configs()
    kept = {"data": model.get_fix_configs(data_only=True),
            "grad": model.get_fix_configs(grad=True, data_only=True)}
    write(args.config, lambda path: path.write_text(yaml.safe_dump(kept)))
    if args.save:
        write(args.save, lambda path: torch.save(model.fix_state_dict(), path))
    set_methods(model, nfp.FIX_NONE)
    rows = {"float": accuracy(model, test, args.test_batch_size)}
    kept = yaml.safe_load(args.config.read_text())
    model.load_fix_configs(kept["data"])
    model.load_fix_configs(kept["grad"], grad=True)
    return rows | {"reloaded": accuracy(model, test, args.test_batch_size)}


if __name__ == "__main__":
    main()
