/* Which specs are legal: the rules of emu.number and emu.spec. */
#include "emu.h"

#define MAX_STEP (1 << 20)  /* lanes, block and tile */

const char *emu_check_format(const struct emu_format *form)
{
    if (form->width < 1 || form->width > 64)
        return "a format has 1 to 64 bits";
    if (form->frac < -512 || form->frac > 512)
        return "a format has -512 to 512 fraction bits";
    return (form->is_signed | 1) != 1 ? "is_signed is 0 or 1" : NULL;
}

const char *emu_check_cast(const struct emu_cast *to)
{
    const char *wrong = emu_check_format(&to->format);
    if (wrong)
        return wrong;
    if (to->rounding < 0 || to->rounding > EMU_STOCHASTIC)
        return "a rounding is 0 to 11";
    if (to->overflow < 0 || to->overflow > EMU_SAT_ZERO)
        return "an overflow is 0 to 3";
    if (to->overflow == EMU_SAT_SYM && to->format.is_signed && to->format.width < 2)
        return "sat_sym needs 2 bits or more; use sat";
    if (to->rounding != EMU_STOCHASTIC && to->rand_bits)
        return "rand_bits belong to stochastic rounding only";
    if (to->rounding == EMU_STOCHASTIC && (to->rand_bits < 1 || to->rand_bits > 32))
        return "stochastic rounding takes 1 to 32 bits, as in stochastic16";
    return NULL;
}

/* Ranges of intermediates; each operation is false where an end would leave int64. */
struct range {
    int64_t lo, hi;
};

static struct range codes(const struct emu_format *form)
{
    int64_t hi = (int64_t)(UINT64_MAX >> (64 - form->width) >> form->is_signed);
    struct range found = {form->is_signed ? -hi - 1 : 0, hi};
    return found;
}

static int times(struct range *x, int64_t factor)
{
    if (x->lo < INT64_MIN / factor || x->hi > INT64_MAX / factor)
        return 0;
    x->lo *= factor;
    x->hi *= factor;
    return 1;
}

static int times_power(struct range *x, int n)
{
    if (x->lo == 0 && x->hi == 0)
        return 1;
    return n < 63 && times(x, (int64_t)1 << n);
}

static int plus(struct range *x, struct range y)
{
    if (x->lo < INT64_MIN - y.lo || x->hi > INT64_MAX - y.hi)
        return 0;
    x->lo += y.lo;
    x->hi += y.hi;
    return 1;
}

static int64_t floor_power(int64_t x, int n)
{
    if (n > 62)
        return x < 0 ? -1 : 0;
    return x < 0 ? ~(~x >> n) : x >> n;
}

/* The range of the products after their cast; false where one can leave int64. */
static int product_range(const struct emu_mac *mac, struct range *found)
{
    const struct emu_cast *to = &mac->product;
    struct range a = codes(&mac->a), b = codes(&mac->b), x, mode;

    if (mac->a.width + mac->b.width == 64 && !mac->a.is_signed && !mac->b.is_signed)
        return 0;
    x.lo = a.lo * b.hi < a.hi * b.lo ? a.lo * b.hi : a.hi * b.lo;
    x.hi = a.lo * b.lo > a.hi * b.hi ? a.lo * b.lo : a.hi * b.hi;
    if (to->format.frac >= 0) {
        if (!times_power(&x, to->format.frac))
            return 0;
    } else {
        x.lo = floor_power(x.lo, -to->format.frac);
        x.hi = -floor_power(-x.hi, -to->format.frac);
    }
    *found = x;
    if (to->format.width == 64)  /* one that is cut here is too wide for any accumulator */
        return to->format.is_signed ? to->overflow != EMU_SAT_SYM || x.lo > INT64_MIN : x.lo == 0;
    mode = codes(&to->format);
    if (to->overflow == EMU_SAT_SYM && to->format.is_signed)
        mode.lo = -mode.hi;
    if (x.lo < mode.lo || x.hi > mode.hi)
        *found = codes(&to->format);
    return 1;
}

static const char *check_accumulator(const struct emu_cast *to)
{
    const char *wrong = emu_check_cast(to);
    if (wrong)
        return wrong;
    if (to->rounding == EMU_STOCHASTIC)
        return "a MAC has no random operand; use a deterministic rounding";
    if (to->format.width < 2 || to->format.width > 62)
        return "an accumulator has 2 to 62 bits";
    return NULL;
}

static const char *check_outer(const struct emu_mac *mac)
{
    const char *wrong = check_accumulator(&mac->outer);
    struct range outer, spilled = codes(&mac->acc.format);
    struct range one = {-1, 0};
    int shift = mac->acc.format.frac - mac->outer.format.frac;

    if (wrong)
        return wrong;
    outer = codes(&mac->outer.format);
    if (mac->tile % mac->lanes)
        return "a tile is a multiple of lanes, as it ends at the end of a step";
    if (mac->reload && shift < 0)
        return "reload would lose bits without a cast; give outer at most acc's frac";
    /* two of 62 bits can be added, unless zeros are appended to one */
    if (shift < 0 &&
        (!times_power(&spilled, -shift) || !plus(&spilled, one) || !plus(&spilled, outer)))
        return "outer + acc can leave int64; use narrower formats or closer fracs";
    if (mac->reload && !times_power(&outer, shift))
        return "outer aligned to acc can leave int64; use narrower formats or closer fracs";
    return NULL;
}

const char *emu_check_mac(const struct emu_mac *mac)
{
    const struct emu_format *operands[2];
    const char *wrong;
    struct range sum;
    int i;

    operands[0] = &mac->a;
    operands[1] = &mac->b;
    for (i = 0; i < 2; i++) {
        if ((wrong = emu_check_format(operands[i])) != NULL)
            return wrong;
        if (operands[i]->width > 32 || operands[i]->frac)
            return "an operand has at most 32 bits, and frac 0: its frac travels beside its codes";
    }
    if (mac->lanes < 1 || mac->lanes > MAX_STEP || mac->block < 1 || mac->block > MAX_STEP ||
        mac->tile < 0 || mac->tile > MAX_STEP)
        return "lanes, block and tile are 1 to 1048576";
    if ((mac->reload | 1) != 1 || (mac->reload && !mac->tile))
        return "reload is 0 or 1, and needs a tile";
    if ((wrong = emu_check_cast(&mac->product)) != NULL)
        return wrong;
    if (mac->product.rounding == EMU_STOCHASTIC)
        return "a MAC has no random operand; use a deterministic rounding";
    if ((wrong = check_accumulator(&mac->acc)) != NULL)
        return wrong;
    if (mac->product.format.frac < -62 || mac->product.format.frac > 62)
        return "a product has -62 to 62 fraction bits";
    if (mac->product.format.frac != mac->acc.format.frac)
        return "products are added as they are: write product and acc with the same frac";
    if (!product_range(mac, &sum))
        return "a product can leave int64; use narrower operands or a smaller frac";
    if (!times(&sum, mac->lanes) || !plus(&sum, codes(&mac->acc.format)))
        return "acc + the sum of a step can leave int64; use narrower formats or fewer lanes";
    return mac->tile ? check_outer(mac) : NULL;
}
