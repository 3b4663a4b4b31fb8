// SPDX-License-Identifier: GPL-2.0-only
/*
 * The registers of floating point across what takes the processor away: other processes, and signals whose
 * handlers use them too. Argument: seconds for each of the two (0.7).
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PROCESSES 6

static double seconds = 0.7;

/* Fill an SSE register, an x87 register and both control words; look whether they are still there. */
static int keeps(unsigned number)
{
    const uint32_t pattern[4] = {0x1111 * number + 1, 0x2222 * number + 2, 0x3333 * number + 3,
                                 0x4444 * number + 4};
    const uint32_t mxcsr = 0x1f80 | (number % 4) << 13;
    const uint16_t control = 0x37f | (number % 4) << 10;
    const double value = number + 0.25;
    uint32_t got[4], mxcsr_got;
    uint16_t control_got;
    double value_got;
    int bad = 0;

    asm volatile("ldmxcsr %0; fldcw %1" ::"m"(mxcsr), "m"(control));
    for (double end = now() + seconds; now() < end; sched_yield())
        for (unsigned k = 0; k < 200; k++) {
            unsigned long count = 100;

            asm volatile("movups %3, %%xmm7; fldl %4; 1: dec %2; jnz 1b; fstpl %1; movups %%xmm7, %0"
                         : "=m"(got), "=m"(value_got), "+r"(count)
                         : "m"(pattern), "m"(value)
                         : "xmm7");
            bad += memcmp(got, pattern, sizeof got) != 0 || value_got != value;
        }
    asm volatile("stmxcsr %0; fstcw %1" : "=m"(mxcsr_got), "=m"(control_got));
    return bad == 0 && (mxcsr_got & ~0x3f) == mxcsr && control_got == control;
}

static void between_processes(void)
{
    pid_t children[PROCESSES];

    for (unsigned i = 0; i < PROCESSES; i++) {
        children[i] = must(fork());
        if (children[i] == 0)
            _exit(keeps(i) ? 0 : 1);
    }
    for (unsigned i = 0; i < PROCESSES; i++) {
        int status;

        must(waitpid(children[i], &status, 0));
        check(status == 0, "process %u lost its registers, status %#x", i, status);
    }
}

static volatile unsigned signals;

static void handler(int signal)
{
    static const uint32_t other[4] = {9, 9, 9, 9};

    (void)signal;
    signals++;
    asm volatile("movups %0, %%xmm6; fninit; fldpi; fldl2e" ::"m"(other) : "xmm6");
}

static void across_signals(void)
{
    const struct itimerval interval = {{0, 2000}, {0, 2000}}, off = {0};
    const uint32_t pattern[4] = {1, 2, 3, 4};
    const double value = 1.5;

    signal(SIGALRM, handler);
    must(setitimer(ITIMER_REAL, &interval, NULL));
    for (double end = now() + seconds; now() < end;) {
        unsigned long count = 3000;
        uint32_t got[4];
        double value_got;

        asm volatile("movups %3, %%xmm6; fldl %4; 1: dec %2; jnz 1b; fstpl %1; movups %%xmm6, %0"
                     : "=m"(got), "=m"(value_got), "+r"(count)
                     : "m"(pattern), "m"(value)
                     : "xmm6");
        check(!memcmp(got, pattern, sizeof got) && value_got == value, "after a signal: %u %u %u %u, %g",
              got[0], got[1], got[2], got[3], value_got);
    }
    must(setitimer(ITIMER_REAL, &off, NULL));
    check(signals > 30 * seconds, "only %u signals in %g s", signals, seconds);
}

int main(int count, char **words)
{
    if (count > 1)
        seconds = atof(words[1]);
    between_processes();
    across_signals();
    return verdict("fpu_state");
}
