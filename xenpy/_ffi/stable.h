/* SPDX-License-Identifier: MIT */
/* cdefs: the stable Xen libraries as far as xenpy uses them, then shim.c and our headers. */

typedef unsigned int evtchn_port_t;
typedef uint16_t domid_t;
struct xentoollog_logger;

/* xengnttab.h */
typedef struct xengntdev_handle xengnttab_handle;
typedef struct xengntdev_handle xengntshr_handle;
union xengnttab_copy_ptr {
    void *virt;
    struct {
        uint32_t ref;
        uint16_t offset;
        uint16_t domid;
    } foreign;
};
typedef struct xengnttab_grant_copy_segment {
    union xengnttab_copy_ptr source;
    union xengnttab_copy_ptr dest;
    uint16_t len;
    uint16_t flags;
    int16_t status;
} xengnttab_grant_copy_segment_t;

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned open_flags);
int xengnttab_close(xengnttab_handle *xgt);
void *xengnttab_map_grant_refs(xengnttab_handle *xgt, uint32_t count, uint32_t *domids,
                               uint32_t *refs, int prot);
void *xengnttab_map_domain_grant_refs(xengnttab_handle *xgt, uint32_t count, uint32_t domid,
                                      uint32_t *refs, int prot);
void *xengnttab_map_grant_ref_notify(xengnttab_handle *xgt, uint32_t domid, uint32_t ref,
                                     int prot, uint32_t notify_offset, evtchn_port_t notify_port);
int xengnttab_unmap(xengnttab_handle *xgt, void *start_address, uint32_t count);
int xengnttab_grant_copy(xengnttab_handle *xgt, uint32_t count,
                         xengnttab_grant_copy_segment_t *segs);
xengntshr_handle *xengntshr_open(struct xentoollog_logger *logger, unsigned open_flags);
int xengntshr_close(xengntshr_handle *xgs);
void *xengntshr_share_pages(xengntshr_handle *xgs, uint32_t domid, int count, uint32_t *refs,
                            int writable);
void *xengntshr_share_page_notify(xengntshr_handle *xgs, uint32_t domid, uint32_t *ref,
                                  int writable, uint32_t notify_offset, evtchn_port_t notify_port);
int xengntshr_unshare(xengntshr_handle *xgs, void *start_address, uint32_t count);

#define GNTCOPY_source_gref ...

/* xenevtchn.h */
typedef struct xenevtchn_handle xenevtchn_handle;
xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags);
int xenevtchn_close(xenevtchn_handle *xce);
int xenevtchn_fd(xenevtchn_handle *xce);
int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port);
int xenevtchn_bind_unbound_port(xenevtchn_handle *xce, uint32_t domid);
int xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, evtchn_port_t remote_port);
int xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq);
int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port);
int xenevtchn_restrict(xenevtchn_handle *xce, domid_t domid);

/* calls.h */
struct xenpy_calls {
    void *grants;
    void *events;
    int events_fd;
    void *(*map)(void *grants, uint32_t count, uint32_t domid, uint32_t *refs, int prot);
    int (*unmap)(void *grants, void *address, uint32_t count);
    int (*copy)(void *grants, uint32_t count, xengnttab_grant_copy_segment_t *segments);
    int (*notify)(void *events, uint32_t port);
    int (*pending)(void *events, uint32_t *ports, uint32_t limit);
    int (*unmask)(void *events, const uint32_t *ports, uint32_t count);
};
void xenpy_calls_init(struct xenpy_calls *calls, xengnttab_handle *grants,
                      xenevtchn_handle *events);

int xenpy_dont_fork(void *address, size_t length);
int xenpy_evtchn_read(int fd, uint32_t *ports, uint32_t limit);
int xenpy_evtchn_unmask(int fd, const uint32_t *ports, uint32_t count);
void xenpy_copy_from_guest(xengnttab_grant_copy_segment_t *segment, uint32_t domid, uint32_t ref,
                           uint32_t offset, void *local, uint32_t length);
void xenpy_copy_to_guest(xengnttab_grant_copy_segment_t *segment, uint32_t domid, uint32_t ref,
                         uint32_t offset, void *local, uint32_t length);

/* quiet.h */
struct xentoollog_logger *xenpy_quiet_logger(void);

/* shim.c */
int xenpy_evtchn_reset(int fd);
uint32_t xenpy_copy_select(const xengnttab_grant_copy_segment_t *segments, uint32_t count,
                           int status, xengnttab_grant_copy_segment_t *found, uint32_t *where);
void xenpy_copy_merge(xengnttab_grant_copy_segment_t *segments,
                      const xengnttab_grant_copy_segment_t *found, const uint32_t *where,
                      uint32_t count);

/* ring_core.h */
struct xenpy_ring {
    uint32_t entries;
    uint32_t request_size;
    uint32_t response_size;
    uint32_t slot_size;
    uint32_t produced;
    uint32_t consumed;
};
struct xenpy_stream {
    uint32_t size;
    uint32_t index;
};
uint32_t xenpy_load_acquire(const void *where);
void xenpy_store_release(void *where, uint32_t value);
void xenpy_fence(void);
uint8_t xenpy_load_acquire8(const void *where);
void xenpy_store_release8(void *where, uint8_t value);
uint8_t xenpy_fetch_or8(void *where, uint8_t bits);
uint8_t xenpy_fetch_and8(void *where, uint8_t bits);
int64_t xenpy_back_take(struct xenpy_ring *ring, void *shared, uint8_t *requests, uint32_t limit);
int64_t xenpy_back_push(struct xenpy_ring *ring, void *shared, const uint8_t *responses,
                        uint32_t count);
int64_t xenpy_back_final_check(struct xenpy_ring *ring, void *shared);
int64_t xenpy_front_take(struct xenpy_ring *ring, void *shared, uint8_t *responses,
                         uint32_t limit);
int64_t xenpy_front_put(struct xenpy_ring *ring, void *shared, const uint8_t *requests,
                        uint32_t count);
int64_t xenpy_front_final_check(struct xenpy_ring *ring, void *shared);
int64_t xenpy_stream_queued(const struct xenpy_stream *stream, const uint8_t *theirs);
int64_t xenpy_stream_unread(const struct xenpy_stream *stream, const uint8_t *theirs);
void xenpy_stream_taken(struct xenpy_stream *stream, uint8_t *ours, uint32_t count);
int64_t xenpy_stream_read(struct xenpy_stream *stream, const uint8_t *ring, uint8_t *ours,
                          const uint8_t *theirs, uint8_t *out, size_t limit);
int64_t xenpy_stream_write(struct xenpy_stream *stream, uint8_t *ring, uint8_t *ours,
                           const uint8_t *theirs, const uint8_t *data, size_t length);

/* duplex.h */
struct xenpy_duplex {
    const struct xenpy_calls *calls;
    uint32_t port;
    uint32_t ended;
    uint32_t lost;
    uint32_t fired;
    uint32_t followers;
    uint32_t leading;
    uint32_t idle;
    uint32_t wake;
    uint32_t in_seen;
    uint32_t out_seen;
    size_t out_done;
    struct xenpy_stream *incoming;
    const uint8_t *in_data;
    uint8_t *in_ours;
    const uint8_t *in_theirs;
    struct xenpy_stream *outgoing;
    uint8_t *out_data;
    uint8_t *out_ours;
    const uint8_t *out_theirs;
    const uint8_t *peer_live;
    uint8_t *wanted;
    uint8_t *asked;
};
int64_t xenpy_duplex_read(struct xenpy_duplex *duplex, uint8_t *out, size_t limit, int timeout);
int xenpy_duplex_write(struct xenpy_duplex *duplex, const uint8_t *data, size_t length,
                       int timeout);
int xenpy_duplex_drain(struct xenpy_duplex *duplex, int timeout);
int xenpy_duplex_may_sleep(struct xenpy_duplex *duplex, uint32_t seen);
void xenpy_duplex_follow(struct xenpy_duplex *duplex, int32_t by);

/* trace.h */
#define XENPY_TRACE_VERSION ...
struct xenpy_trace_record {
    uint64_t taken;
    uint64_t answered;
    uint64_t detail;
    uint32_t index;
    uint16_t request_size;
    uint16_t response_size;
    uint8_t request[...];
    uint8_t response[...];
};
struct xenpy_trace {
    uint32_t version;
    uint32_t size;
    uint32_t wanted;
    uint32_t ended;
    ...;
};
size_t xenpy_trace_size(void);
uint64_t xenpy_trace_taken(const struct xenpy_trace *trace);
void xenpy_trace_put(struct xenpy_trace *trace, uint64_t taken, uint32_t index, uint64_t detail,
                     const uint8_t *request, size_t request_size, const uint8_t *response,
                     size_t response_size);
uint64_t xenpy_trace_written(const struct xenpy_trace *trace);
uint32_t xenpy_trace_read(const struct xenpy_trace *trace, uint64_t *next,
                          struct xenpy_trace_record *out, uint32_t limit);

/* peek.h */
struct xenpy_peek {
    const uint8_t *shared;
    uint32_t entries;
    uint32_t slot_size;
    uint32_t request_size;
    uint32_t response_size;
    uint32_t requests;
    uint32_t responses;
    uint64_t asked;
    uint64_t answered;
    uint64_t lost_requests;
    uint64_t lost_responses;
};
struct xenpy_sight {
    uint64_t when;
    uint32_t index;
    uint16_t ring;
    uint16_t answer;
    uint8_t message[...];
};
void xenpy_peek_begin(struct xenpy_peek *peek);
uint32_t xenpy_peek_run(struct xenpy_peek *peeks, uint32_t count, uint64_t interval,
                        uint64_t until, struct xenpy_sight *out, uint32_t limit);
