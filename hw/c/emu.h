/* The arithmetic of emu for benches that are not written in Python: casts, dot products, LFSRs.
 *
 * C99 and nothing else. Codes are integers; a code c with frac f stands for c * 2^-f. What each
 * function computes is defined by emu.reference, and tests compare the two code by code.
 */
#ifndef EMU_H
#define EMU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Rounding: floor plus one bit, and when the bit is added. The Verilog parameter values. */
enum emu_rounding {
    EMU_TO_NEG = 0,      /* never */
    EMU_TO_POS = 1,      /* rest != 0 */
    EMU_TO_ZERO = 2,     /* rest != 0 and negative */
    EMU_TO_AWAY = 3,     /* rest != 0 and not negative */
    EMU_TO_ODD = 4,      /* rest != 0 and the floor is even */
    EMU_TIES_NEG = 5,    /* rest > half */
    EMU_TIES_POS = 6,    /* rest >= half */
    EMU_TIES_ZERO = 7,   /* rest > half, or tie and negative */
    EMU_TIES_AWAY = 8,   /* rest > half, or tie and not negative */
    EMU_TIES_EVEN = 9,   /* rest > half, or tie and the floor is odd */
    EMU_TIES_ODD = 10,   /* rest > half, or tie and the floor is even */
    EMU_STOCHASTIC = 11  /* rest + floor(rand * 2^(n - rand_bits)) >= 2^n, of n dropped bits */
};

/* What an out-of-range value becomes. The Verilog parameter values. */
enum emu_overflow {
    EMU_WRAP = 0,     /* x modulo 2^width */
    EMU_SAT = 1,      /* the nearer bound */
    EMU_SAT_SYM = 2,  /* the nearer bound of [-hi, hi]; of an unsigned format as EMU_SAT */
    EMU_SAT_ZERO = 3  /* 0 */
};

struct emu_format {
    int width;      /* 1..64 */
    int frac;       /* -512..512 */
    int is_signed;  /* 0 or 1 */
};

struct emu_cast {
    struct emu_format format;
    int rounding;   /* enum emu_rounding */
    int overflow;   /* enum emu_overflow */
    int rand_bits;  /* 1..32 of EMU_STOCHASTIC, else 0 */
};

/* The MAC: acc = fit(acc + the sum of `lanes` products, each cast on its own), step by step.
 * With a tile, every `tile` products (and at the end) outer = fit(outer + cast(acc)) and acc
 * restarts at 0; with reload outer = cast(acc) and acc continues from outer, aligned and fitted. */
struct emu_mac {
    struct emu_format a, b;     /* 1..32 bits, frac 0 */
    struct emu_cast product;    /* with the frac of acc */
    struct emu_cast acc;        /* 2..62 bits */
    struct emu_cast outer;      /* 2..62 bits; of a tile only */
    int lanes;                  /* products of a step */
    int block;                  /* order of k in a convolution; no matter to a dot product */
    int tile;                   /* products, a multiple of lanes; 0: one level */
    int reload;                 /* 0 or 1 */
};

/* The text forms of emu: "s8f4", "s8f4 ties_even sat", "{a: s8, b: s8, acc: s20 sat, lanes: 4}".
 * Each returns NULL, or what is wrong; then nothing is written. */
const char *emu_parse_format(const char *text, struct emu_format *form);
const char *emu_parse_cast(const char *text, struct emu_cast *to);
const char *emu_parse_mac(const char *text, struct emu_mac *mac);

/* NULL, or the rule that a value filled by hand breaks. The functions below take values that
 * these accept; a MAC is accepted when no intermediate of it can leave int64. */
const char *emu_check_format(const struct emu_format *form);
const char *emu_check_cast(const struct emu_cast *to);
const char *emu_check_mac(const struct emu_mac *mac);

/* A code with `frac` fraction bits (-1024..1024) as a code of `to`. `rand` is the random operand
 * of EMU_STOCHASTIC, of which the low rand_bits count. *overflowed, where not NULL, becomes 1 if
 * the rounded value was outside the mode's range, else 0. An unsigned result of 64 bits is
 * returned by its bits. */
int64_t emu_cast(int64_t code, int frac, const struct emu_cast *to, uint32_t rand,
                 int *overflowed);
int64_t emu_cast_unsigned(uint64_t code, int frac, const struct emu_cast *to, uint32_t rand,
                          int *overflowed);

/* The sum of a[k] * b[k] for k < count, and the bias, a code of the last level. Of each operand
 * its format's bits count, as on wires. *overflows, where not NULL, becomes the number of steps
 * in which some value was out of range. */
int64_t emu_dot(const struct emu_mac *mac, const int64_t *a, const int64_t *b, size_t count,
                int64_t bias, size_t *overflows);

/* The same, a step at a time. */
struct emu_sum {
    int64_t acc, outer;
    int products;  /* of the tile that is open */
};

void emu_load(const struct emu_mac *mac, struct emu_sum *sum, int64_t bias);

/* Adds `count` products, 1..lanes; fewer than lanes, or last, only at the end of the dot product.
 * Returns 1 if some value was out of range, else 0. */
int emu_step(const struct emu_mac *mac, struct emu_sum *sum, const int64_t *a, const int64_t *b,
             int count, int last);

/* The result register: acc, or outer where there are two levels. */
int64_t emu_result(const struct emu_mac *mac, const struct emu_sum *sum);

/* The next rand_bits (1..32) bits shifted out of a 32-bit Galois LFSR, the first one lowest.
 * A state of 0, which an LFSR cannot leave, counts as 1. */
uint32_t emu_lfsr(uint32_t *state, int rand_bits);

#ifdef __cplusplus
}
#endif
#endif
