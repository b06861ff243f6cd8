/*
 * cuda_standin.c - a stand-in libcuda.so.1 for tests on machines without a GPU.
 *
 * It implements the *documented* CUDA driver API closely enough to exercise
 * host code that manages contexts, memory, streams, events and graphs, and it
 * is deliberately strict: stale handles, out-of-range copies, use after free,
 * calls without a context, calls that are illegal during stream capture and
 * unjoined captures are answered with the error code the API documents.
 *
 *   - "Device" memory is an address range that the host cannot touch
 *     (PROT_NONE) backed by a hidden host buffer, so a device pointer that is
 *     dereferenced by host code faults, as it would on a real machine.
 *   - Copies and sets are real.  Kernels do nothing: they are checked, counted
 *     and logged.  No numerics are claimed.
 *   - Work runs when it is issued or, with CUSTANDIN_DEFER=1, only when
 *     something waits for it, which shows up missing synchronization.
 *   - cuGetExportTable, NVIDIA's private driver<->runtime interface, is
 *     refused.  NVIDIA's own CUDA *runtime* (libcudart, also where linked
 *     statically, as in libtensorrt_rtx) therefore does not start on this
 *     library.  See README.
 *
 * Written against the public header cuda.h only.  Environment: see README.
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define STR_(x) #x
#define STR(x) STR_(x)
#define API CUresult CUDAAPI
#define EXTRA __attribute__((visibility("default")))

/* ------------------------------------------------------------------ state */

/* One lock for everything; it is only ever dropped around host callbacks. */
static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
static void unlock_big(int *unused) { (void)unused; pthread_mutex_unlock(&big); }

static int inited, log_on, defer_on, cc_major = 8, cc_minor = 6;
static size_t mem_total = (size_t)16 << 30;
static CUresult sticky;                 /* a failed asynchronous operation */
static char fail_name[64], fail_more; static long fail_at;
static unsigned long n_launch, n_graph_launch, n_error, n_blocking;

/* A handle is never given back to malloc, so a stale one is recognized. */
enum kind { K_CTX = 1, K_STREAM, K_EVENT, K_GRAPH, K_NODE, K_EXEC, K_MODULE,
            K_FUNC, K_POOL, K_MAX };
static const char *const kind_name[K_MAX] = { "", "context", "stream", "event",
    "graph", "graph node", "graph exec", "module", "function", "memory pool" };
struct obj { enum kind kind; int live; struct obj *next; };
static struct obj *objs[4096];
static int live_objs[K_MAX];
static long made_objs[K_MAX];

struct ctx { struct obj o; int refs, primary; unsigned flags; };
static struct ctx *primary;
static __thread struct ctx *stack_[64];
static __thread int depth;
static __thread CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

enum opk { OP_EMPTY, OP_COPY, OP_COPY2D, OP_SET, OP_KERNEL, OP_HOST, OP_WAIT,
           OP_RECORD, OP_GRAPH, OP_FREE, OP_STREAMCB };
struct op {
    enum opk k;
    uintptr_t dst, src; size_t n;
    void *staged;                           /* copy of a pageable source */
    unsigned value, width;
    CUDA_MEMCPY2D c2;
    CUhostFn fn; CUstreamCallback scb; void *arg;
    struct stream *s; uint64_t seq;         /* OP_WAIT: who and how far */
    struct event *ev; struct graph *g;
    const char *name;
};
struct node { struct obj o; struct op op; struct node **dep; size_t ndep; unsigned seen; };
struct graph { struct obj o; struct node **node; size_t n; int is_exec; };
struct nodeset { struct node **v; size_t n; };
struct capture { struct stream *origin; struct graph *g; int invalid;
                 CUstreamCaptureMode mode; pthread_t thread; uint64_t id; };
struct stream { struct obj o; struct ctx *ctx; unsigned flags; int prio;
                struct op *q; size_t head, tail, cap; uint64_t issued, done;
                struct capture *c; struct nodeset tails; uint64_t id; };
struct event { struct obj o; struct ctx *ctx; unsigned flags;
               struct stream *s; uint64_t seq; struct timespec t; int recorded;
               struct capture *c; struct nodeset tails; };
struct module { struct obj o; struct ctx *ctx; };
struct func { struct obj o; struct module *m; char name[128]; };
struct pool { struct obj o; };

static struct stream legacy_stream, thread_stream;
static struct capture *captures[64];
static struct pool default_pool;
static struct stream **streams; static size_t nstreams;

/* Memory blocks.  Addresses are never reused: freed blocks stay mapped
 * PROT_NONE, so a stale pointer is recognized here and faults elsewhere. */
enum memk { M_DEVICE, M_PINNED, M_REGISTERED, M_MANAGED };
struct block { uintptr_t base; size_t n, map; char *shadow; enum memk k;
               int live; unsigned flags; struct ctx *ctx; };
static struct block *blk; static size_t nblk, capblk, mem_used, mem_peak;

/* ---------------------------------------------------------------- logging */

static void say(const char *fmt, ...)
{
    va_list ap; va_start(ap, fmt);
    fputs("[custandin] ", stderr); vfprintf(stderr, fmt, ap); fputc('\n', stderr);
    va_end(ap);
}
#define LOG(...) do { if (log_on) say(__VA_ARGS__); } while (0)

/* Every refusal goes through here so that the reason can be logged. */
static CUresult no(CUresult r, const char *fn, const char *why)
{
    n_error++;
    LOG("%s -> %d: %s", fn, (int)r, why);
    return r;
}
#define NO(r, why) return no(r, __func__, why)

static void report(void)
{
    size_t left = 0;
    for (size_t i = 0; i < nblk; i++)
        if (blk[i].live) {
            left++;
            say("left: %s block of %zu bytes", blk[i].k == M_DEVICE ? "device"
                : blk[i].k == M_PINNED ? "pinned" : "other", blk[i].n);
        }
    for (int k = K_STREAM; k < K_POOL; k++)
        if (live_objs[k] > 0 && k != K_NODE && k != K_FUNC)
            say("left: %d %s handle(s)", live_objs[k], kind_name[k]);
    say("%lu kernel launches, %lu graph launches, %lu refused calls, %zu blocks left",
        n_launch, n_graph_launch, n_error, left);
}

__attribute__((constructor)) static void setup(void)
{
    const char *e;
    log_on = (e = getenv("CUSTANDIN_LOG")) && *e && *e != '0';
    defer_on = (e = getenv("CUSTANDIN_DEFER")) && *e && *e != '0';
    if ((e = getenv("CUSTANDIN_CC"))) sscanf(e, "%d.%d", &cc_major, &cc_minor);
    if ((e = getenv("CUSTANDIN_MEM_MB"))) mem_total = strtoull(e, 0, 10) << 20;
    if ((e = getenv("CUSTANDIN_FAIL"))) sscanf(e, "%63[^:]:%ld%c", fail_name, &fail_at, &fail_more);
    legacy_stream.o = (struct obj){ K_STREAM, 1, 0 };
    thread_stream.o = (struct obj){ K_STREAM, 1, 0 };
    legacy_stream.id = 1; thread_stream.id = 2;
    default_pool.o = (struct obj){ K_POOL, 1, 0 };
    if ((e = getenv("CUSTANDIN_LEAKS")) && *e && *e != '0') atexit(report);
}

/* Test hooks (not part of CUDA): whether the GPU shares the memory; what is alive, what was launched. */
EXTRA int custandin_integrated;
EXTRA long custandin_live(const char *what)
{
    pthread_mutex_lock(&big);
    long n = -1;
    if (!strcmp(what, "device") || !strcmp(what, "pinned")) {
        enum memk k = *what == 'd' ? M_DEVICE : M_PINNED; n = 0;
        for (size_t i = 0; i < nblk; i++) n += blk[i].live && blk[i].k == k;
    } else if (!strcmp(what, "launches")) n = n_launch;
    else if (!strcmp(what, "graph launches")) n = n_graph_launch;
    else if (!strcmp(what, "errors")) n = n_error;
    else if (!strcmp(what, "blocking events made")) n = n_blocking;
    else if (!strcmp(what, "device bytes")) n = (long)mem_used;
    else if (!strcmp(what, "device bytes at most")) n = (long)mem_peak;
    else if (!strcmp(what, "blocks made")) n = (long)nblk;
    else if (!strncmp(what, "made ", 5)) {
        for (int k = 1; k < K_MAX; k++) if (!strcmp(what + 5, kind_name[k])) n = made_objs[k];
    } else for (int k = 1; k < K_MAX; k++)
        if (!strcmp(what, kind_name[k])) n = live_objs[k];
    pthread_mutex_unlock(&big);
    return n;
}

/* From now on the nth call of a function is out of memory; with more also all
 * later ones.  n = 0 ends that. */
EXTRA void custandin_fail(const char *name, long n, int more)
{
    pthread_mutex_lock(&big);
    snprintf(fail_name, sizeof fail_name, "%s", name);
    fail_at = n; fail_more = more ? '+' : 0;
    pthread_mutex_unlock(&big);
}

static char *host_of(uintptr_t p, size_t n, char want, const char **why);

/* The hidden host copy of n bytes of live device memory; NULL when the range
 * is not that.  For doubles of libraries whose kernels would touch it. */
EXTRA void *custandin_host(uintptr_t p, size_t n)
{
    const char *why = 0;
    pthread_mutex_lock(&big);
    void *h = host_of(p, n, 'd', &why);
    pthread_mutex_unlock(&big);
    return h;
}

/* ---------------------------------------------------------------- handles */

static unsigned slot(const void *p) { return ((uintptr_t)p >> 5) % 4096; }
static void *make(enum kind k, size_t size)
{
    struct obj *o = calloc(1, size);
    o->kind = k; o->live = 1; o->next = objs[slot(o)]; objs[slot(o)] = o;
    live_objs[k]++; made_objs[k]++;
    return o;
}
static void *get(const void *h, enum kind k)      /* NULL if not a live k */
{
    for (struct obj *o = objs[slot(h)]; o; o = o->next)
        if (o == h) return o->live && o->kind == k ? o : 0;
    return h == &default_pool && k == K_POOL ? (void *)h : 0;
}
static void kill_obj(void *h) { struct obj *o = h; o->live = 0; live_objs[o->kind]--; }

static struct stream *get_stream(CUstream h)
{
    if (!h || h == CU_STREAM_LEGACY) return &legacy_stream;
    if (h == CU_STREAM_PER_THREAD) return &thread_stream;
    return get(h, K_STREAM);
}
static struct ctx *cur(void) { return depth ? stack_[depth - 1] : 0; }

/* What every call begins with.  INIT: cuInit was called; CTX: and a live
 * context is current.  Also holds the lock until the function returns. */
static CUresult enter(const char *fn, int need_ctx)
{
    size_t len = strlen(fail_name);               /* "cuMemAlloc" also means cuMemAlloc_v2 */
    if (fail_at > 0 && !strncmp(fn, fail_name, len)
        && (!fn[len] || !strncmp(fn + len, "_v", 2)) && !--fail_at) {
        if (fail_more == '+') fail_at = 1;        /* this one and all later ones */
        return no(CUDA_ERROR_OUT_OF_MEMORY, fn, "asked for by CUSTANDIN_FAIL");
    }
    if (!inited) return no(CUDA_ERROR_NOT_INITIALIZED, fn, "cuInit was not called");
    if (need_ctx) {
        if (!cur()) return no(CUDA_ERROR_INVALID_CONTEXT, fn, "no context is current");
        if (!cur()->o.live)
            return no(CUDA_ERROR_CONTEXT_IS_DESTROYED, fn, "current context was destroyed");
    }
    return CUDA_SUCCESS;
}
#define LOCKED int guard __attribute__((cleanup(unlock_big), unused)) = \
    pthread_mutex_lock(&big)
#define INIT LOCKED; { CUresult r_ = enter(__func__, 0); if (r_) return r_; }
#define CTX LOCKED; { CUresult r_ = enter(__func__, 1); if (r_) return r_; }
#define NEED(p) do { if (!(p)) NO(CUDA_ERROR_INVALID_VALUE, #p " is NULL"); } while (0)

/* ----------------------------------------------------------------- memory */

static struct block *find(uintptr_t p)            /* live or dead */
{
    for (size_t i = nblk; i-- > 0;)
        if (p >= blk[i].base && p - blk[i].base < (blk[i].n ? blk[i].n : 1)
            && (blk[i].live || blk[i].k != M_REGISTERED))
            return &blk[i];
    return 0;
}

static CUresult alloc(const char *fn, enum memk k, size_t n, unsigned flags, uintptr_t *out)
{
    if (!out) return no(CUDA_ERROR_INVALID_VALUE, fn, "no place for the pointer");
    if (!n) return no(CUDA_ERROR_INVALID_VALUE, fn, "size 0");
    if (k == M_DEVICE && n > mem_total - mem_used)
        return no(CUDA_ERROR_OUT_OF_MEMORY, fn, "device memory is used up");
    size_t map = (n + 4095) & ~(size_t)4095;
    /* A PROT_NONE page behind each block catches host overruns of it. */
    char *va = mmap(0, map + 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (va == MAP_FAILED) return no(CUDA_ERROR_OUT_OF_MEMORY, fn, "mmap failed");
    char *shadow = va;
    if (k == M_DEVICE) {
        shadow = mmap(0, map, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (shadow == MAP_FAILED) { munmap(va, map + 4096);
            return no(CUDA_ERROR_OUT_OF_MEMORY, fn, "mmap failed"); }
    } else mprotect(va, map, PROT_READ | PROT_WRITE);
    memset(shadow, 0xA5, n < (64u << 20) ? n : (64u << 20));    /* not zero */
    if (nblk == capblk) blk = realloc(blk, (capblk = capblk * 2 + 64) * sizeof *blk);
    blk[nblk++] = (struct block){ (uintptr_t)va, n, map, shadow, k, 1, flags, cur() };
    if (k == M_DEVICE && (mem_used += n) > mem_peak) mem_peak = mem_used;
    LOG("%s(%zu) = %p", fn, n, va);
    *out = (uintptr_t)va;
    return CUDA_SUCCESS;
}

static void release(struct block *b)
{
    b->live = 0;
    if (b->k == M_DEVICE) { munmap(b->shadow, b->map); mem_used -= b->n; }
    else if (b->k != M_REGISTERED) {
        /* Replaces the pages by inaccessible ones; keeps the address taken. */
        void *p = mmap((void *)b->base, b->map, PROT_NONE,
                       MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        (void)p;
    }
    b->shadow = 0;
}

/* Host address behind [p, p+n), or NULL with a reason.  want: 'd' device,
 * 'h' host (pinned or pageable), 'a' any. */
static char *host_of(uintptr_t p, size_t n, char want, const char **why)
{
    struct block *b = find(p);
    if (!b) {
        if (want == 'd') { *why = "not a device address"; return 0; }
        if (!p) { *why = "NULL host address"; return 0; }
        return (char *)p;
    }
    if (!b->live) { *why = "memory was freed"; return 0; }
    if (n > b->n - (p - b->base)) { *why = "range runs past its allocation"; return 0; }
    if (want == 'd' && b->k == M_REGISTERED) { *why = "not a device address"; return 0; }
    if (want == 'h' && b->k == M_DEVICE) { *why = "device address where a host address belongs"; return 0; }
    return b->shadow + (p - b->base);
}
static int pageable(uintptr_t p) { struct block *b = find(p); return !b; }

/* -------------------------------------------------- executing stream work */

static void drain(struct stream *s, uint64_t upto);

static CUresult copy2d(const CUDA_MEMCPY2D *c, const char **why)
{
    uintptr_t s, d; char sw = 'a', dw = 'a';
    if (c->srcMemoryType == CU_MEMORYTYPE_HOST) { s = (uintptr_t)c->srcHost; sw = 'h'; }
    else s = c->srcDevice, sw = c->srcMemoryType == CU_MEMORYTYPE_DEVICE ? 'd' : 'a';
    if (c->dstMemoryType == CU_MEMORYTYPE_HOST) { d = (uintptr_t)c->dstHost; dw = 'h'; }
    else d = c->dstDevice, dw = c->dstMemoryType == CU_MEMORYTYPE_DEVICE ? 'd' : 'a';
    size_t sp = c->srcPitch ? c->srcPitch : c->WidthInBytes;
    size_t dp = c->dstPitch ? c->dstPitch : c->WidthInBytes;
    if (!c->WidthInBytes || !c->Height) return CUDA_SUCCESS;
    if (c->WidthInBytes + c->srcXInBytes > sp || c->WidthInBytes + c->dstXInBytes > dp) {
        *why = "width is larger than the pitch"; return CUDA_ERROR_INVALID_VALUE; }
    s += c->srcY * sp + c->srcXInBytes; d += c->dstY * dp + c->dstXInBytes;
    const char *ps = host_of(s, (c->Height - 1) * sp + c->WidthInBytes, sw, why);
    char *pd = ps ? host_of(d, (c->Height - 1) * dp + c->WidthInBytes, dw, why) : 0;
    if (!ps || !pd) return CUDA_ERROR_INVALID_VALUE;
    for (size_t y = 0; y < c->Height; y++)
        memmove(pd + y * dp, ps + y * sp, c->WidthInBytes);
    return CUDA_SUCCESS;
}

static void fault(const struct op *o, const char *why)
{
    n_error++;
    if (!sticky) sticky = CUDA_ERROR_ILLEGAL_ADDRESS;
    say("asynchronous failure in %s: %s", o->name ? o->name : "a stream operation", why);
}

static void run_op(struct stream *s, struct op *o)
{
    const char *why = 0; char *d; const char *p;
    switch (o->k) {
    case OP_COPY:
        d = host_of(o->dst, o->n, 'a', &why);
        p = !d ? 0 : o->staged ? o->staged : host_of(o->src, o->n, 'a', &why);
        if (!p) fault(o, why); else memmove(d, p, o->n);
        free(o->staged); o->staged = 0;
        break;
    case OP_COPY2D: if (copy2d(&o->c2, &why)) fault(o, why); break;
    case OP_SET:
        if (!(d = host_of(o->dst, o->n * o->width, 'a', &why))) { fault(o, why); break; }
        if (o->width == 1) memset(d, o->value, o->n);
        else for (size_t i = 0; i < o->n; i++) memcpy(d + i * o->width, &o->value, o->width);
        break;
    case OP_KERNEL: n_launch++; LOG("kernel %s runs (does nothing)", o->name); break;
    case OP_HOST:
        pthread_mutex_unlock(&big); o->fn(o->arg); pthread_mutex_lock(&big); break;
    case OP_STREAMCB:
        pthread_mutex_unlock(&big);
        o->scb(s == &legacy_stream ? 0 : (CUstream)s, CUDA_SUCCESS, o->arg);
        pthread_mutex_lock(&big); break;
    case OP_WAIT: drain(o->s, o->seq); break;
    case OP_RECORD: clock_gettime(CLOCK_MONOTONIC, &o->ev->t); break;
    case OP_GRAPH:
        n_graph_launch++;
        for (size_t i = 0; i < o->g->n; i++) {    /* capture order is a topological order */
            struct op c = o->g->node[i]->op; c.staged = 0; run_op(s, &c);
        }
        break;
    case OP_FREE: { struct block *b = find(o->dst); if (b && b->live) release(b); } break;
    case OP_EMPTY: break;
    }
}

static int step(struct stream *s)                 /* run one; 0: nothing left */
{
    if (s->head == s->tail) return 0;
    struct op o = s->q[s->head++];
    if (s->head == s->tail) s->head = s->tail = 0;
    run_op(s, &o);
    s->done++;
    return 1;
}
static void drain(struct stream *s, uint64_t upto) { while (s->done < upto && step(s)) ; }
static void drain_all(void)
{
    drain(&legacy_stream, legacy_stream.issued); drain(&thread_stream, thread_stream.issued);
    for (size_t i = 0; i < nstreams; i++) drain(streams[i], streams[i]->issued);
}

/* ---------------------------------------------------------------- capture */

static void set_add(struct nodeset *a, struct node *n)
{
    for (size_t i = 0; i < a->n; i++) if (a->v[i] == n) return;
    a->v = realloc(a->v, (a->n + 1) * sizeof *a->v); a->v[a->n++] = n;
}
static void set_clear(struct nodeset *a) { free(a->v); a->v = 0; a->n = 0; }
static void set_merge(struct nodeset *a, const struct nodeset *b)
{ for (size_t i = 0; i < b->n; i++) set_add(a, b->v[i]); }

static struct node *graph_add(struct graph *g, const struct op *op, const struct nodeset *dep)
{
    struct node *n = make(K_NODE, sizeof *n);
    n->op = *op;
    n->ndep = dep ? dep->n : 0;
    n->dep = calloc(n->ndep + 1, sizeof *n->dep);
    for (size_t i = 0; i < n->ndep; i++) n->dep[i] = dep->v[i];
    g->node = realloc(g->node, (g->n + 1) * sizeof *g->node);
    g->node[g->n++] = n;
    return n;
}

static void uncapture(struct capture *c)          /* forget it everywhere */
{
    for (size_t i = 0; i < nstreams; i++)
        if (streams[i]->c == c) { streams[i]->c = 0; set_clear(&streams[i]->tails); }
    for (int i = 0; i < 64; i++) if (captures[i] == c) captures[i] = 0;
    c->origin = 0;                                /* events that point here are stale */
}

/* A call that CUDA forbids while a capture is going on that this thread's
 * mode covers (memory management, synchronous copies).  It also invalidates. */
static CUresult unsafe_in_capture(const char *fn)
{
    for (int i = 0; i < 64; i++) {
        struct capture *c = captures[i];
        if (!c || thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        int mine = pthread_equal(c->thread, pthread_self());
        if (c->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        if (c->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && !mine) continue;
        if (thread_mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && !mine) continue;
        c->invalid = 1;
        return no(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, fn,
                  "not allowed while a stream is being captured");
    }
    return CUDA_SUCCESS;
}
#define UNSAFE do { CUresult r_ = unsafe_in_capture(__func__); if (r_) return r_; } while (0)

static CUresult legacy_clash(const char *fn, struct stream *s)
{
    if (s != &legacy_stream) return CUDA_SUCCESS;
    for (int i = 0; i < 64; i++)
        if (captures[i] && captures[i]->mode != CU_STREAM_CAPTURE_MODE_RELAXED
            && !(captures[i]->origin->flags & CU_STREAM_NON_BLOCKING)) {
            captures[i]->invalid = 1;
            return no(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, fn,
                      "legacy stream used while a blocking stream is being captured");
        }
    return CUDA_SUCCESS;
}

/* Puts one operation into a stream: into the graph while it is captured,
 * else into its queue, which is worked off at once unless deferring. */
static CUresult put(const char *fn, struct stream *s, struct op *op, int sync)
{
    if (!op->name) op->name = fn;
    if (s->c) {
        if (s->c->invalid)
            return no(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, fn, "the capture was invalidated");
        if (op->k == OP_STREAMCB || sync) {
            s->c->invalid = 1;
            return no(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, fn, "cannot be captured");
        }
        free(op->staged); op->staged = 0;         /* a graph reads at launch */
        struct node *n = graph_add(s->c->g, op, &s->tails);
        set_clear(&s->tails); set_add(&s->tails, n);
        LOG("%s captured as node %zu", fn, s->c->g->n - 1);
        return CUDA_SUCCESS;
    }
    CUresult r = legacy_clash(fn, s);
    if (r) return r;
    /* The legacy stream and blocking streams wait for each other. */
    if (s == &legacy_stream) {
        for (size_t i = 0; i < nstreams; i++)
            if (!(streams[i]->flags & CU_STREAM_NON_BLOCKING)) drain(streams[i], streams[i]->issued);
    } else if (!(s->flags & CU_STREAM_NON_BLOCKING) && s != &thread_stream)
        drain(&legacy_stream, legacy_stream.issued);
    if (s->tail == s->cap) {
        if (s->head) { memmove(s->q, s->q + s->head, (s->tail - s->head) * sizeof *s->q);
                       s->tail -= s->head; s->head = 0; }
        else s->q = realloc(s->q, (s->cap = s->cap * 2 + 16) * sizeof *s->q);
    }
    s->q[s->tail++] = *op; s->issued++;
    if (sync || !defer_on) drain(s, s->issued);
    return sync ? sticky : CUDA_SUCCESS;
}

/* ------------------------------------------------- library, device, errors */

API cuInit(unsigned flags)
{
    LOCKED;
    if (flags) NO(CUDA_ERROR_INVALID_VALUE, "flags must be 0");
    inited = 1; return CUDA_SUCCESS;
}
API cuDriverGetVersion(int *v) { if (!v) return CUDA_ERROR_INVALID_VALUE; *v = CUDA_VERSION; return CUDA_SUCCESS; }
API cuDeviceGetCount(int *n) { INIT; NEED(n); *n = 1; return CUDA_SUCCESS; }
#define DEV(d) do { if (d) NO(CUDA_ERROR_INVALID_DEVICE, "there is one device, 0"); } while (0)
API cuDeviceGet(CUdevice *d, int i) { INIT; NEED(d); DEV(i); *d = 0; return CUDA_SUCCESS; }
API cuDeviceGetName(char *s, int n, CUdevice d) { INIT; NEED(s); DEV(d); snprintf(s, n, "Stand-in device (no GPU)"); return CUDA_SUCCESS; }
API cuDeviceGetUuid(CUuuid *u, CUdevice d) { INIT; NEED(u); DEV(d); memset(u, 0x5A, sizeof *u); return CUDA_SUCCESS; }
API cuDeviceTotalMem(size_t *n, CUdevice d) { INIT; NEED(n); DEV(d); *n = mem_total; return CUDA_SUCCESS; }
API cuDeviceGetPCIBusId(char *s, int n, CUdevice d) { INIT; NEED(s); DEV(d); snprintf(s, n, "0000:01:00.0"); return CUDA_SUCCESS; }
API cuDeviceGetByPCIBusId(CUdevice *d, const char *s) { INIT; NEED(d); NEED(s); *d = 0; return CUDA_SUCCESS; }
API cuDeviceComputeCapability(int *a, int *b, CUdevice d) { INIT; NEED(a); NEED(b); DEV(d); *a = cc_major; *b = cc_minor; return CUDA_SUCCESS; }
API cuDeviceCanAccessPeer(int *can, CUdevice a, CUdevice b) { INIT; NEED(can); DEV(a); DEV(b); *can = 0; return CUDA_SUCCESS; }
API cuDeviceGetDefaultMemPool(CUmemoryPool *p, CUdevice d) { INIT; NEED(p); DEV(d); *p = (CUmemoryPool)&default_pool; return CUDA_SUCCESS; }
API cuDeviceGetMemPool(CUmemoryPool *p, CUdevice d) { INIT; NEED(p); DEV(d); *p = (CUmemoryPool)&default_pool; return CUDA_SUCCESS; }

API cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d)
{
    INIT; NEED(v); DEV(d);
#define A(n, x) case CU_DEVICE_ATTRIBUTE_##n: *v = x; break
    switch ((int)a) {
    A(MAX_THREADS_PER_BLOCK, 1024); A(MAX_BLOCK_DIM_X, 1024); A(MAX_BLOCK_DIM_Y, 1024);
    A(MAX_BLOCK_DIM_Z, 64); A(MAX_GRID_DIM_X, 2147483647); A(MAX_GRID_DIM_Y, 65535);
    A(MAX_GRID_DIM_Z, 65535); A(MAX_SHARED_MEMORY_PER_BLOCK, 49152); A(TOTAL_CONSTANT_MEMORY, 65536);
    A(WARP_SIZE, 32); A(MAX_PITCH, 2147483647); A(MAX_REGISTERS_PER_BLOCK, 65536);
    A(CLOCK_RATE, 1700000); A(TEXTURE_ALIGNMENT, 512); A(MULTIPROCESSOR_COUNT, 82);
    A(CAN_MAP_HOST_MEMORY, 1); A(CONCURRENT_KERNELS, 1); A(PCI_BUS_ID, 1);
    A(MEMORY_CLOCK_RATE, 9751000); A(GLOBAL_MEMORY_BUS_WIDTH, 384); A(L2_CACHE_SIZE, 6291456);
    A(MAX_THREADS_PER_MULTIPROCESSOR, 1536); A(ASYNC_ENGINE_COUNT, 2); A(UNIFIED_ADDRESSING, 1);
    A(COMPUTE_CAPABILITY_MAJOR, cc_major); A(COMPUTE_CAPABILITY_MINOR, cc_minor);
    A(STREAM_PRIORITIES_SUPPORTED, 1); A(MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 102400);
    A(MAX_REGISTERS_PER_MULTIPROCESSOR, 65536); A(MANAGED_MEMORY, 1); A(COOPERATIVE_LAUNCH, 1);
    A(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 101376); A(MAX_BLOCKS_PER_MULTIPROCESSOR, 16);
    A(MEMORY_POOLS_SUPPORTED, 1); A(INTEGRATED, custandin_integrated);
    default:
        if (a < 1 || a >= CU_DEVICE_ATTRIBUTE_MAX) NO(CUDA_ERROR_INVALID_VALUE, "unknown attribute");
        *v = 0;
    }
#undef A
    return CUDA_SUCCESS;
}

static const struct { CUresult e; const char *name, *text; } errs[] = {
#define E(n, t) { CUDA_##n, "CUDA_" #n, t }
    E(SUCCESS, "no error"), E(ERROR_INVALID_VALUE, "invalid argument"), E(ERROR_OUT_OF_MEMORY, "out of memory"),
    E(ERROR_NOT_INITIALIZED, "initialization error"), E(ERROR_DEINITIALIZED, "driver shutting down"),
    E(ERROR_NO_DEVICE, "no CUDA-capable device is detected"), E(ERROR_INVALID_DEVICE, "invalid device ordinal"),
    E(ERROR_INVALID_IMAGE, "device kernel image is invalid"), E(ERROR_INVALID_CONTEXT, "invalid device context"),
    E(ERROR_INVALID_HANDLE, "invalid resource handle"), E(ERROR_NOT_FOUND, "named symbol not found"),
    E(ERROR_NOT_READY, "device not ready"), E(ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    E(ERROR_PRIMARY_CONTEXT_ACTIVE, "primary context already active"),
    E(ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"),
    E(ERROR_HOST_MEMORY_ALREADY_REGISTERED, "host memory already registered"),
    E(ERROR_HOST_MEMORY_NOT_REGISTERED, "host memory not registered"),
    E(ERROR_NOT_PERMITTED, "operation not permitted"), E(ERROR_NOT_SUPPORTED, "operation not supported"),
    E(ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    E(ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    E(ERROR_STREAM_CAPTURE_MERGE, "operation would merge two separate captures"),
    E(ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began"),
    E(ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    E(ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream"),
    E(ERROR_STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream"),
    E(ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    E(ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread"),
    E(ERROR_UNKNOWN, "unknown error"),
#undef E
};
static CUresult err_str(CUresult e, const char **s, int text)
{
    if (!s) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < sizeof errs / sizeof *errs; i++)
        if (errs[i].e == e) { *s = text ? errs[i].text : errs[i].name; return CUDA_SUCCESS; }
    *s = 0; return CUDA_ERROR_INVALID_VALUE;
}
API cuGetErrorName(CUresult e, const char **s) { return err_str(e, s, 0); }
API cuGetErrorString(CUresult e, const char **s) { return err_str(e, s, 1); }

/* The private driver<->runtime tables are not offered. */
API cuGetExportTable(const void **t, const CUuuid *id)
{
    LOCKED; (void)id;
    if (t) *t = 0;
    NO(CUDA_ERROR_NOT_SUPPORTED, "private interface, not offered");
}

/* --------------------------------------------------------------- contexts */

static void ctx_destroy(struct ctx *c)
{
    drain_all();
    for (size_t i = 0; i < nblk; i++) if (blk[i].live && blk[i].ctx == c) release(&blk[i]);
    for (size_t i = 0; i < nstreams; i++)
        if (streams[i]->o.live && streams[i]->ctx == c) kill_obj(streams[i]);
    for (int h = 0; h < 4096; h++)
        for (struct obj *o = objs[h]; o; o = o->next) {
            if (!o->live) continue;
            if (o->kind == K_EVENT && ((struct event *)o)->ctx == c) kill_obj(o);
            if (o->kind == K_MODULE && ((struct module *)o)->ctx == c) kill_obj(o);
        }
    sticky = CUDA_SUCCESS;
    kill_obj(c);
}
API cuDevicePrimaryCtxRetain(CUcontext *p, CUdevice d)
{
    INIT; NEED(p); DEV(d);
    if (!primary) { primary = make(K_CTX, sizeof *primary); primary->primary = 1; }
    primary->refs++; *p = (CUcontext)primary; return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRelease(CUdevice d)
{
    INIT; DEV(d);
    if (!primary) NO(CUDA_ERROR_INVALID_CONTEXT, "released more often than retained");
    if (!--primary->refs) { ctx_destroy(primary); primary = 0; }
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxReset(CUdevice d) { INIT; DEV(d); if (primary) { ctx_destroy(primary); primary = 0; } return CUDA_SUCCESS; }
API cuDevicePrimaryCtxGetState(CUdevice d, unsigned *f, int *a) { INIT; DEV(d); if (f) *f = primary ? primary->flags : 0; if (a) *a = !!primary; return CUDA_SUCCESS; }
API cuDevicePrimaryCtxSetFlags(CUdevice d, unsigned f) { INIT; DEV(d); if (primary) primary->flags = f; return CUDA_SUCCESS; }

static CUresult push(struct ctx *c) { if (depth == 64) return CUDA_ERROR_OUT_OF_MEMORY; stack_[depth++] = c; return CUDA_SUCCESS; }
static CUresult ctx_create(const char *fn, CUcontext *p, unsigned f, CUdevice d)
{
    if (!p || d) return no(p ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_INVALID_VALUE, fn, "bad argument");
    struct ctx *c = make(K_CTX, sizeof *c);
    c->flags = f; c->refs = 1; *p = (CUcontext)c; return push(c);
}
API cuCtxCreate(CUcontext *p, CUctxCreateParams *q, unsigned f, CUdevice d) { INIT; (void)q; return ctx_create(__func__, p, f, d); }
EXTRA CUresult cuCtxCreate_v2(CUcontext *p, unsigned f, CUdevice d) { INIT; return ctx_create(__func__, p, f, d); }
API cuCtxDestroy(CUcontext h)
{
    INIT; struct ctx *c = get(h, K_CTX);
    if (!c || c->primary) NO(CUDA_ERROR_INVALID_CONTEXT, "not a live created context");
    if (cur() == c) depth--;
    ctx_destroy(c); return CUDA_SUCCESS;
}
API cuCtxAttach(CUcontext *p, unsigned f) { CTX; NEED(p); (void)f; cur()->refs++; *p = (CUcontext)cur(); return CUDA_SUCCESS; }
API cuCtxDetach(CUcontext h)
{
    INIT; struct ctx *c = get(h, K_CTX);
    if (!c || c->primary) NO(CUDA_ERROR_INVALID_CONTEXT, "not a live created context");
    if (--c->refs > 0) return CUDA_SUCCESS;
    if (cur() == c) depth--;
    ctx_destroy(c); return CUDA_SUCCESS;
}
API cuCtxPushCurrent(CUcontext h) { INIT; struct ctx *c = get(h, K_CTX); if (!c) NO(CUDA_ERROR_INVALID_CONTEXT, "not a live context"); return push(c); }
API cuCtxPopCurrent(CUcontext *p)
{
    INIT; if (!depth) NO(CUDA_ERROR_INVALID_CONTEXT, "no context is current");
    struct ctx *c = stack_[--depth]; if (p) *p = (CUcontext)c; return CUDA_SUCCESS;
}
API cuCtxSetCurrent(CUcontext h)
{
    INIT; struct ctx *c = h ? get(h, K_CTX) : 0;
    if (h && !c) NO(CUDA_ERROR_INVALID_CONTEXT, "not a live context");
    if (!h) { if (depth) depth--; return CUDA_SUCCESS; }
    if (!depth) return push(c);
    stack_[depth - 1] = c; return CUDA_SUCCESS;
}
API cuCtxGetCurrent(CUcontext *p) { INIT; NEED(p); *p = (CUcontext)cur(); return CUDA_SUCCESS; }
API cuCtxGetDevice(CUdevice *d) { CTX; NEED(d); *d = 0; return CUDA_SUCCESS; }
API cuCtxGetFlags(unsigned *f) { CTX; NEED(f); *f = cur()->flags; return CUDA_SUCCESS; }
API cuCtxGetId(CUcontext h, unsigned long long *id) { INIT; NEED(id); *id = (uintptr_t)(h ? (struct ctx *)h : cur()); return CUDA_SUCCESS; }
API cuCtxGetApiVersion(CUcontext h, unsigned *v) { INIT; (void)h; NEED(v); *v = 3020; return CUDA_SUCCESS; }
API cuCtxGetLimit(size_t *v, CUlimit l) { CTX; (void)l; NEED(v); *v = 1024; return CUDA_SUCCESS; }
API cuCtxSetLimit(CUlimit l, size_t v) { CTX; (void)l; (void)v; return CUDA_SUCCESS; }
API cuCtxGetCacheConfig(CUfunc_cache *c) { CTX; NEED(c); *c = CU_FUNC_CACHE_PREFER_NONE; return CUDA_SUCCESS; }
API cuCtxSetCacheConfig(CUfunc_cache c) { CTX; (void)c; return CUDA_SUCCESS; }
API cuCtxGetStreamPriorityRange(int *lo, int *hi) { CTX; if (lo) *lo = 0; if (hi) *hi = -5; return CUDA_SUCCESS; }
API cuCtxSynchronize(void) { CTX; UNSAFE; drain_all(); return sticky; }

/* ----------------------------------------------------- memory: allocation */

API cuMemGetInfo(size_t *f, size_t *t) { CTX; if (f) *f = mem_total - mem_used; if (t) *t = mem_total; return CUDA_SUCCESS; }
API cuMemAlloc(CUdeviceptr *p, size_t n) { CTX; UNSAFE; uintptr_t q; CUresult r = alloc(__func__, M_DEVICE, n, 0, p ? &q : 0); if (!r) *p = q; return r; }
API cuMemAllocPitch(CUdeviceptr *p, size_t *pitch, size_t w, size_t h, unsigned el)
{
    CTX; UNSAFE; NEED(pitch); (void)el; uintptr_t q; *pitch = (w + 511) & ~(size_t)511;
    CUresult r = alloc(__func__, M_DEVICE, *pitch * h, 0, p ? &q : 0); if (!r) *p = q; return r;
}
API cuMemAllocManaged(CUdeviceptr *p, size_t n, unsigned f) { CTX; UNSAFE; uintptr_t q; CUresult r = alloc(__func__, M_MANAGED, n, f, p ? &q : 0); if (!r) *p = q; return r; }
API cuMemHostAlloc(void **p, size_t n, unsigned f) { CTX; UNSAFE; uintptr_t q; CUresult r = alloc(__func__, M_PINNED, n, f, p ? &q : 0); if (!r) *p = (void *)q; return r; }
API cuMemAllocHost(void **p, size_t n) { CTX; UNSAFE; uintptr_t q; CUresult r = alloc(__func__, M_PINNED, n, 0, p ? &q : 0); if (!r) *p = (void *)q; return r; }

static CUresult free_block(const char *fn, uintptr_t p, int host)
{
    if (!p) return CUDA_SUCCESS;
    struct block *b = find(p);
    if (!b || b->base != p) return no(CUDA_ERROR_INVALID_VALUE, fn, "not the start of an allocation");
    if (!b->live) return no(CUDA_ERROR_INVALID_VALUE, fn, "freed twice");
    if (host != (b->k == M_PINNED)) return no(CUDA_ERROR_INVALID_VALUE, fn, "wrong kind of memory for this call");
    CUresult r = unsafe_in_capture(fn);
    if (r) return r;
    drain_all();                                  /* both frees wait for the device */
    LOG("%s(%p)", fn, (void *)p);
    release(b); return CUDA_SUCCESS;
}
API cuMemFree(CUdeviceptr p) { CTX; return free_block(__func__, p, 0); }
API cuMemFreeHost(void *p) { CTX; return free_block(__func__, (uintptr_t)p, 1); }

API cuMemAllocAsync(CUdeviceptr *p, size_t n, CUstream h)
{
    CTX; struct stream *s = get_stream(h); if (!s) NO(CUDA_ERROR_INVALID_HANDLE, "not a live stream");
    if (s->c) NO(CUDA_ERROR_NOT_SUPPORTED, "allocation nodes are not modelled");
    uintptr_t q; CUresult r = alloc(__func__, M_DEVICE, n, 0, p ? &q : 0); if (!r) *p = q; return r;
}
API cuMemAllocFromPoolAsync(CUdeviceptr *p, size_t n, CUmemoryPool pool, CUstream h)
{
    CTX; if (!get(pool, K_POOL)) NO(CUDA_ERROR_INVALID_HANDLE, "not a live pool");
    if (!get_stream(h)) NO(CUDA_ERROR_INVALID_HANDLE, "not a live stream");
    uintptr_t q; CUresult r = alloc(__func__, M_DEVICE, n, 0, p ? &q : 0); if (!r) *p = q; return r;
}
API cuMemFreeAsync(CUdeviceptr p, CUstream h)
{
    CTX; struct stream *s = get_stream(h); if (!s) NO(CUDA_ERROR_INVALID_HANDLE, "not a live stream");
    struct block *b = find(p);
    if (!b || b->base != p || !b->live || b->k != M_DEVICE) NO(CUDA_ERROR_INVALID_VALUE, "not a live device allocation");
    if (s->c) NO(CUDA_ERROR_NOT_SUPPORTED, "free nodes are not modelled");
    struct op o = { .k = OP_FREE, .dst = p }; return put(__func__, s, &o, 0);
}
API cuMemHostGetDevicePointer(CUdeviceptr *d, void *p, unsigned f)
{
    CTX; (void)f; NEED(d); struct block *b = find((uintptr_t)p);
    if (!b || !b->live || b->k == M_DEVICE) NO(CUDA_ERROR_INVALID_VALUE, "not pinned host memory");
    *d = (CUdeviceptr)p; return CUDA_SUCCESS;
}
API cuMemHostGetFlags(unsigned *f, void *p)
{
    CTX; NEED(f); struct block *b = find((uintptr_t)p);
    if (!b || !b->live || b->k != M_PINNED) NO(CUDA_ERROR_INVALID_VALUE, "not pinned host memory");
    *f = b->flags; return CUDA_SUCCESS;
}
API cuMemHostRegister(void *p, size_t n, unsigned f)
{
    CTX; UNSAFE; NEED(p); if (!n) NO(CUDA_ERROR_INVALID_VALUE, "size 0");
    if (find((uintptr_t)p)) NO(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "already known");
    if (nblk == capblk) blk = realloc(blk, (capblk = capblk * 2 + 64) * sizeof *blk);
    blk[nblk++] = (struct block){ (uintptr_t)p, n, n, p, M_REGISTERED, 1, f, cur() };
    return CUDA_SUCCESS;
}
API cuMemHostUnregister(void *p)
{
    CTX; UNSAFE; struct block *b = find((uintptr_t)p);
    if (!b || b->k != M_REGISTERED || b->base != (uintptr_t)p) NO(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "not registered");
    drain_all(); release(b); return CUDA_SUCCESS;
}
API cuMemGetAddressRange(CUdeviceptr *base, size_t *n, CUdeviceptr p)
{
    CTX; struct block *b = find(p); if (!b || !b->live) NO(CUDA_ERROR_NOT_FOUND, "no such allocation");
    if (base) *base = b->base;
    if (n) *n = b->n;
    return CUDA_SUCCESS;
}
API cuPointerGetAttribute(void *out, CUpointer_attribute a, CUdeviceptr p)
{
    INIT; NEED(out); struct block *b = find(p);
    if (!b || !b->live) NO(CUDA_ERROR_INVALID_VALUE, "not an address CUDA knows");
    switch ((int)a) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)out = (CUcontext)b->ctx; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(CUmemorytype *)out = b->k == M_PINNED || b->k == M_REGISTERED ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)out = p; break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (b->k == M_DEVICE) { *(void **)out = 0; NO(CUDA_ERROR_INVALID_VALUE, "device memory has no host pointer"); }
        *(void **)out = (void *)p; break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(unsigned *)out = b->k == M_MANAGED; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)out = 0; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(uintptr_t *)out = b->base; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)out = b->n; break;
    default: NO(CUDA_ERROR_NOT_SUPPORTED, "attribute not modelled");
    }
    return CUDA_SUCCESS;
}

/* -------------------------------------------------- memory: copy and set */

/* dw/sw say what kind of address each end must be.  The range is checked now,
 * and once more when the operation runs. */
static CUresult copy(const char *fn, uintptr_t d, char dw, uintptr_t s, char sw,
                     size_t n, CUstream h, int sync)
{
    const char *why = 0;
    struct stream *st = get_stream(h);
    if (!st) return no(CUDA_ERROR_INVALID_HANDLE, fn, "not a live stream");
    if (!n) return CUDA_SUCCESS;
    if (!host_of(d, n, dw, &why) || !host_of(s, n, sw, &why)) return no(CUDA_ERROR_INVALID_VALUE, fn, why);
    if (sync) { CUresult r = unsafe_in_capture(fn); if (r) return r; }
    struct op o = { .k = OP_COPY, .dst = d, .src = s, .n = n };
    /* As CUDA does: a pageable source has been read when the call returns, and
     * a copy to pageable memory has finished when the call returns. */
    if (!sync && !st->c && pageable(s)) o.staged = memcpy(malloc(n), (void *)s, n);
    int wait = sync || (!st->c && pageable(d));
    LOG("%s %p <- %p, %zu bytes", fn, (void *)d, (void *)s, n);
    return put(fn, st, &o, wait);
}
API cuMemcpy(CUdeviceptr d, CUdeviceptr s, size_t n) { CTX; return copy(__func__, d, 'a', s, 'a', n, 0, 1); }
API cuMemcpyHtoD(CUdeviceptr d, const void *s, size_t n) { CTX; return copy(__func__, d, 'd', (uintptr_t)s, 'h', n, 0, 1); }
API cuMemcpyDtoH(void *d, CUdeviceptr s, size_t n) { CTX; return copy(__func__, (uintptr_t)d, 'h', s, 'd', n, 0, 1); }
API cuMemcpyDtoD(CUdeviceptr d, CUdeviceptr s, size_t n) { CTX; return copy(__func__, d, 'd', s, 'd', n, 0, 1); }
API cuMemcpyAsync(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream h) { CTX; return copy(__func__, d, 'a', s, 'a', n, h, 0); }
API cuMemcpyHtoDAsync(CUdeviceptr d, const void *s, size_t n, CUstream h) { CTX; return copy(__func__, d, 'd', (uintptr_t)s, 'h', n, h, 0); }
API cuMemcpyDtoHAsync(void *d, CUdeviceptr s, size_t n, CUstream h) { CTX; return copy(__func__, (uintptr_t)d, 'h', s, 'd', n, h, 0); }
API cuMemcpyDtoDAsync(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream h) { CTX; return copy(__func__, d, 'd', s, 'd', n, h, 0); }

static CUresult copy2(const char *fn, const CUDA_MEMCPY2D *c, CUstream h, int sync)
{
    struct stream *st = get_stream(h);
    if (!st) return no(CUDA_ERROR_INVALID_HANDLE, fn, "not a live stream");
    if (!c) return no(CUDA_ERROR_INVALID_VALUE, fn, "no parameters");
    if (c->srcMemoryType == CU_MEMORYTYPE_ARRAY || c->dstMemoryType == CU_MEMORYTYPE_ARRAY)
        return no(CUDA_ERROR_NOT_SUPPORTED, fn, "arrays are not modelled");
    if (sync) { CUresult r = unsafe_in_capture(fn); if (r) return r; }
    struct op o = { .k = OP_COPY2D, .c2 = *c };
    return put(fn, st, &o, sync);
}
API cuMemcpy2D(const CUDA_MEMCPY2D *c) { CTX; return copy2(__func__, c, 0, 1); }
API cuMemcpy2DUnaligned(const CUDA_MEMCPY2D *c) { CTX; return copy2(__func__, c, 0, 1); }
API cuMemcpy2DAsync(const CUDA_MEMCPY2D *c, CUstream h) { CTX; return copy2(__func__, c, h, 0); }

static CUresult set(const char *fn, CUdeviceptr d, unsigned v, unsigned w, size_t n, CUstream h, int sync)
{
    const char *why = 0; struct stream *st = get_stream(h);
    if (!st) return no(CUDA_ERROR_INVALID_HANDLE, fn, "not a live stream");
    if (!n) return CUDA_SUCCESS;
    if (d % w) return no(CUDA_ERROR_INVALID_VALUE, fn, "misaligned");
    if (!host_of(d, n * w, 'd', &why)) return no(CUDA_ERROR_INVALID_VALUE, fn, why);
    if (sync) { CUresult r = unsafe_in_capture(fn); if (r) return r; }
    struct op o = { .k = OP_SET, .dst = d, .n = n, .value = v, .width = w };
    return put(fn, st, &o, sync);
}
API cuMemsetD8(CUdeviceptr d, unsigned char v, size_t n) { CTX; return set(__func__, d, v, 1, n, 0, 1); }
API cuMemsetD16(CUdeviceptr d, unsigned short v, size_t n) { CTX; return set(__func__, d, v, 2, n, 0, 1); }
API cuMemsetD32(CUdeviceptr d, unsigned v, size_t n) { CTX; return set(__func__, d, v, 4, n, 0, 1); }
API cuMemsetD8Async(CUdeviceptr d, unsigned char v, size_t n, CUstream h) { CTX; return set(__func__, d, v, 1, n, h, 0); }
API cuMemsetD16Async(CUdeviceptr d, unsigned short v, size_t n, CUstream h) { CTX; return set(__func__, d, v, 2, n, h, 0); }
API cuMemsetD32Async(CUdeviceptr d, unsigned v, size_t n, CUstream h) { CTX; return set(__func__, d, v, 4, n, h, 0); }

/* ---------------------------------------------------------------- streams */

#define STREAM(s, h) struct stream *s = get_stream(h); \
    if (!s) NO(CUDA_ERROR_INVALID_HANDLE, "not a live stream")

static uint64_t next_id = 16;
static CUresult stream_new(const char *fn, CUstream *h, unsigned f, int prio)
{
    if (!h || f & ~1u) return no(CUDA_ERROR_INVALID_VALUE, fn, "bad argument");
    struct stream *s = make(K_STREAM, sizeof *s);
    s->flags = f; s->prio = prio; s->ctx = cur(); s->id = next_id++;
    streams = realloc(streams, (nstreams + 1) * sizeof *streams);
    streams[nstreams++] = s; *h = (CUstream)s; return CUDA_SUCCESS;
}
API cuStreamCreate(CUstream *h, unsigned f) { CTX; return stream_new(__func__, h, f, 0); }
API cuStreamCreateWithPriority(CUstream *h, unsigned f, int p) { CTX; return stream_new(__func__, h, f, p > 0 ? 0 : p < -5 ? -5 : p); }
API cuStreamDestroy(CUstream h)
{
    CTX; struct stream *s = get(h, K_STREAM);
    if (!s) NO(CUDA_ERROR_INVALID_HANDLE, "not a live created stream");
    if (s->c) { if (s->c->origin == s) uncapture(s->c); else { s->c->invalid = 1; s->c = 0; set_clear(&s->tails); } }
    drain(s, s->issued); kill_obj(s); return CUDA_SUCCESS;
}
API cuStreamSynchronize(CUstream h)
{
    CTX; STREAM(s, h);
    if (s->c) { s->c->invalid = 1; NO(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the stream is being captured"); }
    CUresult r = legacy_clash(__func__, s); if (r) return r;
    if (s == &legacy_stream)
        for (size_t i = 0; i < nstreams; i++)
            if (!(streams[i]->flags & CU_STREAM_NON_BLOCKING)) drain(streams[i], streams[i]->issued);
    drain(s, s->issued); return sticky;
}
API cuStreamQuery(CUstream h)
{
    CTX; STREAM(s, h);
    if (s->c) { s->c->invalid = 1; NO(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the stream is being captured"); }
    /* Each query makes one step of progress, so polling loops end. */
    return step(s) ? CUDA_ERROR_NOT_READY : sticky;
}
API cuStreamGetFlags(CUstream h, unsigned *f) { CTX; STREAM(s, h); NEED(f); *f = s->flags; return CUDA_SUCCESS; }
API cuStreamGetPriority(CUstream h, int *p) { CTX; STREAM(s, h); NEED(p); *p = s->prio; return CUDA_SUCCESS; }
API cuStreamGetId(CUstream h, unsigned long long *i) { CTX; STREAM(s, h); NEED(i); *i = s->id; return CUDA_SUCCESS; }
API cuStreamGetDevice(CUstream h, CUdevice *d) { CTX; STREAM(s, h); (void)s; NEED(d); *d = 0; return CUDA_SUCCESS; }
EXTRA CUresult cuStreamGetCtx(CUstream h, CUcontext *c) { CTX; STREAM(s, h); NEED(c); *c = (CUcontext)(s->ctx ? s->ctx : cur()); return CUDA_SUCCESS; }
API cuLaunchHostFunc(CUstream h, CUhostFn fn, void *arg)
{ CTX; STREAM(s, h); NEED(fn); struct op o = { .k = OP_HOST, .fn = fn, .arg = arg }; return put(__func__, s, &o, 0); }
API cuStreamAddCallback(CUstream h, CUstreamCallback cb, void *arg, unsigned f)
{ CTX; STREAM(s, h); NEED(cb); (void)f; struct op o = { .k = OP_STREAMCB, .scb = cb, .arg = arg }; return put(__func__, s, &o, 0); }

/* ----------------------------------------------------------------- events */

#define EVENT(e, h) struct event *e = get(h, K_EVENT); \
    if (!e) NO(CUDA_ERROR_INVALID_HANDLE, "not a live event")
#define EVENT_CAPTURED(e) ((e)->c && (e)->c->origin)
API cuEventCreate(CUevent *h, unsigned f) { CTX; NEED(h); struct event *e = make(K_EVENT, sizeof *e); e->flags = f; e->ctx = cur(); n_blocking += !!(f & CU_EVENT_BLOCKING_SYNC); *h = (CUevent)e; return CUDA_SUCCESS; }
API cuEventDestroy(CUevent h) { CTX; EVENT(e, h); if (e->s) drain(e->s, e->seq); kill_obj(e); return CUDA_SUCCESS; }
static CUresult event_record(const char *fn, struct event *e, struct stream *s)
{
    if (s->c) {                                   /* marks a point in the graph */
        if (s->c->invalid) return no(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, fn, "the capture was invalidated");
        e->c = s->c; e->s = 0; set_clear(&e->tails); set_merge(&e->tails, &s->tails);
        return CUDA_SUCCESS;
    }
    struct op o = { .k = OP_RECORD, .ev = e };
    e->c = 0; e->recorded = 1; e->s = s; e->seq = s->issued + 1;
    return put(fn, s, &o, 0);
}
API cuEventRecord(CUevent h, CUstream sh) { CTX; EVENT(e, h); STREAM(s, sh); return event_record(__func__, e, s); }
API cuEventRecordWithFlags(CUevent h, CUstream sh, unsigned f) { CTX; (void)f; EVENT(e, h); STREAM(s, sh); return event_record(__func__, e, s); }
API cuEventQuery(CUevent h)
{
    CTX; EVENT(e, h);
    if (EVENT_CAPTURED(e)) { e->c->invalid = 1; NO(CUDA_ERROR_CAPTURED_EVENT, "recorded in a captured stream"); }
    UNSAFE;
    if (!e->s || e->s->done >= e->seq) return sticky;
    step(e->s); return e->s->done >= e->seq ? sticky : CUDA_ERROR_NOT_READY;
}
API cuEventSynchronize(CUevent h)
{
    CTX; EVENT(e, h);
    if (EVENT_CAPTURED(e)) { e->c->invalid = 1; NO(CUDA_ERROR_CAPTURED_EVENT, "recorded in a captured stream"); }
    if (e->s) drain(e->s, e->seq);
    return sticky;
}
static CUresult elapsed(const char *fn, float *ms, CUevent ha, CUevent hb)
{
    struct event *a = get(ha, K_EVENT), *b = get(hb, K_EVENT);
    if (!ms) return no(CUDA_ERROR_INVALID_VALUE, fn, "no place for the time");
    if (!a || !b || !a->recorded || !b->recorded) return no(CUDA_ERROR_INVALID_HANDLE, fn, "not a recorded event");
    if ((a->flags | b->flags) & CU_EVENT_DISABLE_TIMING) return no(CUDA_ERROR_INVALID_HANDLE, fn, "event has no timing");
    if (a->s->done < a->seq || b->s->done < b->seq) return no(CUDA_ERROR_NOT_READY, fn, "not complete yet");
    *ms = (b->t.tv_sec - a->t.tv_sec) * 1e3f + (b->t.tv_nsec - a->t.tv_nsec) * 1e-6f;
    return CUDA_SUCCESS;
}
API cuEventElapsedTime(float *ms, CUevent a, CUevent b) { CTX; return elapsed(__func__, ms, a, b); }
#undef cuEventElapsedTime
EXTRA CUresult cuEventElapsedTime(float *ms, CUevent a, CUevent b) { CTX; return elapsed(__func__, ms, a, b); }
#define cuEventElapsedTime cuEventElapsedTime_v2
API cuStreamWaitEvent(CUstream h, CUevent eh, unsigned f)
{
    CTX; STREAM(s, h); EVENT(e, eh); (void)f;
    if (EVENT_CAPTURED(e)) {                      /* joins s to the capture */
        if (s->c && s->c != e->c) { s->c->invalid = e->c->invalid = 1; NO(CUDA_ERROR_STREAM_CAPTURE_MERGE, "would merge two captures"); }
        if (e->c->invalid) NO(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture was invalidated");
        if (s == &legacy_stream || s == &thread_stream) { e->c->invalid = 1; NO(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "a default stream cannot join a capture here"); }
        s->c = e->c; set_merge(&s->tails, &e->tails);
        return CUDA_SUCCESS;
    }
    if (s->c) {
        if (!e->recorded) return CUDA_SUCCESS;
        s->c->invalid = 1; NO(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "captured stream would wait for uncaptured work");
    }
    if (!e->s) return CUDA_SUCCESS;               /* never recorded: no effect */
    struct op o = { .k = OP_WAIT, .s = e->s, .seq = e->seq };
    return put(__func__, s, &o, 0);
}

/* ------------------------------------------------------- capture, graphs */

API cuStreamBeginCapture(CUstream h, CUstreamCaptureMode mode)
{
    CTX; STREAM(s, h); int i = 0;
    if (s == &legacy_stream) NO(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy stream cannot be captured");
    if (s->c) NO(CUDA_ERROR_ILLEGAL_STATE, "the stream is being captured already");
    while (i < 64 && captures[i]) i++;
    if (i == 64) NO(CUDA_ERROR_OUT_OF_MEMORY, "too many captures");
    struct capture *c = calloc(1, sizeof *c);     /* kept: events may point here */
    c->origin = s; c->mode = mode; c->thread = pthread_self(); c->id = next_id++;
    c->g = make(K_GRAPH, sizeof *c->g);
    captures[i] = s->c = c;
    LOG("capture begins"); return CUDA_SUCCESS;
}
static int reaches(struct node *from, struct node *to, unsigned visit)
{
    if (from == to) return 1;
    if (from->seen == visit) return 0;            /* each node once per search */
    from->seen = visit;
    for (size_t i = 0; i < from->ndep; i++) if (reaches(from->dep[i], to, visit)) return 1;
    return 0;
}
API cuStreamEndCapture(CUstream h, CUgraph *out)
{
    CTX; STREAM(s, h); NEED(out); struct capture *c = s->c; *out = 0;
    if (!c) NO(CUDA_ERROR_ILLEGAL_STATE, "the stream is not being captured");
    if (c->origin != s) { c->invalid = 1; NO(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture began in another stream"); }
    if (c->mode != CU_STREAM_CAPTURE_MODE_RELAXED && !pthread_equal(c->thread, pthread_self()))
        NO(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture began in another thread");
    int unjoined = 0;
    for (size_t i = 0; i < nstreams; i++) {
        struct stream *t = streams[i];
        if (t == s || t->c != c) continue;
        for (size_t j = 0; j < t->tails.n; j++) {
            static unsigned visit; visit++;
            int ok = 0;
            for (size_t k = 0; k < s->tails.n && !ok; k++) ok = reaches(s->tails.v[k], t->tails.v[j], visit);
            unjoined |= !ok;
        }
    }
    struct graph *g = c->g; int bad = c->invalid;
    uncapture(c);
    if (s->c) { s->c = 0; set_clear(&s->tails); }
    if (bad) { kill_obj(g); NO(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "a call during the capture was not allowed"); }
    if (unjoined) { kill_obj(g); NO(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "work in another stream was not joined"); }
    LOG("capture ends: %zu nodes", g->n);
    *out = (CUgraph)g; return CUDA_SUCCESS;
}
API cuStreamIsCapturing(CUstream h, CUstreamCaptureStatus *st)
{
    CTX; STREAM(s, h); NEED(st);
    *st = !s->c ? CU_STREAM_CAPTURE_STATUS_NONE : s->c->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}
static CUresult capture_info(struct stream *s, CUstreamCaptureStatus *st, cuuint64_t *id, CUgraph *g, const CUgraphNode **d, size_t *n)
{
    if (!st) return CUDA_ERROR_INVALID_VALUE;
    *st = !s->c ? CU_STREAM_CAPTURE_STATUS_NONE : s->c->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    if (id) *id = s->c ? s->c->id : 0;
    if (g) *g = s->c ? (CUgraph)s->c->g : 0;
    if (d) *d = s->c ? (const CUgraphNode *)s->tails.v : 0;
    if (n) *n = s->c ? s->tails.n : 0;
    return CUDA_SUCCESS;
}
API cuStreamGetCaptureInfo(CUstream h, CUstreamCaptureStatus *st, cuuint64_t *id, CUgraph *g, const CUgraphNode **d, const CUgraphEdgeData **e, size_t *n)
{ CTX; STREAM(s, h); if (e) *e = 0; return capture_info(s, st, id, g, d, n); }
EXTRA CUresult cuStreamGetCaptureInfo_v2(CUstream h, CUstreamCaptureStatus *st, cuuint64_t *id, CUgraph *g, const CUgraphNode **d, size_t *n)
{ CTX; STREAM(s, h); return capture_info(s, st, id, g, d, n); }
API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *m) { INIT; NEED(m); CUstreamCaptureMode t = thread_mode; thread_mode = *m; *m = t; return CUDA_SUCCESS; }

API cuGraphCreate(CUgraph *g, unsigned f) { INIT; NEED(g); (void)f; *g = make(K_GRAPH, sizeof(struct graph)); return CUDA_SUCCESS; }
API cuGraphDestroy(CUgraph h)
{
    INIT; struct graph *g = get(h, K_GRAPH); if (!g) NO(CUDA_ERROR_INVALID_VALUE, "not a live graph");
    for (int i = 0; i < 64; i++) if (captures[i] && captures[i]->g == g) NO(CUDA_ERROR_INVALID_VALUE, "the graph is being captured");
    kill_obj(g); return CUDA_SUCCESS;
}
static CUresult instantiate(const char *fn, CUgraphExec *x, CUgraph h)
{
    struct graph *g = get(h, K_GRAPH);
    if (!x || !g) return no(CUDA_ERROR_INVALID_VALUE, fn, "not a live graph");
    struct graph *e = make(K_EXEC, sizeof *e);
    e->n = g->n; e->is_exec = 1;
    e->node = calloc(g->n + 1, sizeof *e->node);
    for (size_t i = 0; i < g->n; i++) e->node[i] = g->node[i];
    *x = (CUgraphExec)e; LOG("%s: %zu nodes", fn, e->n); return CUDA_SUCCESS;
}
API cuGraphInstantiate(CUgraphExec *x, CUgraph g, unsigned long long f) { CTX; (void)f; return instantiate(__func__, x, g); }
API cuGraphInstantiateWithParams(CUgraphExec *x, CUgraph g, CUDA_GRAPH_INSTANTIATE_PARAMS *p)
{ CTX; NEED(p); CUresult r = instantiate(__func__, x, g); p->result_out = r ? CUDA_GRAPH_INSTANTIATE_ERROR : CUDA_GRAPH_INSTANTIATE_SUCCESS; return r; }
API cuGraphExecDestroy(CUgraphExec h)
{ INIT; struct graph *g = get(h, K_EXEC); if (!g) NO(CUDA_ERROR_INVALID_VALUE, "not a live graph exec"); drain_all(); kill_obj(g); return CUDA_SUCCESS; }
API cuGraphUpload(CUgraphExec h, CUstream sh) { CTX; STREAM(s, sh); (void)s; if (!get(h, K_EXEC)) NO(CUDA_ERROR_INVALID_VALUE, "not a live graph exec"); return CUDA_SUCCESS; }
API cuGraphLaunch(CUgraphExec h, CUstream sh)
{
    CTX; STREAM(s, sh); struct graph *g = get(h, K_EXEC);
    if (!g) NO(CUDA_ERROR_INVALID_VALUE, "not a live graph exec");
    struct op o = { .k = OP_GRAPH, .g = g }; return put(__func__, s, &o, 0);
}
API cuGraphGetNodes(CUgraph h, CUgraphNode *v, size_t *n)
{
    INIT; struct graph *g = get(h, K_GRAPH); NEED(n); if (!g) NO(CUDA_ERROR_INVALID_VALUE, "not a live graph");
    if (v) for (size_t i = 0; i < *n; i++) v[i] = i < g->n ? (CUgraphNode)g->node[i] : 0;
    if (!v || *n > g->n) *n = g->n;
    return CUDA_SUCCESS;
}
API cuGraphNodeGetType(CUgraphNode h, CUgraphNodeType *t)
{
    INIT; struct node *n = get(h, K_NODE); NEED(t); if (!n) NO(CUDA_ERROR_INVALID_VALUE, "not a live node");
    switch (n->op.k) {
    case OP_KERNEL: *t = CU_GRAPH_NODE_TYPE_KERNEL; break;
    case OP_COPY: case OP_COPY2D: *t = CU_GRAPH_NODE_TYPE_MEMCPY; break;
    case OP_SET: *t = CU_GRAPH_NODE_TYPE_MEMSET; break;
    case OP_HOST: *t = CU_GRAPH_NODE_TYPE_HOST; break;
    case OP_GRAPH: *t = CU_GRAPH_NODE_TYPE_GRAPH; break;
    default: *t = CU_GRAPH_NODE_TYPE_EMPTY;
    }
    return CUDA_SUCCESS;
}

/* ------------------------------------------------------ modules, launches */

static CUresult module_new(const char *fn, CUmodule *m, const void *image)
{
    if (!m || !image) return no(CUDA_ERROR_INVALID_VALUE, fn, "NULL argument");
    struct module *x = make(K_MODULE, sizeof *x); x->ctx = cur(); *m = (CUmodule)x; return CUDA_SUCCESS;
}
API cuModuleLoad(CUmodule *m, const char *f) { CTX; if (!f || access(f, R_OK)) NO(CUDA_ERROR_FILE_NOT_FOUND, "no such file"); return module_new(__func__, m, f); }
API cuModuleLoadData(CUmodule *m, const void *i) { CTX; return module_new(__func__, m, i); }
API cuModuleLoadDataEx(CUmodule *m, const void *i, unsigned n, CUjit_option *o, void **v) { CTX; (void)n; (void)o; (void)v; return module_new(__func__, m, i); }
API cuModuleLoadFatBinary(CUmodule *m, const void *i) { CTX; return module_new(__func__, m, i); }
API cuModuleUnload(CUmodule h) { CTX; struct module *m = get(h, K_MODULE); if (!m) NO(CUDA_ERROR_INVALID_HANDLE, "not a live module"); drain_all(); kill_obj(m); return CUDA_SUCCESS; }
API cuModuleGetLoadingMode(CUmoduleLoadingMode *m) { INIT; NEED(m); *m = CU_MODULE_LAZY_LOADING; return CUDA_SUCCESS; }
/* Any non-empty name is found: there is no image to look it up in. */
API cuModuleGetFunction(CUfunction *f, CUmodule h, const char *name)
{
    CTX; struct module *m = get(h, K_MODULE); NEED(f); NEED(name);
    if (!m) NO(CUDA_ERROR_INVALID_HANDLE, "not a live module");
    if (!*name) NO(CUDA_ERROR_NOT_FOUND, "empty name");
    struct func *x = make(K_FUNC, sizeof *x); x->m = m; snprintf(x->name, sizeof x->name, "%s", name);
    *f = (CUfunction)x; return CUDA_SUCCESS;
}
API cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction h)
{ CTX; NEED(v); if (!get(h, K_FUNC)) NO(CUDA_ERROR_INVALID_HANDLE, "not a function"); *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : a == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : 0; return CUDA_SUCCESS; }
API cuFuncSetAttribute(CUfunction h, CUfunction_attribute a, int v) { CTX; (void)a; (void)v; if (!get(h, K_FUNC)) NO(CUDA_ERROR_INVALID_HANDLE, "not a function"); return CUDA_SUCCESS; }
API cuFuncSetCacheConfig(CUfunction h, CUfunc_cache c) { CTX; (void)c; if (!get(h, K_FUNC)) NO(CUDA_ERROR_INVALID_HANDLE, "not a function"); return CUDA_SUCCESS; }
API cuFuncSetBlockShape(CUfunction h, int x, int y, int z)   /* PyCUDA still calls it */
{
    CTX; if (!get(h, K_FUNC)) NO(CUDA_ERROR_INVALID_HANDLE, "not a function");
    if (x < 1 || y < 1 || z < 1 || z > 64 || (int64_t)x * y * z > 1024) NO(CUDA_ERROR_INVALID_VALUE, "bad block shape");
    return CUDA_SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction h, int b, size_t s) { CTX; NEED(n); (void)b; (void)s; if (!get(h, K_FUNC)) NO(CUDA_ERROR_INVALID_HANDLE, "not a function"); *n = 1; return CUDA_SUCCESS; }

static CUresult launch(const char *fn, CUfunction h, const unsigned d[6], CUstream sh)
{
    struct func *f = get(h, K_FUNC); struct stream *s = get_stream(sh);
    if (!f || !f->m->o.live) return no(CUDA_ERROR_INVALID_HANDLE, fn, "not a function of a live module");
    if (!s) return no(CUDA_ERROR_INVALID_HANDLE, fn, "not a live stream");
    for (int i = 0; i < 6; i++) if (!d[i]) return no(CUDA_ERROR_INVALID_VALUE, fn, "a dimension is 0");
    if (d[1] > 65535 || d[2] > 65535 || (uint64_t)d[3] * d[4] * d[5] > 1024 || d[5] > 64)
        return no(CUDA_ERROR_INVALID_VALUE, fn, "a dimension is too large");
    LOG("%s %s (%u,%u,%u)x(%u,%u,%u)", fn, f->name, d[0], d[1], d[2], d[3], d[4], d[5]);
    struct op o = { .k = OP_KERNEL, .name = f->name };
    return put(fn, s, &o, 0);
}
API cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned sh, CUstream s, void **p, void **e)
{ CTX; (void)sh; if (p && e) NO(CUDA_ERROR_INVALID_VALUE, "both kernelParams and extra"); return launch(__func__, f, (unsigned[]){ gx, gy, gz, bx, by, bz }, s); }
API cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned sh, CUstream s, void **p)
{ CTX; (void)sh; (void)p; return launch(__func__, f, (unsigned[]){ gx, gy, gz, bx, by, bz }, s); }
API cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **p, void **e)
{ CTX; (void)p; (void)e; NEED(c); return launch(__func__, f, (unsigned[]){ c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ }, c->hStream); }
API cuProfilerStart(void) { return CUDA_SUCCESS; }
API cuProfilerStop(void) { return CUDA_SUCCESS; }

/* --------------------------------------------------- not modelled, by name
 * Exported so that programs linked against them load; each is refused.  The
 * asm label gives the exported name without needing the prototype. */
#define STUB(n) CUresult stub_##n(void) __asm__(STR(n)); EXTRA CUresult stub_##n(void) \
    { LOCKED; return no(CUDA_ERROR_NOT_SUPPORTED, STR(n), "not modelled"); }
STUB(cuArray3DCreate) STUB(cuArray3DGetDescriptor) STUB(cuArrayCreate) STUB(cuArrayDestroy) STUB(cuArrayGetDescriptor)
STUB(cuCtxDisablePeerAccess) STUB(cuCtxEnablePeerAccess)
STUB(cuCtxGetSharedMemConfig) STUB(cuCtxSetSharedMemConfig) STUB(cuFuncSetSharedMemConfig)
STUB(cuFuncSetSharedSize) STUB(cuGraphicsMapResources) STUB(cuGraphicsResourceGetMappedPointer)
STUB(cuGraphicsSubResourceGetMappedArray) STUB(cuGraphicsUnmapResources) STUB(cuGraphicsUnregisterResource)
STUB(cuIpcCloseMemHandle) STUB(cuIpcGetEventHandle) STUB(cuIpcGetMemHandle) STUB(cuIpcOpenEventHandle) STUB(cuIpcOpenMemHandle)
STUB(cuLaunch) STUB(cuLaunchGrid) STUB(cuLaunchGridAsync) STUB(cuLinkAddData) STUB(cuLinkAddFile) STUB(cuLinkComplete)
STUB(cuLinkCreate) STUB(cuLinkDestroy) STUB(cuMemcpy3D) STUB(cuMemcpy3DAsync) STUB(cuMemcpy3DPeer) STUB(cuMemcpy3DPeerAsync)
STUB(cuMemcpyAtoA) STUB(cuMemcpyAtoD) STUB(cuMemcpyAtoH) STUB(cuMemcpyDtoA) STUB(cuMemcpyHtoA) STUB(cuMemcpyPeer) STUB(cuMemcpyPeerAsync)
STUB(cuMemsetD2D16) STUB(cuMemsetD2D16Async) STUB(cuMemsetD2D32) STUB(cuMemsetD2D32Async) STUB(cuMemsetD2D8) STUB(cuMemsetD2D8Async)
STUB(cuModuleGetGlobal) STUB(cuModuleGetSurfRef) STUB(cuModuleGetTexRef) STUB(cuParamSetSize) STUB(cuParamSetTexRef)
STUB(cuParamSetf) STUB(cuParamSeti) STUB(cuParamSetv) STUB(cuProfilerInitialize) STUB(cuStreamAttachMemAsync)
STUB(cuSurfRefGetArray) STUB(cuSurfRefSetArray) STUB(cuTexRefCreate) STUB(cuTexRefDestroy) STUB(cuTexRefGetAddress)
STUB(cuTexRefGetAddressMode) STUB(cuTexRefGetArray) STUB(cuTexRefGetFilterMode) STUB(cuTexRefGetFlags) STUB(cuTexRefGetFormat)
STUB(cuTexRefSetAddress) STUB(cuTexRefSetAddress2D) STUB(cuTexRefSetAddressMode) STUB(cuTexRefSetArray) STUB(cuTexRefSetFilterMode)
STUB(cuTexRefSetFlags) STUB(cuTexRefSetFormat)

/* -------------------------------------------------------- cuGetProcAddress
 * Only names with more than one ABI need a row; any other name is looked up
 * among this library's own exports, in the form cuda.h maps it to. */
#define ROW(n, v) { #n, STR(n), v }
static const struct { const char *name, *sym; int since; } names[] = {
    ROW(cuCtxCreate, 12050), { "cuCtxCreate", "cuCtxCreate_v2", 3020 },
    ROW(cuEventElapsedTime, 12080), { "cuEventElapsedTime", "cuEventElapsedTime", 2000 },
    ROW(cuStreamGetCaptureInfo, 12030), { "cuStreamGetCaptureInfo", "cuStreamGetCaptureInfo_v2", 11030 },
    ROW(cuGraphInstantiate, 12000), { "cuGraphInstantiateWithFlags", "cuGraphInstantiateWithFlags", 11040 },
    ROW(cuGetProcAddress, 12000), { "cuGetProcAddress", "cuGetProcAddress", 11030 },
    { "cuStreamGetCtx", "cuStreamGetCtx", 9020 },
    ROW(cuStreamBeginCapture, 10010), ROW(cuDeviceTotalMem, 3020), ROW(cuDeviceGetUuid, 11040), ROW(cuDevicePrimaryCtxRelease, 11000),
    ROW(cuDevicePrimaryCtxReset, 11000), ROW(cuDevicePrimaryCtxSetFlags, 11000), ROW(cuCtxDestroy, 4000),
    ROW(cuCtxPopCurrent, 4000), ROW(cuCtxPushCurrent, 4000), ROW(cuMemGetInfo, 3020), ROW(cuMemAlloc, 3020),
    ROW(cuMemAllocPitch, 3020), ROW(cuMemFree, 3020), ROW(cuMemGetAddressRange, 3020), ROW(cuMemAllocHost, 3020),
    ROW(cuMemHostGetDevicePointer, 3020), ROW(cuMemHostRegister, 6050), ROW(cuMemcpyHtoD, 3020), ROW(cuMemcpyDtoH, 3020),
    ROW(cuMemcpyDtoD, 3020), ROW(cuMemcpyHtoDAsync, 3020), ROW(cuMemcpyDtoHAsync, 3020), ROW(cuMemcpyDtoDAsync, 3020),
    ROW(cuMemcpy2D, 3020), ROW(cuMemcpy2DUnaligned, 3020), ROW(cuMemcpy2DAsync, 3020), ROW(cuMemsetD8, 3020),
    ROW(cuMemsetD16, 3020), ROW(cuMemsetD32, 3020), ROW(cuStreamDestroy, 4000), ROW(cuEventDestroy, 4000),
};
static CUresult proc(const char *fn, const char *n, void **p, int v, CUdriverProcAddressQueryResult *st)
{
    if (!n || !p) return no(CUDA_ERROR_INVALID_VALUE, fn, "NULL argument");
    Dl_info me; static void *self;
    if (!self && dladdr((void *)proc, &me)) self = dlopen(me.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    const char *sym = n;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i].name, n)) { sym = 0; if (v >= names[i].since) { sym = names[i].sym; break; } }
    *p = sym && self && !strncmp(sym, "cu", 2) ? dlsym(self, sym) : 0;
    if (st) *st = *p ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    if (!*p) LOG("%s: %s (version %d) is not offered", fn, n, v);
    return *p ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
API cuGetProcAddress(const char *n, void **p, int v, cuuint64_t f, CUdriverProcAddressQueryResult *st)
{ (void)f; return proc(__func__, n, p, v, st); }
#undef cuGetProcAddress
EXTRA CUresult cuGetProcAddress(const char *n, void **p, int v, cuuint64_t f)
{ (void)f; return proc(__func__, n, p, v, 0); }
