"""The names of `wageubn` (PannenetsF/wageubn 1.1.0), on the hardware of `emu.nn`.

`function` has its quantisers and layers, `config` their widths. `k` bits have a last bit of
2^-(k-1). What failed there works here: `weightquant`, `errquant`, `Linear`, `Config()`, zero
tensors; names of its README that its code lacks are aliases.
"""

from emu.compat.wageubn import config, function

__all__ = ["config", "function"]
