// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the programs here have in common. Each makes a number of checks, says of each that failed what was
 * wrong, and ends with a line "PASS name" or "FAIL name", and with status 0 or 1.
 *
 * All are compiled for 64 and for 32 bits. They run in a Linux guest, and pass on hardware.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SHOWN 8 /* failures that are printed; of the rest only the number */

static int checks, failures;

/* One check: `format` says what was expected and what came, and is printed only if `ok` is false. */
__attribute__((format(printf, 2, 3))) static inline int check(int ok, const char *format, ...)
{
    va_list arguments;

    checks++;
    if (ok || failures++ >= SHOWN)
        return ok;
    printf("BAD  ");
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
    return ok;
}

/* The last line; what `main` returns. */
static inline int verdict(const char *name)
{
    printf("%s %s, %d bits: %d checks, %d failed\n", failures ? "FAIL" : "PASS", name, (int)sizeof(long) * 8,
           checks, failures);
    return failures != 0;
}

/* Seconds since some time in the past. */
static inline double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

/* A system call of the C library that must not fail here. */
#define must(call)                    \
    ({                                \
        __auto_type result_ = (call); \
        if ((long)result_ == -1) {    \
            perror(#call);            \
            exit(2);                  \
        }                             \
        result_;                      \
    })

#endif
