"""The constants of nics_fix_pt: how a datum is quantised, and how AUTO chooses its range."""


class QuantizeMethod:
    """Leave a datum as it is, choose its range from each tensor, or use the range that is kept."""

    FIX_NONE = 0
    FIX_AUTO = 1
    FIX_FIXED = 2


class RangeMethod:
    """What of a tensor decides its range under FIX_AUTO."""

    RANGE_MAX = 0
    RANGE_3SIGMA = 1
    RANGE_MAX_TENPERCENT = 2
    RANGE_SWEEP = 3


FIX_NONE, FIX_AUTO, FIX_FIXED = (
    QuantizeMethod.FIX_NONE, QuantizeMethod.FIX_AUTO, QuantizeMethod.FIX_FIXED)
RANGE_MAX, RANGE_3SIGMA, RANGE_MAX_TENPERCENT, RANGE_SWEEP = (
    RangeMethod.RANGE_MAX, RangeMethod.RANGE_3SIGMA, RangeMethod.RANGE_MAX_TENPERCENT,
    RangeMethod.RANGE_SWEEP)
