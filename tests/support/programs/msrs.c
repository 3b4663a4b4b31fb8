// SPDX-License-Identifier: GPL-2.0-only
/* Which model-specific registers can be read, or written, through /dev/cpu/0/msr: msrs read|write FIRST LAST ...

   `read` prints each register of the ranges that can be read, and its value. `write` stores zero into each that
   cannot be read, and prints those that take it: so nothing is written that is anything to the kernel. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int msr = open("/dev/cpu/0/msr", O_RDWR);
    if (msr < 0 || argc < 4) {
        perror("/dev/cpu/0/msr");
        return 1;
    }
    int writing = !strcmp(argv[1], "write");
    for (int n = 2; n + 1 < argc; n += 2) {
        uint64_t last = strtoull(argv[n + 1], NULL, 16);
        for (uint64_t number = strtoull(argv[n], NULL, 16); number <= last; number++) {
            uint64_t value = 0;
            int readable = pread(msr, &value, 8, (off_t)number) == 8;
            if (readable && !writing)
                printf("%llx %llx\n", (unsigned long long)number, (unsigned long long)value);
            if (!readable && writing && pwrite(msr, &value, 8, (off_t)number) == 8)
                printf("%llx\n", (unsigned long long)number);
        }
    }
    return 0;
}
