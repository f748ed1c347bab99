/* The text forms of specs, as emu.number and emu.spec print and read them. */
#include <string.h>

#include "emu.h"

static const char *const ROUNDINGS[] = {
    "to_neg", "to_pos", "to_zero", "to_away", "to_odd", "ties_neg",
    "ties_pos", "ties_zero", "ties_away", "ties_even", "ties_odd"};
static const char *const OVERFLOWS[] = {"wrap", "sat", "sat_sym", "sat_zero"};

static int is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static const char *skip(const char *at)
{
    while (is_space(*at))
        at++;
    return at;
}

/* The number at *at, of at most 7 digits, and *at behind it; -1 where there is none. */
static int number(const char **at)
{
    int found = 0, digits = 0;
    while (**at >= '0' && **at <= '9' && digits < 8) {
        found = 10 * found + (*(*at)++ - '0');
        digits++;
    }
    return digits && digits < 8 ? found : -1;
}

/* Takes a format off the front of *at. */
static const char *take_format(const char **at, struct emu_format *form)
{
    static const char how[] =
        "write s or u, the width, then f and the fraction bits, like s8f4 or u8";
    struct emu_format found = {0, 0, 0};
    int minus = 0;

    *at = skip(*at);
    if (**at != 's' && **at != 'u')
        return how;
    found.is_signed = *(*at)++ == 's';
    if ((found.width = number(at)) < 0)
        return how;
    if (**at == 'f') {
        minus = *++*at == '-';
        *at += minus;
        if ((found.frac = number(at)) < 0)
            return how;
        found.frac = minus ? -found.frac : found.frac;
    }
    if (**at && !is_space(**at))
        return how;
    *form = found;
    return emu_check_format(form);
}

/* The place in a table of the word that ends at `size`, or -1. */
static int find(const char *const *names, int count, const char *word, size_t size)
{
    int i;
    for (i = 0; i < count; i++)
        if (strlen(names[i]) == size && !strncmp(names[i], word, size))
            return i;
    return -1;
}

const char *emu_parse_format(const char *text, struct emu_format *form)
{
    struct emu_format found;
    const char *wrong = take_format(&text, &found);
    if (wrong)
        return wrong;
    if (*skip(text))
        return "a format is one word, like s8f4";
    *form = found;
    return NULL;
}

const char *emu_parse_cast(const char *text, struct emu_cast *to)
{
    struct emu_cast found;
    const char *wrong = take_format(&text, &found.format);
    int rounding = -1, overflow = -1;

    if (wrong)
        return wrong;
    found.rand_bits = 0;
    for (text = skip(text); *text; text = skip(text)) {
        const char *word = text, *end;
        int *mode = &rounding, is;
        size_t size;

        while (*text && !is_space(*text))
            text++;
        size = (size_t)(text - word);
        if (size >= 10 && !strncmp(word, "stochastic", 10)) {
            is = EMU_STOCHASTIC;
            end = word + 10;
            found.rand_bits = number(&end);
            if (end != text)
                return "stochastic rounding takes 1 to 32 bits, as in stochastic16";
        } else if ((is = find(ROUNDINGS, EMU_STOCHASTIC, word, size)) < 0) {
            mode = &overflow;
            if ((is = find(OVERFLOWS, 4, word, size)) < 0)
                return "unknown mode: the roundings are to_neg, to_pos, to_zero, to_away, to_odd, "
                       "ties_neg, ties_pos, ties_zero, ties_away, ties_even, ties_odd and "
                       "stochastic1 to stochastic32, the overflows wrap, sat, sat_sym, sat_zero";
        }
        if (*mode >= 0)
            return "a cast has one rounding and one overflow";
        *mode = is;
    }
    found.rounding = rounding < 0 ? EMU_TO_NEG : rounding;
    found.overflow = overflow < 0 ? EMU_WRAP : overflow;
    if ((wrong = emu_check_cast(&found)) != NULL)
        return wrong;
    *to = found;
    return NULL;
}

enum key { A, B, ACC, PRODUCT, LANES, BLOCK, TILE, OUTER, RELOAD, KEYS };

static const char *take_item(struct emu_mac *mac, enum key key, const char *value)
{
    int *whole = key == LANES ? &mac->lanes : key == BLOCK ? &mac->block : &mac->tile;

    switch (key) {
    case A: return emu_parse_format(value, &mac->a);
    case B: return emu_parse_format(value, &mac->b);
    case ACC: return emu_parse_cast(value, &mac->acc);
    case PRODUCT: return emu_parse_cast(value, &mac->product);
    case OUTER: return emu_parse_cast(value, &mac->outer);
    case RELOAD:
        mac->reload = !strcmp(value, "true");
        return mac->reload || !strcmp(value, "false") ? NULL : "reload: write true or false";
    default:
        *whole = number(&value);
        return *whole < 1 || *value ? "lanes, block and tile are 1 to 1048576" : NULL;
    }
}

const char *emu_parse_mac(const char *text, struct emu_mac *mac)
{
    static const char *const names[] = {"a", "b", "acc", "product", "lanes",
                                        "block", "tile", "outer", "reload"};
    static const char how[] = "write {key: value, key: value}, each key once, of a, b, product, "
                              "acc, lanes, block, tile, outer and reload";
    struct emu_mac found = {{0, 0, 0}, {0, 0, 0}, {{64, 0, 1}, 0, 0, 0}, {{0, 0, 0}, 0, 0, 0},
                            {{0, 0, 0}, 0, 0, 0}, 1, 1, 0, 0};
    int seen[KEYS] = {0}, braces, key;
    const char *at = skip(text), *end = at + strlen(at), *wrong;

    while (end > at && is_space(end[-1]))
        end--;
    braces = end - at >= 2 && *at == '{' && end[-1] == '}';
    at += braces;
    end -= braces;
    while ((at = skip(at)) < end) {
        const char *colon = at, *stop;
        char value[64];
        size_t size;

        if (*at == ',') {  /* nothing between two commas, or after the last */
            at++;
            continue;
        }
        while (colon < end && *colon != ':' && *colon != ',')
            colon++;
        stop = colon;
        while (stop < end && *stop != ',')
            stop++;
        for (size = (size_t)(colon - at); size && is_space(at[size - 1]);)
            size--;
        key = find(names, KEYS, at, size);
        if (colon == end || *colon != ':' || key < 0 || seen[key]++)
            return how;
        at = skip(colon + 1);
        for (size = stop > at ? (size_t)(stop - at) : 0; size && is_space(at[size - 1]);)
            size--;
        if (size >= sizeof value)
            return how;
        memcpy(value, at, size);
        value[size] = 0;
        if ((wrong = take_item(&found, (enum key)key, value)) != NULL)
            return wrong;
        at = stop < end ? stop + 1 : end;
    }
    if (!seen[A] || !seen[B] || !seen[ACC])
        return "a MAC needs a, b and acc";
    if (seen[TILE] != seen[OUTER])
        return "two-level accumulation needs both tile and outer";
    if ((wrong = emu_check_mac(&found)) != NULL)
        return wrong;
    *mac = found;
    return NULL;
}
