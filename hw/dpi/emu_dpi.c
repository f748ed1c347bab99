/* What emu_pkg.sv imports: emu.h with handles in the place of structs, and one operand a call, so
 * that no simulator's own header is needed. Handles live as long as the program. */
#include <stdlib.h>

#include "../c/emu.h"

struct mac {
    struct emu_mac spec;
    struct emu_sum sum;
    int64_t *a, *b;  /* the operands of the step that is open */
    int count;
};

static const char *wrong = "";

#ifdef __cplusplus  /* Verilator gives its C++ compiler this file */
extern "C" {
#endif
const char *emu_dpi_wrong(void);
void *emu_dpi_cast(const char *text);
long long emu_dpi_apply(void *to, long long code, int frac, unsigned int rand, int *overflowed);
long long emu_dpi_apply_unsigned(void *to, long long code, int frac, unsigned int rand,
                                 int *overflowed);
void *emu_dpi_mac(const char *text);
void emu_dpi_load(void *mac, long long bias);
int emu_dpi_lanes(void *mac);
int emu_dpi_put(void *mac, long long a, long long b);
int emu_dpi_step(void *mac, int last);
long long emu_dpi_result(void *mac);
unsigned int emu_dpi_lfsr(unsigned int state, int rand_bits, unsigned int *next);
#ifdef __cplusplus
}
#endif

static void *kept(size_t size)
{
    void *found = calloc(1, size);
    if (!found)
        wrong = "no memory is left";
    return found;
}

/* Why the last handle was null, or the last step refused. */
const char *emu_dpi_wrong(void)
{
    return wrong;
}

void *emu_dpi_cast(const char *text)
{
    struct emu_cast found, *to;

    wrong = emu_parse_cast(text, &found);
    if (wrong || !(to = (struct emu_cast *)kept(sizeof *to)))
        return NULL;
    *to = found;
    return to;
}

long long emu_dpi_apply(void *to, long long code, int frac, unsigned int rand, int *overflowed)
{
    return emu_cast(code, frac, (struct emu_cast *)to, rand, overflowed);
}

long long emu_dpi_apply_unsigned(void *to, long long code, int frac, unsigned int rand,
                                 int *overflowed)
{
    return emu_cast_unsigned((uint64_t)code, frac, (struct emu_cast *)to, rand, overflowed);
}

void *emu_dpi_mac(const char *text)
{
    struct emu_mac found;
    struct mac *mac;

    wrong = emu_parse_mac(text, &found);
    if (wrong || !(mac = (struct mac *)kept(sizeof *mac)) ||
        !(mac->a = (int64_t *)kept(2 * (size_t)found.lanes * sizeof *mac->a)))
        return NULL;
    mac->b = mac->a + found.lanes;
    mac->spec = found;
    emu_load(&mac->spec, &mac->sum, 0);
    return mac;
}

void emu_dpi_load(void *handle, long long bias)
{
    struct mac *mac = (struct mac *)handle;
    emu_load(&mac->spec, &mac->sum, bias);
    mac->count = 0;
}

int emu_dpi_lanes(void *handle)
{
    struct mac *mac = (struct mac *)handle;
    return mac->spec.lanes;
}

/* Whether there was a lane for one more product of this step. */
int emu_dpi_put(void *handle, long long a, long long b)
{
    struct mac *mac = (struct mac *)handle;
    if (mac->count == mac->spec.lanes)
        return 0;
    mac->a[mac->count] = a;
    mac->b[mac->count++] = b;
    return 1;
}

/* Adds what was put; 1 if some value was out of range. Lanes without a product count as zeros. */
int emu_dpi_step(void *handle, int last)
{
    struct mac *mac = (struct mac *)handle;
    while (emu_dpi_put(mac, 0, 0))
        ;
    mac->count = 0;
    return emu_step(&mac->spec, &mac->sum, mac->a, mac->b, mac->spec.lanes, last);
}

long long emu_dpi_result(void *handle)
{
    struct mac *mac = (struct mac *)handle;
    return emu_result(&mac->spec, &mac->sum);
}

unsigned int emu_dpi_lfsr(unsigned int state, int rand_bits, unsigned int *next)
{
    uint32_t now = state, rand = emu_lfsr(&now, rand_bits);
    *next = now;
    return rand;
}
