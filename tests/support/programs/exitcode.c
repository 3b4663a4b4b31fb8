// SPDX-License-Identifier: GPL-2.0-only
/* Two programs of the same size that differ in one byte of code: compiled with -DSTATUS=11, 22 and so on. */
int main(void)
{
    return STATUS;
}
