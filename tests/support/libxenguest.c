/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Drives the domain builder of genuine libxenguest without a hypervisor, for tests/support/libxenguest.py.
 *
 * A line of standard input is a request, its fields separated by tabs:
 *
 *     kernel file, ramdisk file or "-", memory in MiB, file for the domain's memory or "-"
 *
 * Each is answered by one line: "refused", the stage and the library's last message; or "built" and what has
 * been laid out, as name=value. A process of its own builds each domain, so that the library may crash.
 *
 * What the builder would ask of a hypervisor is answered here: the domain has the id 0, for which the library
 * takes ordinary memory; its frames are those that FRAME says; the one thing it maps all the same, to clear a
 * page, is ordinary memory too. Of the hypervisor's own checks the one of the hypercall page is made here.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <xenctrl.h>
#include <xenguest.h>
#include <xentoollog.h>

#define FRAME(pfn) (3 * (pfn) + 0x107)
#define UNSET (~0ul)
#define SHARED_INFO_FRAME 0x77
#define STORE_PORT 1
#define CONSOLE_PORT 2
#define COMMAND_LINE "console=hvc0"
#define SECONDS 20
#define MEMORY (8ul << 30)

static const char *text_of_log;

void *xenforeignmemory_map(void *handle, uint32_t domain, int rights, size_t pages, const xen_pfn_t *frames,
                           int *errors)
{
    return mmap(NULL, pages << XC_PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

int xenforeignmemory_unmap(void *handle, void *start, size_t pages)
{
    return munmap(start, pages << XC_PAGE_SHIFT);
}

static void show_segment(const char *name, const struct xc_dom_seg *segment)
{
    printf(" %s=%lx %s_pages=%lx", name, segment->pfn, name, segment->pages);
}

static void dump(const struct xc_dom_image *dom, const char *path)
{
    FILE *file = fopen(path, "w");

    for ( const struct xc_dom_phys *run = dom->phys_pages; run; run = run->next )
    {
        uint64_t where[2] = { run->first, run->count };

        fwrite(where, sizeof(where), 1, file);
        fwrite(run->ptr, 1ul << XC_PAGE_SHIFT, run->count, file);
    }
    fclose(file);
}

static const char *build(struct xc_dom_image *dom, const char *kernel, const char *ramdisk, unsigned mib)
{
    strcpy(dom->xen_caps, "xen-3.0-x86_64 xen-3.0-x86_32p ");
    dom->container_type = XC_DOM_PV_CONTAINER;
    dom->xenstore_evtchn = STORE_PORT;
    dom->console_evtchn = CONSOLE_PORT;
    dom->shared_info_mfn = SHARED_INFO_FRAME;
    if ( xc_dom_kernel_file(dom, kernel) )
        return "reading the kernel";
    if ( strcmp(ramdisk, "-") && xc_dom_module_file(dom, ramdisk, NULL) )
        return "reading the ramdisk";
    if ( xc_dom_parse_image(dom) )
        return "parsing";
    if ( xc_dom_mem_init(dom, mib) )
        return "memory";
    dom->p2m_size = dom->total_pages;
    dom->pv_p2m = xc_dom_malloc(dom, dom->p2m_size * sizeof(*dom->pv_p2m));
    for ( xen_pfn_t pfn = 0; pfn < dom->p2m_size; pfn++ )
        dom->pv_p2m[pfn] = FRAME(pfn);
    if ( xc_dom_build_image(dom) )
        return "building";
    if ( dom->arch_hooks->bootearly(dom) )
        return "what no domain may require";
    if ( xc_dom_virt_hypercall(dom) != UNSET &&
         xc_dom_p2m(dom, (xc_dom_virt_hypercall(dom) - xc_dom_virt_base(dom)) >> XC_PAGE_SHIFT) == INVALID_MFN )
        return "the hypervisor, which finds no page for its stubs";
    if ( dom->arch_hooks->setup_pgtables(dom) )
        return "page tables";
    if ( dom->arch_hooks->start_info(dom) )
        return "start_info";
    return NULL;
}

static void show(struct xc_dom_image *dom)
{
    unsigned long supported = 0;

    for ( unsigned nr = 0; nr < 32; nr++ )
        supported |= (unsigned long)xc_dom_feature_get(dom, nr) << nr;
    printf("built guest_type=%s virt_base=%lx entry=%lx hypercall_page=%lx kstart=%lx kend=%lx", dom->guest_type,
           xc_dom_virt_base(dom), xc_dom_virt_entry(dom), xc_dom_virt_hypercall(dom), dom->kernel_seg.vstart,
           dom->kernel_seg.vend);
    show_segment("kernel", &dom->kernel_seg);
    show_segment("p2m", &dom->p2m_seg);
    show_segment("page_tables", &dom->pgtables_seg);
    show_segment("ramdisk", &dom->modules[0].seg);
    printf(" start_info=%lx xenstore=%lx console=%lx boot_stack=%lx mapped_end=%lx used_pages=%lx required=%x"
           " supported=%lx\n", dom->start_info_pfn, dom->xenstore_pfn, dom->console_pfn, dom->bootstack_pfn,
           dom->virt_pgtab_end, dom->pfn_alloc_end, dom->f_active[0], supported);
}

static const char *last_message(void)
{
    static char message[256];
    const char *end = text_of_log + strlen(text_of_log), *start;

    while ( end > text_of_log && end[-1] == '\n' )
        end--;
    for ( start = end; start > text_of_log && start[-1] != '\n'; start-- )
        ;
    snprintf(message, sizeof(message), "%.*s", (int)(end - start), start);
    return message;
}

static void answer(char *request)
{
    size_t size;
    FILE *log = open_memstream((char **)&text_of_log, &size);
    xentoollog_logger *logger = (void *)xtl_createlogger_stdiostream(log, XTL_ERROR, 0);
    xc_interface *xch = xc_interface_open(logger, logger, XC_OPENFLAG_DUMMY);
    struct xc_dom_image *dom = xc_dom_allocate(xch, COMMAND_LINE, NULL);
    const char *kernel = strtok(request, "\t"), *ramdisk = strtok(NULL, "\t"), *mib = strtok(NULL, "\t");
    const char *memory = strtok(NULL, "\t\n"), *stage = build(dom, kernel, ramdisk, atoi(mib));

    fflush(log);
    if ( stage )
        printf("refused %s: %s\n", stage, last_message());
    else
    {
        show(dom);
        if ( strcmp(memory, "-") )
            dump(dom, memory);
    }
}

int main(void)
{
    const struct rlimit memory = { MEMORY, MEMORY }, core = { 0, 0 };
    char *request = NULL;
    size_t size = 0;

    setrlimit(RLIMIT_AS, &memory);
    setrlimit(RLIMIT_CORE, &core);
    while ( getline(&request, &size, stdin) > 0 )
    {
        pid_t child = fork();
        int status;

        if ( child == 0 )
        {
            alarm(SECONDS);
            answer(request);
            fflush(stdout);
            _exit(0);
        }
        waitpid(child, &status, 0);
        if ( WIFSIGNALED(status) )
            printf("crashed by signal %d\n", WTERMSIG(status));
        fflush(stdout);
    }
    return 0;
}
