"""The flows of nics_fix_pt's examples, as programs: `mnist` and `cifar`."""
