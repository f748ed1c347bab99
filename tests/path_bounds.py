"""For each condition of `paths.candidates`, operands on its bound and one beyond it.

A row is (path, hardware, operands that the path takes, operands that it does not take): operands
are (codes of a, codes of b), each from the least to the greatest. The start values are the rails
and 0; where they decide, rows of `STARTS` give (path, hardware, operands, start values that the
path takes, start values that it does not). K is 5 unless the hardware says otherwise.
"""

HALF, HUGE = 2**15, 2**31
BYTE, SHORT, BIT = (-128, 127), (-HALF, HALF - 1), (0, 1)
SMALL = [((-8, 7), (-8, 7))]
DROPS = "product: {}, acc: {}"

OPERANDS = [
    # int16 lanes: a product has at most W bits, the rails are int16's, every step has one product
    ("step16", "acc: s16 sat", [((0, 217), (0, 151)), ((-217, 0), (0, 151))],
     [((0, 256), (0, 128)), ((-256, 0), (0, 128))]),
    ("step16", "acc: s12 sat", [((0, 23), (0, 89)), ((-89, 0), (0, 23))],
     [((0, 32), (0, 64)), ((0, 32), (-64, 0))]),
    ("step16", "acc: s2 sat", [(BIT, BIT), ((-1, 0), BIT)], [((-2, 0), BIT), (BIT, (0, 2))]),
    ("step16", DROPS.format("s20f2", "s16f2 sat"), [((0, 8191), BIT), (BIT, (0, 8191))],
     [((0, 8192), BIT), (BIT, (0, 8192))]),
    ("step16", "acc: s16 sat, lanes: 2", [], SMALL),
    ("step16", "acc: s16 sat_sym", [], SMALL), ("step16", "acc: s16 sat_zero", [], SMALL),
    ("step16", "acc: u16 sat", [], SMALL), ("step16", "acc: s17 sat", [], SMALL),
    ("step16", DROPS.format("s8f-1", "s12f-1 sat"), [], SMALL),
    # the same after dropping bits: no product with the constant added is larger than int16
    ("step16_drop", DROPS.format("s20f-1", "s16f-1 sat"), [((0, 6553), (0, 5))],
     [((0, 258), (0, 127))]),
    ("step16_drop", DROPS.format("s20f-1 ties_pos", "s16f-1 sat"), [((-6553, 0), (0, 5))],
     [((-258, 0), (0, 127))]),
    ("step16_drop", DROPS.format("s8f-1 ties_even", "s16f-1 sat"), [], SMALL),
    ("step16_drop", DROPS.format("s8f-1", "s15f-1 sat"), [], SMALL),
    ("step16_drop", DROPS.format("s8f-1", "s16f-1 sat_sym"), [], SMALL),
    ("step16_drop", DROPS.format("s8f-1", "s16f-1 sat, lanes: 2"), [], SMALL),
    # int32 lanes: the accumulator and one step fit int32
    ("step32", "acc: s31 sat", [((0, HALF - 1), (0, HALF + 1)), ((1 - HALF, 0), (0, HALF + 1))],
     [((0, HALF), (0, HALF)), ((-HALF, 0), (0, HALF))]),
    ("step32", "acc: s31 sat_sym", [((1 - HALF, 0), (0, HALF + 1))], []),
    ("step32", "acc: u30 sat", [((0, HALF), (0, HALF))], [((0, 812825), (0, 1321))]),
    ("step32", "acc: s31 sat, lanes: 2", [((0, 256999), (0, 2089))], [((0, 2**14), (0, HALF))]),
    ("step32", "acc: s2 sat", [((0, HUGE - 3), BIT)], [((0, HUGE - 2), BIT), ((0, HUGE), BIT)]),
    ("step32", "acc: s31 sat_zero", [], SMALL),
    ("step32_round", DROPS.format("s32f-3 to_pos", "s29f-3 sat"), [((0, HUGE - 9), BIT)],
     [((0, HUGE - 8), BIT), ((0, HUGE), (0, 2))]),
    ("step32_round", DROPS.format("s32f-3 to_zero", "s29f-3 sat"), [((9 - HUGE, 0), BIT)],
     [((8 - HUGE, 0), BIT)]),
    # int32's own rails: with the zeros of a scaled accumulator both operands have 16 bits
    ("step32_native", "acc: s32 sat", [(SHORT, SHORT)], [((0, HALF), BIT), (BIT, (0, HALF))]),
    ("step32_native", "acc: s31 sat", [(SHORT, (-HALF // 2, 0)), ((0, HALF // 2 - 1), SHORT)],
     [(SHORT, SHORT), (SHORT, (0, HALF // 2))]),
    ("step32_native", "acc: s20 sat", [(BYTE, (-2048, 2047)), ((-2048, 2047), BYTE)],
     [(BYTE, (-2049, 0)), ((0, 2048), BYTE)]),
    ("step32_native", DROPS.format("s20f2", "s20f2 sat"), [((-32, 31), (-2048, 2047))],
     [((-33, 0), (-2048, 2047))]),
    ("step32_native", "acc: s4 sat", [(BIT, BIT)], [(BIT, (0, 2)), ((-3, 0), BIT)]),
    ("step32_native", "acc: s3 sat", [], [(BIT, BIT)]),
    ("step32_native", "acc: s33 sat", [], SMALL), ("step32_native", "acc: u20 sat", [], SMALL),
    ("step32_native", "acc: s20 sat, lanes: 2", [], SMALL),
    ("step32_native", "acc: s20 sat_sym", [], SMALL),
    ("step32_native", "acc: s20 sat_zero", [], SMALL),
    ("step32_native", DROPS.format("s8f-1", "s20f-1 sat"), [], SMALL),
    # vpdpwssd multiplies signed 16-bit operands
    ("step32_vnni", "acc: s31 sat", [((0, HALF - 1), (0, HALF - 1))], [((-HALF, 0), (-HALF, 0))]),
    ("step32_vnni", "acc: u30 sat", [((-HALF, 0), (-HALF, 0)), ((0, 7), (0, HALF - 1))],
     [((-HALF - 1, 0), (0, 7)), ((0, 7), (0, HALF))]),
    ("step32_vnni_drop", DROPS.format("s32f-1 ties_pos", "s30f-1 sat"), [((-HALF, 0), SHORT)],
     [((-HALF - 1, 0), (0, 7)), ((0, 7), (0, HALF))]),
    ("step32_vnni_drop", DROPS.format("s32f-1 ties_even", "s30f-1 sat"), [], [(SHORT, SHORT)]),
    # float64 lanes: every sum is an integer of at most 2^53, every operand an int32
    ("step64f", "acc: s53 sat", [((0, 2**26), (0, 2**26)), ((-(2**26), 0), (0, 2**26))],
     [((0, 14586017), (0, 308761441))]),
    ("step64f", "acc: s40 sat", [((-HUGE, HUGE - 1), (-7, 7))],
     [((0, HUGE), (-7, 7)), ((-7, 7), (0, HUGE))]),
    ("step64f", DROPS.format("s16f-1", "s40f-1 sat"), [], SMALL),
    # the same in halves around the middle of the rails
    ("step64f_range", "acc: s52 sat", [((0, 2**26), (0, 2**25)), ((-(2**26), 0), (0, 2**25))],
     [((0, 2**26 + 1), (0, 2**25))]),
    ("step64f_range", "acc: u52 sat", [((-(2**26), 0), (0, 2**25))],
     [((0, 2**26 + 1), (0, 2**25))]),
    ("step64f_range", "acc: s52 sat_sym", [((0, 2**26), (0, 2**25))],
     [((0, 2**26 + 1), (0, 2**25))]),
    ("step64f_range", "acc: s40 sat", [((-HUGE, HUGE - 1), (-7, 7))],
     [((0, HUGE), (-7, 7)), ((-7, 7), (0, HUGE))]),
    # int64 lanes: of products that are rounded, none leaves int64 with its constants added
    ("step64", "acc: s62 sat", [((0, 2 * HUGE - 1), (-(2**30), 2**30 - 1))], []),
    ("step64", "acc: s62 sat_zero", [], [(BYTE, BYTE)]),
    ("step64_round", DROPS.format("s3f-62 to_pos", "s9f-62 sat"), [((0, HUGE + 1), (0, HUGE - 1))],
     [((0, HUGE), (-HUGE, 0))]),
    ("step64_round", DROPS.format("s40f-30 to_pos", "s34f-30 sat"),
     [((0, 2 * HUGE - 1), (-HUGE, 0))], []),
    ("step64_round", DROPS.format("s40f-31 to_pos", "s33f-31 sat"), [],
     [((0, 2 * HUGE - 1), (-HUGE, 0))]),
    # thin: int32 holds the accumulator after any step, whatever the operands
    ("thin32", "acc: s31 sat", [((0, HALF - 1), (0, HALF + 1)), ((1 - HALF, 0), (0, HALF + 1))],
     [((0, HALF), (0, HALF)), ((-HALF, 0), (0, HALF))]),
    ("thin32", "acc: s31 sat_sym", [((1 - HALF, 0), (0, HALF + 1))], []),
    ("thin32", "acc: u30 sat", [((0, HALF), (0, HALF))], [((0, 812825), (0, 1321))]),
    ("thin32", "acc: s31 sat, lanes: 2", [((0, 256999), (0, 2089))], [((0, 2**14), (0, HALF))]),
    ("thin32", "acc: s2 sat", [((0, HUGE - 3), BIT), ((0, HUGE), (0, 0))], [((0, HUGE - 2), BIT)]),
    ("thin32", DROPS.format("s20f2", "s20f2 sat"), [(BYTE, BYTE)], []),
    ("thin32", "acc: s32", [(BYTE, BYTE), ((0, 2 * HUGE - 1), (-(2**30), 2**30 - 1))], []),
    ("thin64", "acc: s62 sat", [((0, 2 * HUGE - 1), (-(2**30), 2**30 - 1))], []),
    ("thin64", "acc: s62", [((0, 2 * HUGE - 1), (-(2**30), 2**30 - 1))], []),
    *[(path, hardware, [], SMALL) for path in ("thin32", "thin64") for hardware in (
        "acc: s9 sat_zero", DROPS.format("s16f-1", "s17f-1 sat"), "product: s4, acc: s17 sat")],
    # tracked: signed 8-bit codes of a, any 8-bit codes of x, more than one block of k
    ("tracked", "acc: s17 sat, K: 17", [(BYTE, BYTE), (BYTE, (0, 255))],
     [((-129, 0), (0, 9)), ((0, 128), (0, 9)), (BYTE, (0, 256)), (BYTE, (-1, 128)),
      (BYTE, (-129, 0))]),
    ("tracked", "acc: s17 sat, K: 16", [], [(BYTE, BYTE)]),
    ("tracked", DROPS.format("s16f-1", "s17f-1 sat, K: 33"), [], [(BYTE, BYTE)]),
    ("tracked", "acc: s31 sat, K: 33", [(BYTE, BYTE)], []),
    ("tracked", "acc: s32 sat, K: 33", [], [(BYTE, BYTE)]),
    ("tracked", "acc: s31 sat, K: 33, lanes: 65535", [((-128, 0), BYTE)], []),
    ("tracked", "acc: s31 sat, K: 33, lanes: 65536", [], [((-128, 0), BYTE)]),
    # exact sums: the operands that an instruction takes
    ("int_mm", "acc: s32", [(BYTE, BYTE)],
     [((-129, 0), BIT), (BIT, (-129, 0)), ((0, 128), BIT), (BIT, (0, 128))]),
    ("int_mm", "acc: s32, K: 0", [], [(BYTE, BYTE)]),
    ("int_mm", DROPS.format("s20f1", "s32f1"), [((-64, 63), BYTE)],
     [((0, 64), BYTE), ((-65, 0), BYTE)]),
    ("quads", DROPS.format("s20f1", "s32f1"), [((-64, 63), BYTE)],
     [((0, 64), BYTE), ((-65, 0), BYTE)]),
    ("quads", "acc: s17", [(BYTE, BYTE), (BYTE, (0, 255)), (BYTE, (0, 128))],
     [(BYTE, (0, 256)), (BYTE, (-1, 128)), (BYTE, (-129, 0)), ((-129, 0), (0, 9)),
      ((0, 128), (0, 9))]),
    ("pairs", "acc: s32", [(SHORT, SHORT)],
     [((0, HALF), BIT), (BIT, (0, HALF)), ((-HALF - 1, 0), BIT), (BIT, (-HALF - 1, 0))]),
    ("sum32", "acc: s32", [((-HUGE, HUGE - 1), (-(2**30), 2**30))],
     [((0, HUGE), BIT), (BIT, (0, HUGE))]),
    ("sum64f", "acc: s40", [((-HUGE, HUGE - 1), (-7, 7))], [((0, HUGE), BIT), (BIT, (0, HUGE))]),
    ("sum64", "acc: s62", [((0, 2 * HUGE - 1), (-(2**30), 2**30 - 1))], []),
    ("sum32_round", DROPS.format("s32f-3 to_away", "s31f-3"), [((0, HUGE - 9), BIT)],
     [((0, HUGE - 8), BIT), ((0, HUGE), (0, 2))]),
    ("sum64_round", DROPS.format("s3f-62 ties_even", "s3f-62"), [((0, HUGE + 1), (0, HUGE - 1))],
     [((0, HUGE), (-HUGE, 0))]),
    # products that their cast changes are for the plain kernel
    ("sum64_round", DROPS.format("s8f-1 to_neg sat", "s20f-1"),
     [((0, 254), BIT), ((-256, 0), BIT)], [((0, 255), BIT), ((-257, 0), BIT)]),
    ("step64_round", DROPS.format("s8f-1 to_neg sat_sym", "s20f-1 sat"),
     [((0, 254), BIT), ((-254, 0), BIT)], [((0, 255), BIT), ((-255, 0), BIT)]),
]

UP, DOWN = (BIT, BIT), ((-1, 0), BIT)  # sums that rise or fall by at most 4 over K = 4
STARTS = [
    # modulo 2^32: an accumulator of up to 32 bits, or sums below 2^31
    *[(path, f"acc: {form}, K: 4", *row) for path in ("int_mm", "quads", "pairs", "sum32", "thin32")
      for form, *row in (("s32", UP, [HUGE - 1, -HUGE], []), ("u32", UP, [0, 2 * HUGE - 1], []),
                         ("s33", UP, [HUGE - 5], [HUGE - 4]),
                         ("s33", DOWN, [5 - HUGE], [4 - HUGE]))],
    ("sum32_round", DROPS.format("s16f-1 ties_odd", "s33f-1, K: 4"), ((0, 2), BIT),
     [HUGE - 5, 1 - HUGE], [HUGE - 4, -HUGE]),
    ("sum32_round", DROPS.format("s16f-1 ties_odd", "s32f-1, K: 4"), ((0, 2), BIT),
     [HUGE - 1, -HUGE], []),
    # float64: sums of at most 2^53
    ("sum64f", "acc: s55, K: 4", UP, [2**53 - 4, -(2**53)], [2**53 - 3, -(2**53) - 1]),
    ("sum64f", "acc: s55, K: 4", DOWN, [2**53, 4 - 2**53], [2**53 + 1, 3 - 2**53]),
    # no prefix leaves the range, whatever happens to one that does
    ("sum64", "acc: s8 sat, K: 4", UP, [123, -128], [124]),
    ("sum64", "acc: s8 sat, K: 4", DOWN, [127, -124], [-125]),
    ("sum64", "acc: s8 sat_sym, K: 4", DOWN, [127, -123], [-124]),
    ("sum64", "acc: s8 sat_sym, K: 4", UP, [123, -127], [124, -128]),
    ("sum64", "acc: s8 sat_zero, K: 4", UP, [123, -128], [124]),
    ("sum64", "acc: u8 sat, K: 4", UP, [0, 251], [252]),
    ("sum64", "acc: s8, K: 4", UP, [127, -128], []),
    ("thin64", "acc: s8 sat_zero, K: 4", UP, [123, -128], [124]),
    ("thin32", "acc: s8 sat, K: 4", UP, [127, -128], []),
    ("quads", "acc: s33 sat, K: 4", UP, [HUGE - 5], [HUGE - 4]),
    ("sum32_round", DROPS.format("s16f-1 ties_odd", "s20f-1 sat, K: 4"), ((0, 2), BIT),
     [2**19 - 5], [2**19 - 4]),
]
