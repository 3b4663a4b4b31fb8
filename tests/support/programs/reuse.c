// SPDX-License-Identifier: GPL-2.0-only
/*
 * Frames that come back with other code: small programs are written to files, run, and deleted or
 * overwritten. Each computes its own exit status with instructions that are spread over its pages, so that a
 * program that runs the code of an earlier one in any page answers wrong.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#ifdef __x86_64__
typedef Elf64_Ehdr Header;
typedef Elf64_Phdr Segment;
#define CLASS ELFCLASS64
#define MACHINE EM_X86_64
#else
typedef Elf32_Ehdr Header;
typedef Elf32_Phdr Segment;
#define CLASS ELFCLASS32
#define MACHINE EM_386
#endif

#define PAGE 4096
#define BASE 0x400000
#define STRIDE 128 /* from one addition to the next */

static uint8_t image[8 * PAGE];

static void headers(unsigned pages)
{
    Header *header = (Header *)image;
    Segment *segment = (Segment *)(header + 1);

    *header = (Header){
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, CLASS, ELFDATA2LSB, EV_CURRENT},
        .e_type = ET_EXEC,
        .e_machine = MACHINE,
        .e_version = EV_CURRENT,
        .e_entry = BASE + STRIDE,
        .e_phoff = sizeof *header,
        .e_ehsize = sizeof *header,
        .e_phentsize = sizeof *segment,
        .e_phnum = 1,
    };
    *segment = (Segment){
        .p_type = PT_LOAD,
        .p_flags = PF_R | PF_X,
        .p_vaddr = BASE,
        .p_filesz = pages * PAGE,
        .p_memsz = pages * PAGE,
        .p_align = PAGE,
    };
}

/* Write a program of `pages` pages to `name`; what it must exit with. The size is the same for each seed. */
static int make_program(const char *name, uint32_t seed, unsigned pages)
{
    /* fold the sum in EDI into a byte, and _exit with it */
    static const uint8_t fold[] = {0x89, 0xf8, 0xc1, 0xe8, 0x08, 0x31, 0xc7, 0x81, 0xe7, 0xff, 0, 0, 0};
#ifdef __x86_64__
    static const uint8_t leave[] = {0xb8, 60, 0, 0, 0, 0x0f, 0x05};
#else
    static const uint8_t leave[] = {0x89, 0xfb, 0xb8, 1, 0, 0, 0, 0xcd, 0x80};
#endif
    uint32_t at = STRIDE, sum = 0;

    memset(image, 0, sizeof image);
    headers(pages);
    image[at++] = 0x31; /* xor %edi, %edi */
    image[at++] = 0xff;
    for (uint32_t i = 2; (i + 2) * STRIDE <= pages * PAGE; i++) {
        uint32_t term = (seed * 2654435761u + i * 40503u) >> 7 & 0xffff;
        int32_t distance;

        image[at++] = 0x81; /* add $term, %edi */
        image[at++] = 0xc7;
        memcpy(image + at, &term, 4);
        sum += term;
        distance = i * STRIDE - (at + 4 + 5);
        image[at + 4] = 0xe9; /* jmp to the next multiple of STRIDE */
        memcpy(image + at + 5, &distance, 4);
        at = i * STRIDE;
    }
    memcpy(image + at, fold, sizeof fold);
    memcpy(image + at + sizeof fold, leave, sizeof leave);

    int file = must(open(name, O_CREAT | O_WRONLY | O_TRUNC, 0755));
    check(write(file, image, pages * PAGE) == (ssize_t)(pages * PAGE), "%s could not be written", name);
    close(file);
    return (sum ^ sum >> 8) & 0xff;
}

static void run(const char *what, const char *name, int expected)
{
    int status;
    pid_t child = must(vfork());

    if (child == 0) {
        execl(name, name, NULL);
        _exit(255);
    }
    must(waitpid(child, &status, 0));
    check(WIFEXITED(status) && WEXITSTATUS(status) == expected, "%s: status %#x, expected %#x", what, status,
          expected << 8);
}

int main(int count, char **words)
{
    int rounds = count > 1 ? atoi(words[1]) : 100;

    for (int i = 0; i < rounds; i++) { /* many files; their frames are free again when they are deleted */
        char name[32];

        snprintf(name, sizeof name, "/tmp/reuse%d", i);
        int expected = make_program(name, i * 7 + 1, 1 + i % 8);
        run("a new file", name, expected);
        unlink(name);
    }
    for (int i = 0; i < rounds; i++) { /* one name, a new file each time */
        int expected = make_program("/tmp/reuse", i * 11 + 3, 1 + i % 8);
        run("a file in another's place", "/tmp/reuse", expected);
        unlink("/tmp/reuse");
    }
    int keep = must(open("/tmp/reuse", O_CREAT | O_RDONLY, 0755)); /* the frames stay in use all the time */
    for (int i = 0; i < rounds; i++) {
        int expected = make_program("/tmp/reuse", i * 13 + 5, 4);
        run("overwritten in place", "/tmp/reuse", expected);
    }
    close(keep);
    unlink("/tmp/reuse");
    return verdict("reuse");
}
