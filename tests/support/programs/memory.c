// SPDX-License-Identifier: GPL-2.0-only
/* Memory: what fork shares and copies, what a fresh page holds, what moving and protecting does to contents.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096
#define READ_WRITE (PROT_READ | PROT_WRITE)

static unsigned char *area(size_t pages)
{
    return must(mmap(NULL, pages * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static void copy_on_write(void)
{
    enum { PAGES = 100 };
    unsigned char *memory = area(PAGES);

    for (int i = 0; i < PAGES; i++)
        memset(memory + i * PAGE, i, PAGE);
    for (int round = 0; round < 30; round++) {
        int status;
        pid_t child = must(fork());

        if (child == 0) {
            for (int i = 0; i < PAGES; i++)
                if (memory[i * PAGE + 77] != i)
                    _exit(1);
            for (int i = 0; i < PAGES; i += 3)
                memory[i * PAGE + 77] = ~i;
            for (int i = 0; i < PAGES; i++)
                if (memory[i * PAGE + 77] != (i % 3 ? i : 255 - i) || memory[i * PAGE + 78] != i)
                    _exit(2);
            _exit(0);
        }
        must(waitpid(child, &status, 0));
        check(status == 0, "the child's memory: status %#x", status);
    }
    for (int i = 0; i < PAGES; i++)
        check(memory[i * PAGE + 77] == i, "page %d of the parent has changed to %d", i,
              memory[i * PAGE + 77]);
    munmap(memory, PAGES * PAGE);
}

static void fresh_pages_are_zero(void)
{
    enum { PAGES = 32 << 8 }; /* 32 MiB, twice: the second time the frames have been used */

    for (int round = 0; round < 2; round++) {
        uint32_t *memory = (uint32_t *)area(PAGES);
        const size_t step = PAGE / sizeof *memory;

        for (size_t i = 0; i < PAGES; i++) {
            check(memory[i * step] == 0 && memory[i * step + step - 1] == 0, "page %d is not empty", (int)i);
            memory[i * step] = i * 7 + 1;
            memory[i * step + step - 1] = ~i;
        }
        for (size_t i = 0; i < PAGES; i++)
            check(memory[i * step] == i * 7 + 1 && memory[i * step + step - 1] == ~(uint32_t)i, "page %d",
                  (int)i);
        munmap(memory, PAGES * PAGE);
    }
}

static void moved_and_protected(void)
{
    unsigned char *memory = area(4);

    for (int i = 0; i < 4; i++)
        memory[i * PAGE] = i + 1;
    for (int round = 0; round < 50; round++) {
        unsigned char *other = area(8); /* moves to 4 pages of it and back */

        must(mprotect(memory, 4 * PAGE, PROT_READ));
        other = must(mremap(memory, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other + 2 * PAGE));
        for (int i = 0; i < 4; i++)
            check(other[i * PAGE] == i + 1, "moved page %d: %d", i, other[i * PAGE]);
        must(mprotect(other, 4 * PAGE, READ_WRITE));
        memory = other;
    }
    must(madvise(memory, 4 * PAGE, MADV_DONTNEED));
    for (int i = 0; i < 4; i++)
        check(memory[i * PAGE] == 0, "page %d survived MADV_DONTNEED", i);
}

int main(void)
{
    copy_on_write();
    fresh_pages_are_zero();
    moved_and_protected();
    return verdict("memory");
}
