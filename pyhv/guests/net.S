# SPDX-License-Identifier: GPL-2.0-only
#
# net - counts to twenty together with whoever else is on its network; boot two
#
# The other side of a network device is no other guest but a back end, which Xen's tools have prepared in the store:
# where it is, what it can do, and which address we have. We lend it our rings and pages, say which in the store, and
# change our state; it answers with its own. After that the store is no longer needed: frames go through the rings.
#
# Each guest says 1 to everybody, and answers a number that is not below its own with the next one. Nobody hears what
# was said before he was there; so whoever comes last begins. (`netfront.inc` is the driver.)

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "events.inc"
.include "paging.inc"
.include "xenstore.inc"
.include "netfront.inc"

.set LAST, 20
.set ETHERTYPE, 0xb588                          # 88 b5, for experiments (IEEE 802): as it lies in memory
.set HELLO_SIZE, 60
.set HELLO_from, 6
.set HELLO_type, 12
.set HELLO_number, 14                           # u32

.text
_start:
    kernel_entry
    print "net: looking for others\n"
    call traps_init
    call xenstore_init
    call net_find
    call net_join
    mov ebp, 1                                  # ebp = the number that we said last
.say:
    mov edi, ebp
    call say
    cmp ebp, LAST
    jae .done
.listen:
    call net_next
    test rax, rax
    jnz .heard
    mov edi, [rip + net_port]
    call wait_port
    test rax, rax
    check z, "nobody has said anything for 10 seconds"
    jmp .listen
.heard:
    cmp ecx, HELLO_SIZE
    jb .listen
    cmp word ptr [rax + HELLO_type], ETHERTYPE
    jne .listen                                 # somebody else's business
    mov ecx, [rax + HELLO_number]
    cmp ecx, ebp
    jb .listen
    mov ebp, ecx
    cmp ebp, LAST
    jae .done
    inc ebp
    jmp .say
.done:
    call net_close
    print "  counted to "
    print_dec rbp
    print "\n"
    succeed

say:                                            # edi = number
    lea rdx, [rip + net_out]
    mov dword ptr [rdx], -1                     # to everybody
    mov word ptr [rdx + 4], -1
    mov rax, [rip + net_mac]
    mov [rdx + HELLO_from], rax                 # eight bytes; what follows overwrites the last two
    mov word ptr [rdx + HELLO_type], ETHERTYPE
    mov [rdx + HELLO_number], edi
    mov esi, HELLO_SIZE
    jmp net_send
