// SPDX-License-Identifier: GPL-2.0-only
/* The smallest function that can be told from another: mov $value, %eax; ret. It is the same in both widths.
 */
#ifndef CODE_H
#define CODE_H

#include <stdint.h>
#include <string.h>

#define CODE_BYTES 6

/* Stored byte by byte and in this order, as a compiler at run time would do it. */
static inline void write_code(volatile uint8_t *at, uint32_t value)
{
    at[0] = 0xb8;
    for (int i = 0; i < 4; i++)
        at[1 + i] = value >> (8 * i);
    at[5] = 0xc3;
}

static inline uint32_t run_code(const volatile void *at)
{
    return ((uint32_t (*)(void))at)();
}

#endif
