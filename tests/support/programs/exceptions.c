// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which exception each instruction raises in user mode: the signal, its code, the trap's number and error
 * code.
 *
 * The processor that the guest is shown has SSE4.2 and neither XSAVE nor anything that is encoded with VEX:
 * such instructions raise #UD. (Programs that look for a feature by executing it and catching SIGILL count on
 * that.)
 *
 * With the argument "operands" only misaligned operands are tried, with "instructions" all but those.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096
#define ANY (-1) /* not looked at */
#define WX (PROT_READ | PROT_WRITE | PROT_EXEC)

/* What came: zeros if nothing did. */
static volatile struct {
    int signal, code;
    long trap, error;
    uintptr_t address;
} caught;

static sigjmp_buf back;

static void handler(int signal, siginfo_t *info, void *frame)
{
    const greg_t *registers = ((ucontext_t *)frame)->uc_mcontext.gregs;

    caught.signal = signal;
    caught.code = info->si_code;
    caught.address = (uintptr_t)info->si_addr;
    caught.trap = registers[REG_TRAPNO];
    caught.error = registers[REG_ERR];
    siglongjmp(back, 1);
}

struct expected {
    int signal, code;
    long trap, error;
};

static void compare(const char *name, struct expected expected)
{
    check(caught.signal == expected.signal && (expected.code == ANY || caught.code == expected.code) &&
              (expected.trap == ANY || caught.trap == expected.trap) &&
              (expected.error == ANY || caught.error == expected.error),
          "%s: signal %d code %d trap %ld error %#lx; expected %d, %d, %ld, %#lx", name, caught.signal,
          caught.code, caught.trap, caught.error, expected.signal, expected.code, expected.trap,
          expected.error);
}

/* Execute a statement and compare what it raised. */
#define RAISES(name, exception, statement)         \
    do {                                           \
        memset((void *)&caught, 0, sizeof caught); \
        if (!sigsetjmp(back, 1)) {                 \
            statement;                             \
        }                                          \
        compare(name, (struct expected)exception); \
    } while (0)

#define BRACED(...) {__VA_ARGS__}
#define NOTHING BRACED(0, 0, 0, 0)
#define GP(error) BRACED(SIGSEGV, SI_KERNEL, 13, error)
#define SS BRACED(SIGBUS, SI_KERNEL, 12, 0)
#define UD BRACED(SIGILL, ILL_ILLOPN, 6, 0)
#define DE BRACED(SIGFPE, FPE_INTDIV, 0, 0)
#define BP BRACED(SIGTRAP, SI_KERNEL, 3, 0)
#define PF_ABSENT(error) BRACED(SIGSEGV, SEGV_MAPERR, 14, error)
#define PF_DENIED(error) BRACED(SIGSEGV, SEGV_ACCERR, 14, error)
#define IDT(vector) ((vector) * 8 + 2) /* the error code of an INT that the IDT does not allow */

static uint8_t *scratch; /* two pages, for code */

static void run(const void *code)
{
    ((void (*)(void))code)();
}

struct instruction {
    const char *name;
    const char *bytes;
    size_t size;
    struct expected expected;
};

#define BYTES(text) text, sizeof text - 1

static const struct instruction instructions[] = {
    {"int3", BYTES("\xcc"), BP},
    {"int $3", BYTES("\xcd\x03"), BP},
    {"icebp", BYTES("\xf1"), {SIGTRAP, ANY, 1, 0}},
    {"int $1", BYTES("\xcd\x01"), GP(IDT(1))},
    {"int $4", BYTES("\xcd\x04"), {SIGSEGV, SI_KERNEL, 4, 0}},
    {"int $13", BYTES("\xcd\x0d"), GP(IDT(13))},
    {"int $14", BYTES("\xcd\x0e"), GP(IDT(14))},
    {"int $0x20", BYTES("\xcd\x20"), GP(IDT(0x20))},
    {"int $0x81", BYTES("\xcd\x81"), GP(IDT(0x81))},
    {"int $0x82", BYTES("\xcd\x82"), GP(IDT(0x82))},
    {"ud2", BYTES("\x0f\x0b"), UD},
    {"ud0", BYTES("\x0f\xff\xc0"), UD},
    {"ud1", BYTES("\x0f\xb9\xc0"), UD},
    {"hlt", BYTES("\xf4"), GP(0)},
    {"cli", BYTES("\xfa"), GP(0)},
    {"sti", BYTES("\xfb"), GP(0)},
    {"in %dx, %al", BYTES("\x66\xba\x70\x00\xec"), GP(0)},
    {"out %al, %dx", BYTES("\x66\xba\x70\x00\xee"), GP(0)},
    {"in $0x80, %al", BYTES("\xe4\x80"), GP(0)},
    {"rdmsr", BYTES("\x0f\x32"), GP(0)},
    {"wrmsr", BYTES("\x0f\x30"), GP(0)},
    {"rdpmc", BYTES("\x31\xc9\x0f\x33"), GP(0)},
    {"mov %eax, %cr0", BYTES("\x0f\x22\xc0"), GP(0)},
    {"mov %cr0, %eax", BYTES("\x0f\x20\xc0"), GP(0)},
    {"mov %cr1, %eax", BYTES("\x0f\x20\xc8"), {SIGILL, ANY, 6, 0}},
    {"mov %dr0, %eax", BYTES("\x0f\x21\xc0"), GP(0)},
    {"clts", BYTES("\x0f\x06"), GP(0)},
    {"invd", BYTES("\x0f\x08"), GP(0)},
    {"wbinvd", BYTES("\x0f\x09"), GP(0)},
    {"lgdt", BYTES("\x0f\x01\x10"), GP(0)},
    {"ltr", BYTES("\x31\xc0\x0f\x00\xd8"), GP(0)},
    {"lmsw", BYTES("\x0f\x01\xf0"), GP(0)},
    {"invlpg", BYTES("\x0f\x01\x38"), GP(0)},
    {"mov $0, %ss", BYTES("\x31\xc0\x8e\xd0"), GP(0)},
    {"mov beyond the GDT, %ds", BYTES("\xb8\xf8\xff\x00\x00\x8e\xd8"), GP(0xfff8)},
    {"mov of an absent LDT, %fs", BYTES("\xb8\x0f\x00\x00\x00\x8e\xe0"), GP(0x0c)},
    {"division by zero", BYTES("\x31\xd2\x31\xc9\xf7\xf1"), DE},
    {"overflow of idiv", BYTES("\xb8\x00\x00\x00\x80\xba\xff\xff\xff\xff\xb9\xff\xff\xff\xff\xf7\xf9"), DE},
    {"xgetbv", BYTES("\x31\xc9\x0f\x01\xd0"), UD},
    {"xsetbv", BYTES("\x31\xc9\x0f\x01\xd1"), UD},
    {"xsave", BYTES("\x0f\xae\x27"), UD},
    {"rdrand", BYTES("\x0f\xc7\xf0"), UD},
    {"rdseed", BYTES("\x0f\xc7\xf8"), UD},
    {"vaddps", BYTES("\xc5\xf8\x58\xc0"), UD},
    {"vzeroupper", BYTES("\xc5\xf8\x77"), UD},
    {"andn", BYTES("\xc4\xe2\x78\xf2\xc0"), UD},
    {"xbegin", BYTES("\xc7\xf8\x00\x00\x00\x00"), UD},
    {"xtest", BYTES("\x0f\x01\xd6"), UD},
    {"monitor", BYTES("\x0f\x01\xc8"), UD},
    {"mwait", BYTES("\x0f\x01\xc9"), UD},
    {"clac", BYTES("\x0f\x01\xca"), UD},
    {"vmcall", BYTES("\x0f\x01\xc1"), UD},
    {"vmmcall", BYTES("\x0f\x01\xd9"), UD},
    {"movbe", BYTES("\x0f\x38\xf0\x07"), UD},
    {"adcx", BYTES("\x66\x0f\x38\xf6\xc0"), UD},
    {"sha256rnds2", BYTES("\x0f\x38\xcb\xc0"), UD},
    {"extrq", BYTES("\x66\x0f\x79\xc0"), UD},
    {"insertq", BYTES("\xf2\x0f\x79\xc0"), UD},
    {"lock mov", BYTES("\xf0\x89\xc0"), UD},
    {"lock add to a register", BYTES("\xf0\x01\xc0"), UD},
    {"lock btr of a register", BYTES("\xf0\x0f\xba\xf0\x00"), UD},
    {"lock nop", BYTES("\xf0\x90"), UD},
    {"16 bytes", BYTES("\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90"), GP(0)},
    {"pause and a long nop", BYTES("\xf3\x90\x0f\x1f\xc0"), NOTHING},
    {"smsw", BYTES("\x0f\x01\xe0"), NOTHING},
    {"str", BYTES("\x0f\x00\xc8"), NOTHING},
    {"sldt", BYTES("\x0f\x00\xc0"), NOTHING},
#ifdef __x86_64__
    {"into", BYTES("\xce"), UD},
    {"push %es", BYTES("\x06"), UD},
    {"bound", BYTES("\x62\x02"), UD},
    {"sysret", BYTES("\x48\x0f\x07"), GP(0)},
    {"swapgs", BYTES("\x0f\x01\xf8"), GP(0)},
    {"rdfsbase", BYTES("\xf3\x48\x0f\xae\xc0"), UD},
#else
    {"into", BYTES("\xb0\x7f\x04\x01\xce"), {SIGSEGV, SI_KERNEL, 4, 0}},
    {"sysret", BYTES("\x0f\x07"), UD}, /* by an Intel part, which CPUID says this is; AMD's raise #GP */
#endif
};

static void table(void)
{
    for (size_t i = 0; i < sizeof instructions / sizeof *instructions; i++) {
        const struct instruction *one = &instructions[i];

        memcpy(scratch, one->bytes, one->size);
        scratch[one->size] = 0xc3; /* ret */
        memset((void *)&caught, 0, sizeof caught);
        if (!sigsetjmp(back, 1))
            run(scratch);
        compare(one->name, one->expected);
    }
}

static void page_faults(void)
{
    volatile int *read_only = must(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    volatile int *none = must(mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    volatile int *data = must(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    volatile int *null = (int *)(uintptr_t)0x10;
    int value;

    *data = 0xc3;
    value = *read_only; /* so that it is there */
    (void)value;
    RAISES("read of nothing", PF_ABSENT(4), value = *null);
    RAISES("write to nothing", PF_ABSENT(6), *null = 1);
    RAISES("write to what is read-only", PF_DENIED(7), *read_only = 1);
    RAISES("read of what is protected", PF_DENIED(4), value = *none);
    RAISES("execution of data", PF_DENIED(0x15), run((const void *)data));
    RAISES("execution of nothing", PF_ABSENT(0x14), run((const void *)0x1000));
}

/* An instruction before the end of a page that is followed by none. */
static void at_the_end_of_a_page(void)
{
    uint8_t *end = (uint8_t *)must(mmap(NULL, 2 * PAGE, WX, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) + PAGE;

    must(munmap(end, PAGE));
    end[-1] = 0xb8; /* mov $..., %eax: four bytes are missing */
    RAISES("half an instruction", PF_ABSENT(0x14), run(end - 1));
    check(caught.address == (uintptr_t)end, "half an instruction: address %#lx, expected %p",
          (long)caught.address, end);
    memcpy(end - 2, "\x0f\x0b", 2);
    RAISES("ud2 at the end of a page", UD, run(end - 2));
    memcpy(end - 1, "\xcc", 1);
    RAISES("int3 at the end of a page", BP, run(end - 1));
    memcpy(end - 1, "\xf4", 1);
    RAISES("hlt at the end of a page", GP(0), run(end - 1));
    memcpy(end - 1, "\xf1", 1);
    RAISES("icebp at the end of a page", BRACED(SIGTRAP, ANY, 1, 0), run(end - 1));
    memcpy(end - 2, "\xcd\x20", 2);
    RAISES("int $0x20 at the end of a page", GP(IDT(0x20)), run(end - 2));
}

static void alignment(void)
{
    static _Alignas(16) uint8_t area[1024];

    RAISES("movaps, aligned", NOTHING, asm volatile("movaps (%0), %%xmm0" ::"r"(area) : "xmm0"));
    RAISES("movaps, misaligned", GP(0), asm volatile("movaps (%0), %%xmm0" ::"r"(area + 1) : "xmm0"));
    RAISES("movaps, misaligned store", GP(0), asm volatile("movaps %%xmm0, (%0)" ::"r"(area + 8) : "memory"));
    RAISES("movdqa, misaligned", GP(0), asm volatile("movdqa (%0), %%xmm0" ::"r"(area + 4) : "xmm0"));
    RAISES("paddd, misaligned", GP(0), asm volatile("paddd (%0), %%xmm0" ::"r"(area + 4) : "xmm0"));
    RAISES("movups, misaligned", NOTHING, asm volatile("movups (%0), %%xmm0" ::"r"(area + 1) : "xmm0"));
    RAISES("fxsave, misaligned", GP(0), asm volatile("fxsave (%0)" ::"r"(area + 1) : "memory"));
    RAISES("fxrstor, misaligned", GP(0), asm volatile("fxsave (%0); fxrstor 8(%0)" ::"r"(area) : "memory"));
}

static void floating_point(void)
{
    const uint16_t unmasked = 0x37b; /* division by zero raises */

    RAISES("x87 division by zero", BRACED(SIGFPE, FPE_FLTDIV, 16, 0),
           asm volatile("fninit; fldcw %0; fld1; fldz; fdivrp; fwait" ::"m"(unmasked)));
    asm volatile("fninit");
}

#ifdef __x86_64__
static void addresses(void)
{
    const uintptr_t hole = 1ul << 63; /* no canonical address */
    int value;

    RAISES("read of the kernel", PF_ABSENT(ANY), value = *(volatile int *)0xffffffff81000000);
    RAISES("read above user space", BRACED(SIGSEGV, SEGV_MAPERR, ANY, ANY),
           value = *(volatile int *)0xffff800000000000);
    RAISES("read in the hole", GP(0), value = *(volatile int *)0x800000000000);
    RAISES("jump into the hole", GP(0), asm volatile("jmp *%0" ::"r"(hole)));
    RAISES("push into the hole", SS, asm volatile("mov %0, %%rsp; push %%rax" ::"r"(hole) : "memory"));
    RAISES("read in the hole through RBP", SS,
           asm volatile("push %%rbp; mov %0, %%rbp; mov (%%rbp), %%eax; pop %%rbp" ::"r"(hole) : "rax"));
    (void)value;
}
#else
static void addresses(void)
{
    static const int bounds[2] = {0, 3};

    RAISES("bound", BRACED(SIGSEGV, ANY, 5, 0), asm volatile("bound %0, (%1)" ::"r"(5), "r"(bounds)));
    RAISES("bound, inside", NOTHING, asm volatile("bound %0, (%1)" ::"r"(3), "r"(bounds)));
}
#endif

int main(int argc, char **argv)
{
    static uint8_t stack[65536];
    const stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    const struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};

    must(sigaltstack(&alternate, NULL));
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        must(sigaction(signals[i], &action, NULL));
    scratch = must(mmap(NULL, 2 * PAGE, WX, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (argc < 2 || !strcmp(argv[1], "operands"))
        alignment();
    if (argc < 2 || !strcmp(argv[1], "instructions")) {
        page_faults();
        table();
        at_the_end_of_a_page();
        floating_point();
        addresses();
    }
    return verdict("exceptions");
}
