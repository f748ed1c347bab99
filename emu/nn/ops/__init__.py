"""The operations of `emu.nn.functions`: each takes a layer's hardware, then what torch's takes."""
