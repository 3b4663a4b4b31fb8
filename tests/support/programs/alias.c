// SPDX-License-Identifier: GPL-2.0-only
/*
 * Code that is written through another mapping of its frame, as compilers at run time do it that keep no page
 * writable and executable at once. A processor sees each store, whichever address it went through.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "code.h"

#define PAGE 4096
#define ROUNDS 300

static int file;               /* two pages of memory that can be mapped more than once */
static volatile uint8_t *data; /* the first page, to write */
static volatile uint8_t *code; /* the same page, to execute */

static void expect(const char *how, const volatile void *at, uint32_t value)
{
    uint32_t got = run_code(at);

    check(got == value, "%s: %u was written, %u ran", how, value, got);
}

static void same_process(void)
{
    for (uint32_t i = 0; i < ROUNDS; i++) {
        write_code(data, i);
        expect("other mapping", code, i);
    }
}

static void with_a_context_switch(void)
{
    for (uint32_t i = 0; i < ROUNDS / 10; i++) {
        write_code(data, i);
        sched_yield();
        usleep(1000);
        expect("other mapping, after a sleep", code, i);
    }
}

/* The child writes what it is told to, and says when it has. */
static void other_process(void)
{
    int order[2], done[2];
    uint32_t value;

    must(pipe(order));
    must(pipe(done));
    pid_t child = must(fork());
    if (child == 0) {
        close(order[1]);
        while (read(order[0], &value, sizeof value) == sizeof value) {
            write_code(data, value);
            must(write(done[1], &value, sizeof value));
        }
        _exit(0);
    }
    for (uint32_t i = 0; i < ROUNDS; i++) {
        value = 3 * i + 1;
        must(write(order[1], &value, sizeof value));
        must(read(done[0], &value, sizeof value));
        expect("another process", code, value);
    }
    close(order[1]);
    must(waitpid(child, NULL, 0));
}

/* The kernel writes, through its own mapping of all memory. */
static void kernel(void)
{
    for (uint32_t i = 0; i < ROUNDS; i++) {
        uint8_t bytes[CODE_BYTES];

        write_code(bytes, i);
        must(pwrite(file, bytes, sizeof bytes, 0));
        expect("pwrite", code, i);
    }
}

/* Two mappings, both writable and executable; each writes for both. */
static void two_of_a_kind(void)
{
    const int all = PROT_READ | PROT_WRITE | PROT_EXEC;
    uint8_t *one = must(mmap(NULL, PAGE, all, MAP_SHARED, file, PAGE));
    uint8_t *two = must(mmap(NULL, PAGE, all, MAP_SHARED, file, PAGE));

    for (uint32_t i = 0; i < ROUNDS; i++) {
        write_code(i & 1 ? one : two, i);
        expect("two rwx mappings, the first", one, i);
        expect("two rwx mappings, the second", two, i);
    }
}

int main(void)
{
    file = must(memfd_create("code", 0));
    must(ftruncate(file, 2 * PAGE));
    data = must(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    code = must(mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0));
    same_process();
    with_a_context_switch();
    other_process();
    kernel();
    two_of_a_kind();
    return verdict("alias");
}
