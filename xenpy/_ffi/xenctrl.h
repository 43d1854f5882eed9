/* SPDX-License-Identifier: MIT */
/*
 * cdefs: libxenctrl, whose ABI belongs to one Xen release.  Only functions that 4.17 and 4.20
 * both have; structures are looked up by the C compiler, field by field.
 */
struct xentoollog_logger;
typedef struct xc_interface_core xc_interface;

typedef struct {
    uint16_t domain;
    uint32_t flags;
    uint64_t tot_pages;
    uint64_t max_pages;
    uint64_t cpu_time;
    uint32_t nr_online_vcpus;
    uint32_t max_vcpu_id;
    uint32_t ssidref;
    uint8_t handle[16];
    ...;
} xc_domaininfo_t;

typedef struct {
    uint32_t threads_per_core;
    uint32_t cores_per_socket;
    uint32_t nr_cpus;
    uint32_t nr_nodes;
    uint32_t cpu_khz;
    uint64_t total_pages;
    uint64_t free_pages;
    uint64_t scrub_pages;
    ...;
} xc_physinfo_t;

#define XEN_DOMINF_dying ...
#define XEN_DOMINF_hvm_guest ...
#define XEN_DOMINF_shutdown ...
#define XEN_DOMINF_paused ...
#define XEN_DOMINF_blocked ...
#define XEN_DOMINF_running ...
#define XEN_DOMINF_shutdownmask ...
#define XEN_DOMINF_shutdownshift ...
#define XENVER_version ...
#define XENVER_extraversion ...

xc_interface *xc_interface_open(struct xentoollog_logger *logger,
                                struct xentoollog_logger *dombuild_logger, unsigned open_flags);
int xc_interface_close(xc_interface *xch);
int xc_domain_getinfolist(xc_interface *xch, uint32_t first_domain, unsigned int max_domains,
                          xc_domaininfo_t *info);
int xc_physinfo(xc_interface *xch, xc_physinfo_t *info);
int xc_version(xc_interface *xch, int cmd, void *arg);
int xc_send_debug_keys(xc_interface *xch, const char *keys);

typedef struct {
    uint16_t dom;
    uint32_t port;
    uint32_t status;
    uint32_t vcpu;
    union {
        struct {
            uint16_t dom;
        } unbound;
        struct {
            uint16_t dom;
            uint32_t port;
        } interdomain;
        uint32_t pirq;
        uint32_t virq;
    } u;
} xc_evtchn_status_t;

#define EVTCHNSTAT_closed ...
#define EVTCHNSTAT_unbound ...
#define EVTCHNSTAT_interdomain ...
#define EVTCHNSTAT_pirq ...
#define EVTCHNSTAT_virq ...
#define EVTCHNSTAT_ipi ...

int xc_evtchn_status(xc_interface *xch, xc_evtchn_status_t *status);
int xc_readconsolering(xc_interface *xch, char *buffer, unsigned int *pnr_chars, int clear,
                       int incremental, uint32_t *pindex);

struct xentoollog_logger *xenpy_quiet_logger(void);
