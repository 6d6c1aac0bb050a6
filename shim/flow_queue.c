/* flow_queue.c -- what flows have to do, in order of arrival: sources to execute, triggers, events, and the ends of runs that flows started.
 *
 * 1. flow_post() runs on any thread and never waits. Python's one host thread takes items without the GIL (flow_next) and hands them to
 *    threads of its own; nothing of a flow runs on the main thread or on a device's worker.
 * 2. The queue is bounded by MAX_QUEUE: triggers beyond it are refused and events beyond it dropped and counted, at the place where they
 *    come from. An item keeps its place until it is answered, so that what Python has taken counts too.
 * 3. Ends of runs and removals go first: a flow that waits for its run must not wait behind the events that it lets pile up.
 * 4. Of a stream one notice waits at most; whoever takes it reads all that the stream holds. So streams need no bound.
 * 5. A trigger whose client has left before it was taken is not run, nor is what was queued for a flow that is gone or asleep by then. */
#include "ai.h"

typedef struct Fifo {
    FlowItem *first, **tail;
} Fifo;

static Fifo urgent = { NULL, &urgent.first }, ordinary = { NULL, &ordinary.first }; /* under ai_lock, as all that follows */
static pthread_cond_t flow_ready = PTHREAD_COND_INITIALIZER;
static FlowItem *streams[1024]; /* STREAM items that nobody has taken */

_Atomic int64_t flows_outstanding;

/* ---- items ----------------------------------------------------------------------------------------------------------------------- */

static Flow *flow_ref(Flow *f) {
    if (f) atomic_fetch_add_explicit(&f->refs, 1, memory_order_relaxed);
    return f;
}

FlowItem *flow_item(FlowItemKind kind, Flow *flow, Job *job) {
    FlowItem *item = RedisModule_Calloc(1, sizeof(*item));
    item->kind = kind;
    item->flow = flow_ref(flow);
    item->job = job;
    item->counted = kind == ITEM_TRIGGER || kind == ITEM_EVENT;
    if (item->counted) flows_outstanding++;
    return item;
}

/* What is left of an item without its job. */
void flow_item_free(FlowItem *item) {
    if (item->counted) flows_outstanding--;
    for (Flow *f = item->fresh, *next; f; f = next) {
        next = f->next;
        flow_unref(f);
    }
    flow_unref(item->flow);
    flow_source_unref(item->source);
    arena_free(&item->arena);
    RedisModule_Free(item);
}

bool flow_queue_full(void) { return flows_outstanding >= config.max_queue; }

/* ---- streams that wait --------------------------------------------------------------------------------------------------------------- */

static FlowItem **stream_bucket(const Flow *flow, Slice key) {
    uint64_t h = (uint64_t)(uintptr_t)flow;
    for (size_t i = 0; i < key.n; i++) h = (h ^ (unsigned char)key.p[i]) * 0x9E3779B97F4A7C15u;
    return &streams[h >> 54];
}
_Static_assert(sizeof(streams) / sizeof(*streams) == 1 << 10, "stream_bucket takes ten bits");

bool flow_stream_waits(const Flow *flow, Slice key) {
    for (const FlowItem *item = *stream_bucket(flow, key); item; item = item->same_bucket)
        if (item->flow == flow && item->key.n == key.n && memcmp(item->key.p, key.p, key.n) == 0) return true;
    return false;
}

static void stream_taken(FlowItem *item) {
    FlowItem **at = stream_bucket(item->flow, item->key);
    while (*at && *at != item) at = &(*at)->same_bucket;
    if (*at) *at = item->same_bucket;
}

/* ---- in and out ------------------------------------------------------------------------------------------------------------------------ */

/* A stream's notice is entered in the table of those that wait by whoever makes it; it may be posted later, after its flow has woken. */
void flow_stream_enter(FlowItem *item) {
    FlowItem **bucket = stream_bucket(item->flow, item->key);
    item->same_bucket = *bucket;
    *bucket = item;
}

void flow_stream_leave(FlowItem *item) { stream_taken(item); }

void flow_post_locked(FlowItem *item) {
    Fifo *fifo = item->kind == ITEM_RUN || item->kind == ITEM_DROP ? &urgent : &ordinary;
    item->next = NULL;
    *fifo->tail = item;
    fifo->tail = &item->next;
    pthread_cond_signal(&flow_ready);
}

void flow_post(FlowItem *item) {
    pthread_mutex_lock(&ai_lock);
    flow_post_locked(item);
    pthread_mutex_unlock(&ai_lock);
}

static FlowItem *take(Fifo *fifo) {
    FlowItem *item = fifo->first;
    fifo->first = item->next;
    if (!fifo->first) fifo->tail = &fifo->first;
    if (item->kind == ITEM_STREAM) stream_taken(item);
    return item;
}

/* Under ai_lock. Why there is no sense in it any more; NULL: there is. */
static const char *outdated(const FlowItem *item) {
    if (item->kind == ITEM_RUN || item->kind == ITEM_DROP) return NULL;
    if (item->job && item->job->gone) return "ERR the client has left";
    if (!item->flow || item->flow->state == FLOW_LIVE) return NULL;
    return item->flow->state == FLOW_GONE ? "ERR the flow was unregistered" : "ERR the server has loaded data or become a replica";
}

static void give_up(FlowItem *item, const char *why) {
    if (item->kind == ITEM_SOURCE || item->kind == ITEM_TRIGGER) {
        flow_fail(item, why);
        return;
    }
    flows_dropped++;
    flow_item_free(item);
}

FlowItem *flow_next(void) {
    for (;;) {
        pthread_mutex_lock(&ai_lock);
        while (!ai_closing && !urgent.first && !ordinary.first) pthread_cond_wait(&flow_ready, &ai_lock);
        FlowItem *item = ai_closing ? NULL : take(urgent.first ? &urgent : &ordinary);
        const char *why = item ? outdated(item) : NULL;
        pthread_mutex_unlock(&ai_lock);
        if (!why) return item;
        give_up(item, why);
    }
}

void flow_queue_close(void) {
    pthread_mutex_lock(&ai_lock);
    pthread_cond_broadcast(&flow_ready);
    pthread_mutex_unlock(&ai_lock);
}
