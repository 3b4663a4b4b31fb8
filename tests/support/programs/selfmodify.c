// SPDX-License-Identifier: GPL-2.0-only
/*
 * Code that changes at the address where it runs: rewritten in place, by its own block, by the kernel, by
 * another mapping that takes its place, by a debugger, by another thread.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "code.h"

#define PAGE 4096
#define WX (PROT_READ | PROT_WRITE | PROT_EXEC)

static uint8_t *pages; /* two, writable and executable */

static void expect(const char *how, const void *at, uint32_t value)
{
    uint32_t got = run_code(at);

    check(got == value, "%s: %u was written, %u ran", how, value, got);
}

/* The function lies across two pages. */
static void in_place(void)
{
    uint8_t *at = pages + PAGE - 2;

    for (uint32_t i = 0; i < 1000; i++) {
        write_code(at, i);
        expect("in place", at, i);
    }
}

/* movb $value, operand; mov $0x55, %eax; ret: the first instruction changes the operand of the second. */
static void next_instruction(void)
{
    uint8_t *at = pages + 64;

    for (uint32_t value = 0; value < 200; value++) {
        const uint8_t code[] = {0xc6, 0x05, 0, 0, 0, 0, value, 0xb8, 0x55, 0, 0, 0, 0xc3};
#ifdef __x86_64__
        const uint32_t operand = 1; /* counted from the end of the first instruction */
#else
        const uint32_t operand = (uintptr_t)at + 8;
#endif
        memcpy(at, code, sizeof code);
        memcpy(at + 2, &operand, sizeof operand);
        expect("the next instruction", at, value);
    }
}

/* Never writable while it is executable; the kernel writes, for read(2). */
static void read_into_place(void)
{
    int ends[2];

    must(pipe(ends));
    for (uint32_t i = 0; i < 200; i++) {
        uint8_t bytes[CODE_BYTES];

        write_code(bytes, i);
        must(mprotect(pages, PAGE, PROT_READ | PROT_WRITE));
        must(write(ends[1], bytes, sizeof bytes));
        must(read(ends[0], pages, sizeof bytes));
        must(mprotect(pages, PAGE, PROT_READ | PROT_EXEC));
        expect("read(2) and mprotect", pages, i);
    }
    must(mprotect(pages, PAGE, WX));
}

/* Another frame comes to the same address, and a frame to another address. */
static void remapped(void)
{
    uint8_t *elsewhere = must(mmap(NULL, PAGE, WX, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));

    for (uint32_t i = 0; i < 200; i++) {
        uint8_t *fresh = must(mmap(pages, PAGE, WX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));

        write_code(fresh, i);
        expect("MAP_FIXED", fresh, i);
        fresh = must(mremap(fresh, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere));
        expect("mremap", fresh, i);
        write_code(fresh, ~i);
        expect("mremap and rewritten", fresh, ~i);
    }
    must(mmap(pages, PAGE, WX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
}

/* A private copy of a page that parent and child have run. */
static void copied_on_write(void)
{
    write_code(pages, 1);
    expect("before fork", pages, 1);
    for (uint32_t i = 2; i < 20; i++) {
        int status;
        pid_t child = must(fork());

        if (child == 0) {
            if (run_code(pages) != i - 1)
                _exit(1);
            write_code(pages, 1000 + i);
            _exit(run_code(pages) == 1000 + i ? 0 : 2);
        }
        must(waitpid(child, &status, 0));
        check(status == 0, "copy on write: the child ended with %#x", status);
        expect("copy on write, the parent", pages, i - 1);
        write_code(pages, i);
        expect("copy on write, the parent, rewritten", pages, i);
    }
}

/* As a debugger writes into a process that it has stopped. */
static void by_a_debugger(void)
{
    pid_t child = must(fork());
    int status;

    if (child == 0) {
        must(ptrace(PTRACE_TRACEME, 0, 0, 0));
        for (uint32_t i = 0;; i++) {
            raise(SIGSTOP);
            if (run_code(pages) != i)
                _exit(i < 100 ? 1 : 0);
        }
    }
    must(waitpid(child, &status, 0));
    for (uint32_t i = 0; i <= 100; i++) {
        uint8_t bytes[8] = {0};
        struct iovec here = {bytes, sizeof bytes}, there = {pages, sizeof bytes};
        uint32_t value = i < 100 ? i : 0;

        write_code(bytes, value);
        if (i & 1) {
            must(process_vm_writev(child, &here, 1, &there, 1, 0));
        } else {
            long words[8 / sizeof(long)];

            memcpy(words, bytes, sizeof words);
            for (unsigned k = 0; k < sizeof words / sizeof *words; k++)
                must(ptrace(PTRACE_POKETEXT, child, pages + k * sizeof(long), words[k]));
        }
        must(ptrace(PTRACE_CONT, child, 0, 0));
        must(waitpid(child, &status, 0));
        if (!check(WIFSTOPPED(status) || i == 100, "a debugger's write %u: old code ran", i))
            return;
    }
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a debugger's last write: status %#x", status);
}

/*
 * One thread writes, another runs, on another CPU if there is one. The runner executes CPUID, which
 * serializes, between hearing of new code and running it, as Intel's manual (volume 3, 8.1.3) asks.
 */
static int order[2], done[2];

static void *runner(void *unused)
{
    uint32_t value;

    while (read(order[0], &value, sizeof value) == sizeof value) {
        uint32_t a = 0, b, c = 0, d;

        asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
        expect("another thread", pages, value);
        must(write(done[1], &value, sizeof value));
    }
    return unused;
}

static void by_another_thread(void)
{
    pthread_t thread;

    must(pipe(order));
    must(pipe(done));
    check(pthread_create(&thread, NULL, runner, NULL) == 0, "pthread_create");
    for (uint32_t i = 0; i < 300; i++) {
        uint32_t value = i;

        write_code(pages, i);
        must(write(order[1], &value, sizeof value));
        must(read(done[0], &value, sizeof value));
    }
    close(order[1]);
    pthread_join(thread, NULL);
}

int main(void)
{
    pages = must(mmap(NULL, 2 * PAGE, WX, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    in_place();
    next_instruction();
    read_into_place();
    remapped();
    copied_on_write();
    by_a_debugger();
    by_another_thread();
    return verdict("selfmodify");
}
