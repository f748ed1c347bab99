#include "emu.h"

#define LFSR_MASK 0x80200003u

/* A value of 65 bits, two's complement: any code of 64 bits, signed or not. `huge` where it has
 * more; its low bits are then still right. */
struct value {
    uint64_t bits;
    int negative;
    int huge;
};

static int64_t as_signed(uint64_t bits)
{
    return bits <= INT64_MAX ? (int64_t)bits : -(int64_t)~bits - 1;
}

static uint64_t low_mask(int width)
{
    return width >= 64 ? UINT64_MAX : ((uint64_t)1 << width) - 1;
}

/* The low bits as a code of the format. */
static int64_t wire(uint64_t bits, const struct emu_format *form)
{
    uint64_t mask = low_mask(form->width), sign = (mask >> 1) + 1;
    bits &= mask;
    return as_signed(form->is_signed && bits & sign ? bits | ~mask : bits);
}

static int clamp(int x, int lo, int hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

/* floor(x / 2^n), n >= 0. */
static uint64_t right(uint64_t bits, int negative, int n)
{
    uint64_t fill = negative ? UINT64_MAX : 0;
    if (n == 0)
        return bits;
    return n > 63 ? fill : bits >> n | fill << (64 - n);
}

/* Whether floor(x / 2^n), n >= 1, becomes floor + 1. */
static int round_up(struct value x, int n, const struct emu_cast *to, uint32_t rand)
{
    int half = right(x.bits, x.negative, n - 1) & 1;
    int lower = (x.bits & low_mask(n - 1)) != 0;
    int odd = right(x.bits, x.negative, n) & 1;
    int lost = half || lower, above = half && lower, tie = half && !lower;

    switch (to->rounding) {
    case EMU_TO_POS: return lost;
    case EMU_TO_ZERO: return lost && x.negative;
    case EMU_TO_AWAY: return lost && !x.negative;
    case EMU_TO_ODD: return lost && !odd;
    case EMU_TIES_NEG: return above;
    case EMU_TIES_POS: return above || tie;
    case EMU_TIES_ZERO: return above || (tie && x.negative);
    case EMU_TIES_AWAY: return above || (tie && !x.negative);
    case EMU_TIES_EVEN: return above || (tie && odd);
    case EMU_TIES_ODD: return above || (tie && !odd);
    case EMU_STOCHASTIC: {
        /* the highest rand_bits of the rest, and rand, carry out */
        int drop = n - to->rand_bits;
        uint64_t mask = low_mask(to->rand_bits);
        uint64_t rest = drop >= 0 ? right(x.bits, x.negative, drop) : x.bits << -drop;
        return (rest & mask) + (rand & mask) > mask;
    }
    default: return 0;
    }
}

static struct value shifted(struct value x, int n, const struct emu_cast *to, uint32_t rand)
{
    struct value y = x;
    if (n > 0) {
        y.bits = right(x.bits, x.negative, n) + (uint64_t)round_up(x, n, to, rand);
        y.negative = x.negative && y.bits != 0;
    } else if (n < 0) {
        y.bits = n <= -64 ? 0 : x.bits << -n;
        y.huge = right(y.bits, y.negative, -n) != x.bits;
    }
    return y;
}

static int64_t fit(struct value x, const struct emu_cast *to, int *overflowed)
{
    int wide = to->format.is_signed;
    uint64_t hi = low_mask(to->format.width) >> wide;
    uint64_t lo = !wide ? 0 : to->overflow == EMU_SAT_SYM ? 0 - hi : ~hi;
    int inside = !x.huge && (x.negative ? wide && x.bits >= lo : x.bits <= hi);

    if (overflowed)
        *overflowed = !inside;
    if (inside || to->overflow == EMU_WRAP)
        return wire(x.bits, &to->format);
    if (to->overflow == EMU_SAT_ZERO)
        return 0;
    return as_signed(x.negative ? lo : hi);
}

static int64_t cast(struct value x, int frac, const struct emu_cast *to, uint32_t rand,
                    int *overflowed)
{
    /* beyond these ends nothing changes: all is sign, or nothing is left */
    int n = clamp(frac - to->format.frac, -64, 128);
    return fit(shifted(x, n, to, rand), to, overflowed);
}

int64_t emu_cast(int64_t code, int frac, const struct emu_cast *to, uint32_t rand, int *overflowed)
{
    struct value x = {(uint64_t)code, code < 0, 0};
    return cast(x, frac, to, rand, overflowed);
}

int64_t emu_cast_unsigned(uint64_t code, int frac, const struct emu_cast *to, uint32_t rand,
                          int *overflowed)
{
    struct value x = {code, 0, 0};
    return cast(x, frac, to, rand, overflowed);
}

/* The MAC */

void emu_load(const struct emu_mac *mac, struct emu_sum *sum, int64_t bias)
{
    sum->acc = sum->outer = wire((uint64_t)bias, mac->tile ? &mac->outer.format : &mac->acc.format);
    sum->products = 0;
}

int64_t emu_result(const struct emu_mac *mac, const struct emu_sum *sum)
{
    return mac->tile ? sum->outer : sum->acc;
}

int emu_step(const struct emu_mac *mac, struct emu_sum *sum, const int64_t *a, const int64_t *b,
             int count, int last)
{
    int frac = mac->acc.format.frac, overflowed = 0, lost, k;
    int64_t total;

    if (mac->tile && sum->products == 0) {
        sum->acc = 0;
        if (mac->reload)
            sum->acc = emu_cast(sum->outer, mac->outer.format.frac, &mac->acc, 0, &overflowed);
    }
    total = sum->acc;
    for (k = 0; k < count; k++) {
        int64_t product = wire((uint64_t)a[k], &mac->a) * wire((uint64_t)b[k], &mac->b);
        total += emu_cast(product, 0, &mac->product, 0, &lost);
        overflowed |= lost;
    }
    sum->acc = emu_cast(total, frac, &mac->acc, 0, &lost);
    overflowed |= lost;
    if (!mac->tile)
        return overflowed;
    sum->products += count;
    if (last || sum->products == mac->tile) {
        int64_t spilled = emu_cast(sum->acc, frac, &mac->outer, 0, &lost);
        overflowed |= lost;
        total = mac->reload ? spilled : sum->outer + spilled;
        sum->outer = emu_cast(total, mac->outer.format.frac, &mac->outer, 0, &lost);
        overflowed |= lost;
        sum->products = 0;
    }
    return overflowed;
}

int64_t emu_dot(const struct emu_mac *mac, const int64_t *a, const int64_t *b, size_t count,
                int64_t bias, size_t *overflows)
{
    struct emu_sum sum;
    size_t k, lost = 0, lanes = (size_t)mac->lanes;

    emu_load(mac, &sum, bias);
    for (k = 0; k < count; k += lanes) {
        size_t left = count - k, now = left < lanes ? left : lanes;
        lost += (size_t)emu_step(mac, &sum, a + k, b + k, (int)now, left <= lanes);
    }
    if (overflows)
        *overflows = lost;
    return emu_result(mac, &sum);
}

uint32_t emu_lfsr(uint32_t *state, int rand_bits)
{
    uint32_t s = *state ? *state : 1, rand = 0;
    int i;

    for (i = 0; i < rand_bits; i++) {
        uint32_t bit = s & 1;
        rand |= bit << i;
        s = s >> 1 ^ (bit ? LFSR_MASK : 0);
    }
    *state = s;
    return rand;
}
