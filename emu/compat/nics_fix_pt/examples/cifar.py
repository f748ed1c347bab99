"""A VGG-like network of nine convolutions trained with quantised data and, if asked, gradients.

    python -m emu.compat.nics_fix_pt.examples.cifar --data cifar10:DIR --save-dir runs/nfp

Without CIFAR-10's files `--data patches` generates images of ten classes. Two policies for batch
norm: all data FIX_AUTO in training and FIX_FIXED in tests, or (`--bn-policy evaluation`, for few
bits) running statistics in float in training and FIX_AUTO in tests.
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

# The convolutions: channels in widths of the network, and the kernel; "pool" halves the image.
PLAN = [(1, 3), (1, 3), "pool", (2, 3), (2, 3), "pool", (4, 3), (4, 1), (4, 3), (4, 1), (2, 1)]
STATISTICS = "running_mean", "running_var"


class Net(nnf.FixTopModule):
    """Nine convolutions with batch norm and ReLU; the input, every convolution, every ReLU and the
    logits are fixed, twenty activations in all.
    """

    def __init__(self, channels: int, args: argparse.Namespace):
        super().__init__()
        self.args = args
        self.fix_input = self._activation()
        layers = []
        for step in PLAN:
            if step == "pool":
                layers.append(torch.nn.MaxPool2d(2))
                continue
            width, kernel = step[0] * args.width, step[1]
            layers.append(torch.nn.Sequential(
                nnf.Conv2d_fix(channels, width, kernel, padding=kernel // 2,
                               **self._configs("weight", "bias", mac=True)),
                self._activation(), self._norm(width), torch.nn.ReLU(), self._activation()))
            channels = width
        self.layers = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1),
                                          torch.nn.Flatten())
        self.fc = nnf.Linear_fix(channels, 10, **self._configs("weight", "bias", mac=True))
        self.fix_fc = self._activation()

    def _configs(self, *names: str, mac: bool = False, statistics: tuple = ()) -> dict:
        args = self.args
        data = configs((*names, *statistics), args.bitwidth_data, range_method=args.range_method,
                       **({"mac": args.mac} if mac and args.mac else {}))
        grad = configs(names, args.bitwidth_grad, range_method=args.grad_range_method)
        return {"nf_fix_params": data, "nf_fix_params_grad": grad if args.fix_grad else None}

    def _activation(self):
        return nnf.Activation_fix(**self._configs("activation", mac=True))

    def _norm(self, width: int):
        if self.args.float_bn:
            return torch.nn.BatchNorm2d(width)
        return nnf.BatchNorm2d_fix(width, **self._configs("weight", "bias", statistics=STATISTICS))

    def forward(self, x):
        return self.fix_fc(self.fc(self.layers(self.fix_input(x))))


def set_training(model: Net, args: argparse.Namespace) -> None:
    """The methods of training by the policy."""
    norm = {"weight": nfp.FIX_AUTO, "bias": nfp.FIX_AUTO, **dict.fromkeys(STATISTICS, nfp.FIX_NONE)}
    model.set_fix_method(nfp.FIX_AUTO, {"BatchNorm2d_fix": norm}
                         if args.bn_policy == "evaluation" else None)
    model.set_fix_method(nfp.FIX_AUTO, grad=True)


def set_testing(model: Net, args: argparse.Namespace) -> None:
    """The methods of tests by the policy."""
    norm = {"weight": nfp.FIX_FIXED, "bias": nfp.FIX_FIXED,
            **dict.fromkeys(STATISTICS, nfp.FIX_AUTO)}
    model.set_fix_method(nfp.FIX_FIXED, {"BatchNorm2d_fix": norm}
                         if args.bn_policy == "evaluation" else None)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save-dir", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--data", default="patches", help="patches or cifar10:DIR")
    parser.add_argument("--epoch", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--test-batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.05, help="halves every ten epochs")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--print-freq", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--width", type=int, default=16, help="channels of the first layers")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--evaluate", action="store_true", help="test the checkpoint alone")
    parser.add_argument("--pretrained", type=Path, help="a checkpoint to begin with")
    parser.add_argument("--float-bn", action="store_true", help="batch norm in float")
    parser.add_argument("--bn-policy", choices=("training", "evaluation"), default="training")
    parser.add_argument("--fix-grad", action="store_true", help="quantise gradients too")
    parser.add_argument("--range-method", type=int, choices=range(4), default=0)
    parser.add_argument("--grad-range-method", type=int, choices=range(4), default=0)
    parser.add_argument("--bitwidth-data", type=int, default=8)
    parser.add_argument("--bitwidth-grad", type=int, default=16)
    parser.add_argument("--mac", help='run the layers on this MAC, such as "{acc: s24 sat}"')
    parser.add_argument("--limit", type=int, help="use the first so many images")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the flow; returns the accuracies of the fixed and of the float model."""
    args = options(argv)
    torch.manual_seed(args.seed)
    training, test = load(args.data, args.limit)
    model = Net(training.images.shape[1], args)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, args.momentum,
                                weight_decay=args.weight_decay)
    checkpoint = args.save_dir / "checkpoint.pt"
    begin = 0
    if args.pretrained:
        model.load_state_dict(torch.load(args.pretrained)["model"], strict=False)
    if args.resume or args.evaluate:
        if not checkpoint.exists():
            raise SystemExit(f"{checkpoint}: is not there; run without --resume and --evaluate "
                             "first")
        kept = torch.load(checkpoint)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        begin = kept["epoch"]
    rows = {}
    for epoch in range(begin, begin if args.evaluate else args.epoch):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * 0.5**(epoch // 10)
        set_training(model, args)
        generator = torch.Generator().manual_seed(args.seed + epoch)  # so a resumed run is the same
        train(model, optimizer, training, args.batch_size, generator, args.print_freq,
              f"epoch {epoch + 1}")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                 "epoch": epoch + 1}
        write(checkpoint, lambda path, state=state: torch.save(state, path))
    set_testing(model, args)
    rows["fixed"] = accuracy(model, test, args.test_batch_size)
    kept = model.get_fix_configs(data_only=True)
    write(args.save_dir / "fix_config.yaml", lambda path: path.write_text(yaml.safe_dump(kept)))
    model.set_fix_method(nfp.FIX_NONE)
    rows["float"] = accuracy(model, test, args.test_batch_size)
    show(f"{args.data}, {args.bitwidth_data} bits", rows, model.clipped_counts())
    out.print(f"checkpoint and configurations in {args.save_dir}")
    return rows


if __name__ == "__main__":
    main()
