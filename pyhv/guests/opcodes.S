# SPDX-License-Identifier: GPL-2.0-only
#
# opcodes - executes instructions that its processor does not have, and checks that each is refused; then powers off
#
# A program may ask CPUID what its processor can do, or try it and see whether that raises #UD. Both must say the same,
# or the program computes something else than it believes. This kernel tries: AVX, transactions, SSE4A, LOCK and
# prefixes where they are not allowed, registers that do not exist, SSE operands that are not aligned. The list is
# in opcodes.inc; each line is one instruction, and the exception that it must raise, or none.
#
# Steps: CPUID offers nothing of what is tried (else SKIP); the list; SUCCESS.

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"

.set AVX, 1 << 28                               # leaf 1, ecx
.set RTM, 1 << 11                               # leaf 7, ebx
.set SSE4A, 1 << 6                              # leaf 0x80000001, ecx

.macro refused what, vector, instruction
    .data
.what\@: .asciz "\what"
.at\@:
    \instruction
    ret
    .text
    lea rdi, [rip + .what\@]
    lea rsi, [rip + .at\@]
    mov edx, \vector
    call refuse
.endm

.macro runs what, instruction
    .data
.what\@: .asciz "\what"
.at\@:
    \instruction
    ret
    .text
    lea rdi, [rip + .what\@]
    lea rsi, [rip + .at\@]
    call execute
.endm

.text
_start:
    kernel_entry
    print "opcodes: instructions that the processor does not have\n"
    call traps_init
    mov eax, 1
    cpuid
    test ecx, AVX
    jnz .skip
    mov eax, 7
    xor ecx, ecx
    cpuid
    test ebx, RTM
    jnz .skip
    mov eax, 0x80000001
    cpuid
    test ecx, SSE4A
    jnz .skip
    lea rbx, [rip + operand]
    call instructions
    succeed
.skip:
    print "SKIP: this processor has some of them\n"
    jmp poweroff

# refuse(rdi = what it is, rsi = an instruction and a return, edx = the exception that it must raise)
refuse:
    mov r12, rdi
    mov r13, rsi
    mov r14d, edx
    trap_begin .came
    call rsi
.came:
    mov rdi, r12
    mov esi, r14d
    call expect_trap
    cmp [rip + trapped_rip], r13
    jne wrong_exception
    cmp qword ptr [rip + trapped_error], 0
    jne wrong_exception
    ret

# execute(rdi = what it is, rsi = an instruction and a return): nothing may be raised
execute:
    mov r12, rdi
    trap_begin .done
    call rsi
.done:
    cmp qword ptr [rip + trapped_vector], -1
    jne wrong_exception
    mov qword ptr [rip + trap_resume], 0
    ret
wrong_exception:
    print "FAILURE: "
    mov rdi, r12
    call puts
    print ": exception "
    print_dec [rip + trapped_vector]
    print " with error code "
    print_hex [rip + trapped_error]
    print " at "
    print_hex [rip + trapped_rip]
    print "\n"
    jmp poweroff

.include "opcodes.inc"
