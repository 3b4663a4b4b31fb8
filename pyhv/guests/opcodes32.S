# SPDX-License-Identifier: GPL-2.0-only
#
# opcodes32 - executes instructions that its processor does not have, in a 32-bit kernel; then powers off
#
# What it does and why is told in `opcodes`, and the list is the same. What is different: C4 and C5 are LES and LDS here
# unless a register would be their operand, which is how VEX found room in 32-bit code.
#
# Steps: CPUID offers nothing of what is tried (else SKIP); the list; LES; SUCCESS.

.width 32
.include "xen.inc"
.include "kernel32.inc"
.include "traps32.inc"

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
    mov eax, .what\@
    mov ecx, .at\@
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
    mov eax, .what\@
    mov ecx, .at\@
    call execute
.endm

.text
_start:
    kernel_entry
    print "opcodes32: instructions that the processor does not have\n"
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
    mov ebx, operand
    call instructions
    mov dword ptr [operand], 0x1234             # offset, then the selector: data of ring 1
    mov dword ptr [operand + 4], FLAT_RING1_DS
    runs "LES", ".byte 0xc4, 0x03"
    mov dword ptr [operand + 4], FLAT_RING1_DS
    runs "LDS", ".byte 0xc5, 0x03"
    succeed
.skip:
    print "SKIP: this processor has some of them\n"
    jmp poweroff

# refuse(eax = what it is, ecx = an instruction and a return, edx = the exception that it must raise)
refuse:
    mov [name], eax
    mov [place], ecx
    mov [wanted], edx
    trap_begin .came
    call ecx
.came:
    mov eax, [name]
    mov edx, [wanted]
    call expect_trap
    mov eax, [place]
    cmp [trapped_eip], eax
    jne wrong_exception
    cmp dword ptr [trapped_error], 0
    jne wrong_exception
    mov ebx, operand
    ret

# execute(eax = what it is, ecx = an instruction and a return): nothing may be raised
execute:
    mov [name], eax
    trap_begin .done
    call ecx
.done:
    cmp dword ptr [trapped_vector], -1
    jne wrong_exception
    mov dword ptr [trap_resume], 0
    mov ebx, operand
    ret
wrong_exception:
    print "FAILURE: "
    mov eax, [name]
    call puts
    print ": exception "
    print_dec [trapped_vector]
    print " with error code "
    print_hex [trapped_error]
    print " at "
    print_hex [trapped_eip]
    print "\n"
    jmp poweroff

.include "opcodes.inc"

.balign 4
name:   .long 0
place:  .long 0
wanted: .long 0
