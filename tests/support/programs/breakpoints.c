// SPDX-License-Identifier: GPL-2.0-only
/*
 * Debugging with the processor's help: hardware breakpoints and watchpoints by ptrace, and single steps.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#ifdef __x86_64__
#define PROGRAM_COUNTER(registers) ((registers).rip)
#else
#define PROGRAM_COUNTER(registers) ((registers).eip)
#endif

#define DEBUG_REGISTER(number) (offsetof(struct user, u_debugreg) + (number) * sizeof(long))

static volatile int words[4];

__attribute__((noinline)) static void function(void)
{
    asm volatile("nop; nop");
}

/* What is watched, in the order of DR0 to DR3, and what must hit: DR6 shows which one it was. */
static void watched(void)
{
    function();
    words[1] = 5;
    ((volatile char *)words)[9] = 1;
    (void)words[3];
    function();
}

static void hardware_breakpoints(void)
{
    static const long hits[] = {1, 2, 4, 8, 1};
    /* DR7: all four enabled for this process; execute 1, write 4, write 1, access 4 bytes */
    const long control = 0x55 | 0x0L << 16 | 0xdL << 20 | 0x1L << 24 | 0xfUL << 28;
    const double begin = now();
    int status;
    pid_t child = must(fork());

    if (child == 0) {
        must(ptrace(PTRACE_TRACEME, 0, 0, 0));
        raise(SIGSTOP);
        watched();
        _exit(9);
    }
    must(waitpid(child, &status, 0));
    must(ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTER(0), function));
    must(ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTER(1), &words[1]));
    must(ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTER(2), (char *)words + 9));
    must(ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTER(3), &words[3]));
    must(ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTER(7), control));
    for (unsigned i = 0; i < sizeof hits / sizeof *hits; i++) {
        must(ptrace(PTRACE_CONT, child, 0, 0));
        must(waitpid(child, &status, 0));
        if (!check(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP, "hit %u: status %#x", i, status))
            break;
        long which = ptrace(PTRACE_PEEKUSER, child, DEBUG_REGISTER(6), 0) & 0xf;
        check(which == hits[i], "hit %u: DR6 %#lx, expected %#lx", i, which, hits[i]);
        must(ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTER(6), 0));
    }
    if (WIFSTOPPED(status)) {
        must(ptrace(PTRACE_CONT, child, 0, 0));
        must(waitpid(child, &status, 0));
    }
    check(WIFEXITED(status) && WEXITSTATUS(status) == 9, "the end: status %#x", status);
    printf("five hits took %.2f s\n", now() - begin);
}

extern const char steps_begin[], steps_end[];

/* 9 instructions, a loop of 2 done 5 times, and REP STOSB, which traps after each of its ten elements. */
#define STEPS (1 + 2 * 5 + 2 + 3 + 10 + 3)

static void stepped(void)
{
    static char area[16];
    unsigned long a = 0, c, d, flags, to = (unsigned long)area;

    asm volatile(".globl steps_begin, steps_end\n"
                 "steps_begin: mov $5, %%ecx\n"
                 "1: dec %%ecx\n"
                 "   jnz 1b\n"
                 "   pushf\n"
                 "   pop %0\n"
                 "   nop\n"
                 "   mov $10, %%ecx\n"
                 "   cld\n"
                 "   rep stosb\n"
                 "   cpuid\n"
                 "   rdtsc\n"
                 "   nop\n"
                 "steps_end: nop"
                 : "=m"(flags), "+a"(a), "=&c"(c), "=&d"(d), "+D"(to)
                 :
                 : "ebx", "memory");
}

static void single_steps(void)
{
    struct user_regs_struct registers;
    int status, inside = 0;
    pid_t child = must(fork());

    if (child == 0) {
        must(ptrace(PTRACE_TRACEME, 0, 0, 0));
        raise(SIGSTOP);
        stepped();
        _exit(7);
    }
    must(waitpid(child, &status, 0));
    for (int i = 0; i < 100000; i++) {
        must(ptrace(PTRACE_SINGLESTEP, child, 0, 0));
        must(waitpid(child, &status, 0));
        if (!check(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP, "a step: status %#x", status))
            return;
        must(ptrace(PTRACE_GETREGS, child, 0, &registers));
        uintptr_t at = PROGRAM_COUNTER(registers);
        if (at == (uintptr_t)steps_end)
            break;
        inside += at >= (uintptr_t)steps_begin && at < (uintptr_t)steps_end;
    }
    check(inside == STEPS, "%d steps, expected %d", inside, STEPS);
    must(ptrace(PTRACE_CONT, child, 0, 0));
    must(waitpid(child, &status, 0));
    check(WIFEXITED(status) && WEXITSTATUS(status) == 7, "the end of the steps: status %#x", status);
}

int main(void)
{
    hardware_breakpoints();
    single_steps();
    return verdict("breakpoints");
}
