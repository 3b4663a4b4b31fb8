// SPDX-License-Identifier: GPL-2.0-only
/*
 * What floating point leaves in its status words: the exception flags of SSE and of the x87, rounding in each
 * mode, and the flags in which comparisons answer.
 */
#include <float.h>
#include <math.h>

#include "check.h"

enum { INVALID = 1, DENORMAL = 2, ZERO = 4, OVERFLOW = 8, UNDERFLOW = 16, INEXACT = 32 };

#define TINY 0x1p-1060 /* denormal */
#define QUIET __builtin_nan("")
#define SIGNALLING __builtin_nans("")

static uint32_t mxcsr(void)
{
    uint32_t value;

    asm volatile("stmxcsr %0" : "=m"(value));
    return value;
}

static void set_mxcsr(uint32_t value)
{
    asm volatile("ldmxcsr %0" ::"m"(value));
}

/* One instruction of SSE on two doubles, with all flags clear; which flags it sets. */
#define SSE(instruction, left, right)                                                                   \
    ({                                                                                                  \
        static const double left_ = left,                                                               \
                            right_ = right; /* the x87 would make a quiet NaN of a signalling one */    \
        set_mxcsr(0x1f80);                                                                              \
        asm volatile("movsd %0, %%xmm0; movsd %1, %%xmm1; " instruction " %%xmm1, %%xmm0" ::"m"(left_), \
                     "m"(right_)                                                                        \
                     : "xmm0", "xmm1");                                                                 \
        mxcsr() & 0x3f;                                                                                 \
    })
#define SSE_FLAGS(instruction, left, right, flags)                                                     \
    do {                                                                                               \
        uint32_t got_ = SSE(instruction, left, right);                                                 \
        check(got_ == (flags), "%s %s, %s: flags %#x, expected %#x", instruction, #left, #right, got_, \
              flags);                                                                                  \
    } while (0)

static void sse(void)
{
    SSE_FLAGS("addsd", 1.0, 2.0, 0);
    SSE_FLAGS("addsd", 1.0, 0x1p-60, INEXACT);
    SSE_FLAGS("addsd", INFINITY, -INFINITY, INVALID);
    SSE_FLAGS("addsd", QUIET, 1.0, 0);
    SSE_FLAGS("addsd", SIGNALLING, 1.0, INVALID);
    SSE_FLAGS("addsd", TINY, 1.0, DENORMAL | INEXACT);
    SSE_FLAGS("subsd", INFINITY, INFINITY, INVALID);
    SSE_FLAGS("mulsd", DBL_MAX, 2.0, OVERFLOW | INEXACT);
    SSE_FLAGS("mulsd", DBL_MIN, 0.3, UNDERFLOW | INEXACT);
    SSE_FLAGS("mulsd", DBL_MIN, 0.5, 0);
    SSE_FLAGS("mulsd", 0.0, INFINITY, INVALID);
    SSE_FLAGS("divsd", 1.0, 4.0, 0);
    SSE_FLAGS("divsd", 1.0, 3.0, INEXACT);
    SSE_FLAGS("divsd", 1.0, 0.0, ZERO);
    SSE_FLAGS("divsd", 0.0, 0.0, INVALID);
    SSE_FLAGS("sqrtsd", 0.0, 4.0, 0);
    SSE_FLAGS("sqrtsd", 0.0, 2.0, INEXACT);
    SSE_FLAGS("sqrtsd", 0.0, -1.0, INVALID);
    SSE_FLAGS("comisd", QUIET, 1.0, INVALID);
    SSE_FLAGS("ucomisd", QUIET, 1.0, 0);
    SSE_FLAGS("ucomisd", SIGNALLING, 1.0, INVALID);
    SSE_FLAGS("maxsd", QUIET, 1.0, INVALID);
    SSE_FLAGS("cvtsd2ss", 0.0, 1e300, OVERFLOW | INEXACT);
    SSE_FLAGS("cvtsd2ss", 0.0, 0.1, INEXACT);
    SSE_FLAGS("addpd", 1.0, 2.0, 0);
    SSE_FLAGS("divpd", 1.0, 3.0, INEXACT | INVALID); /* the upper halves are 0 and 0 */
    SSE_FLAGS("roundsd $0,", 0.0, 0.5, INEXACT);
    SSE_FLAGS("roundsd $8,", 0.0, 0.5, 0);
}

static void conversions(void)
{
    static const struct {
        double value;
        int truncated;
        uint32_t flags;
    } rows[] = {
        {3.0, 3, 0},
        {3.7, 3, INEXACT},
        {-3.7, -3, INEXACT},
        {1e10, INT32_MIN, INVALID},
        {NAN, INT32_MIN, INVALID},
    };

    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        int got;

        set_mxcsr(0x1f80);
        asm volatile("cvttsd2si %1, %0" : "=r"(got) : "m"(rows[i].value));
        check(got == rows[i].truncated && (mxcsr() & 0x3f) == rows[i].flags,
              "cvttsd2si of %g: %d, flags %#x; expected %d, %#x", rows[i].value, got, mxcsr() & 0x3f,
              rows[i].truncated, rows[i].flags);
    }
}

/* Flags stay until they are cleared, and the rounding control is obeyed. */
static void sticky_and_rounding(void)
{
    static const double thirds[] = {0x1.5555555555555p-2, 0x1.5555555555555p-2, 0x1.5555555555556p-2,
                                    0x1.5555555555555p-2};
    static const double seventh_negative[] = {-0x1.2492492492492p-3, -0x1.2492492492493p-3,
                                              -0x1.2492492492492p-3, -0x1.2492492492492p-3};
    const double one = 1, three = 3, minus_one = -1, seven = 7;

    for (uint32_t mode = 0; mode < 4; mode++) {
        double third = one, seventh = minus_one;

        set_mxcsr(0x1f80 | mode << 13);
        asm volatile("movsd %0, %%xmm0; divsd %1, %%xmm0; movsd %%xmm0, %0"
                     : "+m"(third)
                     : "m"(three)
                     : "xmm0");
        asm volatile("movsd %0, %%xmm0; divsd %1, %%xmm0; movsd %%xmm0, %0"
                     : "+m"(seventh)
                     : "m"(seven)
                     : "xmm0");
        check(third == thirds[mode] && seventh == seventh_negative[mode],
              "rounding %u: %a %a, expected %a %a", mode, third, seventh, thirds[mode],
              seventh_negative[mode]);
        check(mxcsr() == (0x1f80 | mode << 13 | INEXACT), "rounding %u: mxcsr %#x", mode, mxcsr());
        asm volatile("movsd %0, %%xmm0; addsd %0, %%xmm0" ::"m"(one) : "xmm0"); /* exact */
        check(mxcsr() & INEXACT, "an exact addition cleared the flag");
    }
    set_mxcsr(0x1f80);
    check(mxcsr() == 0x1f80, "flags are not cleared: %#x", mxcsr());
}

static uint16_t x87_status(void)
{
    uint16_t value;

    asm volatile("fnstsw %0" : "=m"(value));
    return value;
}

static void x87(void)
{
    const double one = 1, three = 3, zero = 0, infinity = INFINITY, minus_one = -1, huge = DBL_MAX;
    double result;

#define X87_FLAGS(name, flags, code, ...)                                                 \
    do {                                                                                  \
        asm volatile("fninit; " code "; fstpl %0" : "=m"(result) : __VA_ARGS__);          \
        check((x87_status() & 0x3f) == (flags), "x87 %s: status %#x, expected %#x", name, \
              x87_status() & 0x3f, flags);                                                \
    } while (0)
    X87_FLAGS("1 / 1", 0, "fldl %1; fldl %1; fdivp", "m"(one));
    X87_FLAGS("1 / 3", INEXACT, "fldl %1; fldl %2; fdivrp", "m"(one), "m"(three));
    X87_FLAGS("1 / 0", ZERO, "fldl %1; fldl %2; fdivrp", "m"(one), "m"(zero));
    X87_FLAGS("inf - inf", INVALID, "fldl %1; fsubl %1", "m"(infinity));
    X87_FLAGS("sqrt(-1)", INVALID, "fldl %1; fsqrt", "m"(minus_one));
    X87_FLAGS("2 * DBL_MAX, stored", OVERFLOW | INEXACT, "fldl %1; faddl %1", "m"(huge));
#undef X87_FLAGS
}

/* FCOMI and FUCOMI answer in ZF, PF and CF and clear the others; FISTTP truncates whatever the rounding mode.
 */
static void x87_to_integer(void)
{
    static const struct {
        double left, right;
        unsigned flags; /* of 0x45: CF 1, PF 4, ZF 0x40 */
    } rows[] = {{2, 1, 0},      {1, 2, 1},        {1, 1, 0x40},
                {NAN, 1, 0x45}, {INFINITY, 1, 0}, {-INFINITY, INFINITY, 1}};
    static const double values[] = {1.9, -1.9, 0.5, 2.0};
    static const int truncated[] = {1, -1, 0, 2};
    unsigned long flags;

    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        asm volatile("fninit; fldl %2; fldl %1; xor %%eax, %%eax; fucomip; pushf; pop %0; fstp %%st(0)"
                     : "=r"(flags)
                     : "m"(rows[i].left), "m"(rows[i].right)
                     : "eax");
        check((flags & 0x45) == rows[i].flags, "fucomip %g, %g: %#lx", rows[i].left, rows[i].right,
              flags & 0x45);
        check((x87_status() & INVALID) == 0, "fucomip %g, %g: invalid", rows[i].left, rows[i].right);
        asm volatile(
            "fninit; fldl %2; fldl %1; mov $0x7fffffff, %%eax; inc %%eax; fcomip; pushf; pop %0; fstp %%st(0)"
            : "=r"(flags)
            : "m"(rows[i].left), "m"(rows[i].right)
            : "eax");
        check((flags & 0x8d5) == rows[i].flags, "fcomip %g, %g after an overflow: %#lx, expected %#x",
              rows[i].left, rows[i].right, flags & 0x8d5, rows[i].flags);
        check(!(x87_status() & INVALID) == !isnan(rows[i].left), "fcomip %g, %g: status %#x", rows[i].left,
              rows[i].right, x87_status());
    }
    for (unsigned i = 0; i < sizeof values / sizeof *values; i++)
        for (uint16_t mode = 0; mode < 4; mode++) {
            uint16_t control = 0x37f | mode << 10;
            int got;

            asm volatile("fninit; fldcw %2; fldl %1; fisttpl %0" : "=m"(got) : "m"(values[i]), "m"(control));
            check(got == truncated[i], "fisttp of %g, rounding %u: %d", values[i], mode, got);
            check((x87_status() & 0x3f) == (values[i] == truncated[i] ? 0 : INEXACT),
                  "fisttp of %g: status %#x", values[i], x87_status());
        }
    asm volatile("fninit");
}

int main(void)
{
    sse();
    conversions();
    sticky_and_rounding();
    set_mxcsr(0x1f80);
    x87();
    x87_to_integer();
    return verdict("float_flags");
}
