// SPDX-License-Identifier: GPL-2.0-only
/*
 * Instructions that leave the processor, while a timer interrupts the process all the time: none may be lost,
 * done twice, or answered by anybody but the hypervisor. Argument: seconds for each instruction (1).
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/io.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "check.h"

static volatile unsigned ticks;

static void tick(int signal)
{
    (void)signal;
    ticks++;
}

/* Where a timer interrupt falls must not depend on the loop: what runs between two exits has some length. */
static void spin(unsigned length)
{
    for (volatile unsigned i = 0; i < length % 31; i++)
        ;
}

static void cpuid_answers(double seconds)
{
    static const unsigned leaves[] = {0, 1, 7, 0xd, 0x40000000, 0x40000001, 0x80000001, 0x80000008};
    enum { LEAVES = sizeof leaves / sizeof *leaves };
    unsigned first[LEAVES][4], rounds = 0;

    for (double end = now() + seconds; now() < end;)
        for (unsigned k = 0; k < 50; k++)
            for (unsigned i = 0; i < LEAVES; i++) {
                unsigned got[4], *want = first[i];

                spin(k + i);
                asm volatile("cpuid"
                             : "=a"(got[0]), "=b"(got[1]), "=c"(got[2]), "=d"(got[3])
                             : "a"(leaves[i]), "c"(0));
                if (leaves[i] == 1)
                    got[1] &= 0xffffff; /* above it the number of the CPU */
                if (rounds == 0 && k == 0)
                    memcpy(want, got, sizeof got);
                check(!memcmp(want, got, sizeof got),
                      "cpuid %#x: %08x %08x %08x %08x, at first %08x %08x %08x %08x", leaves[i], got[0],
                      got[1], got[2], got[3], want[0], want[1], want[2], want[3]);
                rounds |= k;
            }
}

/* Port 0x81 has nothing behind it in a guest, and reads as ones; which register it comes to must hold too. */
static void port_answers(double seconds)
{
    must(ioperm(0x81, 1, 1));
    for (double end = now() + seconds; now() < end;)
        for (unsigned k = 0; k < 200; k++) {
            unsigned long a = 0x12345600, before = a;

            spin(k);
            asm volatile("in %%dx, %%al" : "+a"(a) : "d"(0x81));
            check(a == (before | 0xff), "in: %#lx", a);
        }
    must(ioperm(0x81, 1, 0));
}

/* Callee-saved registers, the stack and the answer, around a system call in each of its forms. */
static void system_calls(double seconds)
{
    int self = getpid();

    for (double end = now() + seconds; now() < end;)
        for (unsigned k = 0; k < 200; k++) {
            long got = SYS_getpid;
            unsigned long b = 0x1111, c = 0x2222, d = 0x3333, top = 0;

            spin(k);
#ifdef __x86_64__
            asm volatile("push $0x77; syscall; pop %4"
                         : "+a"(got), "+b"(b), "+S"(c), "+d"(d), "=r"(top)
                         :
                         : "rcx", "r11", "memory");
            check(got == self && b == 0x1111 && c == 0x2222 && d == 0x3333 && top == 0x77,
                  "syscall: %ld %#lx %#lx %#lx %#lx", got, b, c, d, top);
#else
            static uintptr_t entry; /* of the vDSO: SYSENTER, with a prologue that pushes three registers */
            if (!entry)
                entry = getauxval(AT_SYSINFO);
            asm volatile("push $0x77; call *%5; pop %4"
                         : "+a"(got), "+b"(b), "+c"(c), "+d"(d), "=S"(top)
                         : "m"(entry)
                         : "memory");
            check(got == self && b == 0x1111 && c == 0x2222 && d == 0x3333 && top == 0x77,
                  "sysenter: %ld %#lx %#lx %#lx %#lx", got, b, c, d, top);
#endif
            got = 20; /* getpid of 32-bit programs */
            top = 0;
            asm volatile("push $0x77; int $0x80; pop %4"
                         : "+a"(got), "+b"(b), "+c"(c), "+d"(d), "=r"(top)
                         :
                         : "memory"
#ifdef __x86_64__
                           ,
                           "r8", "r9", "r10", "r11"
#endif
            );
            check(got == self && b == 0x1111 && c == 0x2222 && d == 0x3333 && top == 0x77,
                  "int $0x80: %ld %#lx %#lx %#lx %#lx", got, b, c, d, top);
        }
}

/* A system call that itself asks the hypervisor for much: descriptors of the LDT. */
static void descriptors(double seconds)
{
    struct user_desc descriptor = {.seg_32bit = 1, .contents = 2, .useable = 1};

    for (double end = now() + seconds; now() < end;)
        for (unsigned k = 0; k < 20; k++) {
            descriptor.entry_number = k;
            descriptor.limit = k & 0xfff;
            check(syscall(SYS_modify_ldt, 0x11, &descriptor, sizeof descriptor) == 0,
                  "modify_ldt of entry %u", k);
        }
}

int main(int count, char **words)
{
    const struct itimerval millisecond = {{0, 1000}, {0, 1000}};
    double seconds = count > 1 ? atof(words[1]) : 1;

    signal(SIGALRM, tick);
    must(setitimer(ITIMER_REAL, &millisecond, NULL));
    cpuid_answers(seconds);
    port_answers(seconds);
    system_calls(seconds);
    descriptors(seconds);
    check(ticks > 100 * seconds, "%u ticks in four times %g s", ticks, seconds);
    return verdict("lost_exits");
}
