/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Stand-ins for what xenstored asks of a hypervisor: event channels, one granted page, who a domain is, and
 * the files by which dom0's kernel names its own ring. Built as the three libraries that xenstored is linked
 * with, and preloaded for the files.
 *
 *   XENSTORED_DOORBELL   a FIFO: a byte in it is an event of the guest's
 *   XENSTORED_RING       the guest's ring page; XENSTORED_DOM0_RING dom0's, which nobody uses
 *   XENSTORED_DOM0_PORT  a file with dom0's port in decimal
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GUEST_PORT = 7, VIRQ_PORT = 99, PAGE = 4096, DOMINFO_SIZE = 64 };

static int doorbell = -1;
static char handle;

void *xenevtchn_open(void *logger, unsigned flags)
{
    (void)logger;
    (void)flags;
    doorbell = open(getenv("XENSTORED_DOORBELL"), O_RDWR | O_NONBLOCK);
    return doorbell < 0 ? NULL : &handle;
}

void *xenevtchn_fdopen(void *logger, int fd, unsigned flags)
{
    (void)fd;
    return xenevtchn_open(logger, flags);
}

int xenevtchn_fd(void *h) { (void)h; return doorbell; }
int xenevtchn_bind_virq(void *h, unsigned virq) { (void)h; (void)virq; return VIRQ_PORT; }
int xenevtchn_bind_interdomain(void *h, unsigned domid, unsigned port) { (void)h; (void)domid; (void)port; return GUEST_PORT; }
int xenevtchn_unbind(void *h, unsigned port) { (void)h; (void)port; return 0; }
int xenevtchn_notify(void *h, unsigned port) { (void)h; (void)port; return 0; }
int xenevtchn_unmask(void *h, unsigned port) { (void)h; (void)port; return 0; }

int xenevtchn_pending(void *h)
{
    char byte;
    (void)h;
    return read(doorbell, &byte, 1) < 0 ? -1 : GUEST_PORT;
}

void *xengnttab_open(void *logger, unsigned flags) { (void)logger; (void)flags; return &handle; }
int xengnttab_close(void *h) { (void)h; return 0; }
int xengnttab_set_max_grants(void *h, unsigned n) { (void)h; (void)n; return 0; }
int xengnttab_unmap(void *h, void *page, unsigned n) { (void)h; return munmap(page, n * PAGE); }

void *xengnttab_map_grant_ref(void *h, unsigned domid, unsigned ref, int prot)
{
    (void)h;
    (void)domid;
    (void)ref;
    int fd = open(getenv("XENSTORED_RING"), O_RDWR);
    void *page = mmap(NULL, PAGE, prot, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

void *xc_interface_open(void *logger, void *dombuild_logger, unsigned flags)
{
    (void)logger;
    (void)dombuild_logger;
    (void)flags;
    return &handle;
}

int xc_interface_close(void *h) { (void)h; return 0; }

/* A living domain: xc_dominfo_t begins with its number, and all else of it is zero. */
int xc_domain_getinfo(void *h, unsigned first, unsigned max, void *info)
{
    (void)h;
    (void)max;
    memset(info, 0, DOMINFO_SIZE);
    memcpy(info, &first, sizeof first);
    return 1;
}

int open(const char *path, int flags, ...)
{
    static int (*real)(const char *, int, ...);
    va_list arguments;
    if (!real)
        real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    if (strstr(path, "xsd_kva"))
        return real(getenv("XENSTORED_DOM0_RING"), O_RDWR);
    if (strstr(path, "xsd_port"))
        return real(getenv("XENSTORED_DOM0_PORT"), O_RDONLY);
    va_start(arguments, flags);
    int mode = va_arg(arguments, int);
    va_end(arguments);
    return real(path, flags, mode);
}
