/* runqueue.c -- run queues: ops wait here for a worker, and batches form.
 *
 * 1. One queue per device string. Inside it ops wait in LANES: a lane holds, in order of arrival, the ops that may share a batch
 *    (one program, equal dtypes, equal shapes past dim 0). Programs are served round robin, and the lanes of a program round robin within
 *    its turn, so neither a hot model nor one that is called with many shapes can starve another.
 * 2. A lane is RIPE when it has rows enough, UNRIPE while it waits for company. Unripe lanes are sorted by when their wait ends, and join
 *    the ripe ones then; so a worker looks at the first lane of each program and never at all of them.
 * 3. runqueue_push() runs on any thread under ai_lock and never waits. A worker waits without the GIL until something is due
 *    (runqueue_wait), takes the GIL, and only then a whole batch (runqueue_try): one GIL acquisition serves many requests, and what
 *    arrives while it waits for the GIL joins the batch. Whoever took first would hold requests whose TIMEOUT passes while some
 *    library keeps the GIL for seconds. Batches form by themselves while workers are busy.
 * 4. When a lane is due is a pure function of numbers and `now` (batch_due). A worker sleeps until the next due time or a wakeup,
 *    never on a fixed tick.
 * 5. A batch takes ops until its rows reach BATCHSIZE; the check comes after adding, so it may pass it (as in 1.2.7).
 *
 * Spinning before sleep was measured on two cores: it cost five times the worker's CPU and made latency worse. */
#include "ai.h"

#include <errno.h>
#include <time.h>

RunQueue *_Atomic runqueues;

/* ---- queues --------------------------------------------------------------------------------------------------------------- */

static RunQueue *runqueue_find(const char *device) {
    RunQueue *q = runqueues;
    while (q && strcmp(q->device, device) != 0) q = q->next;
    return q;
}

static RunQueue *runqueue_new(char *device) {
    pthread_condattr_t monotonic;
    RunQueue *q = RedisModule_Calloc(1, sizeof(*q));
    q->device = device;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&q->ready, &monotonic);
    RunQueue *_Atomic *end = &runqueues;
    while (*end) end = &(*end)->next;
    *end = q;
    return q;
}

RunQueue *runqueue_of(Slice device) {
    char *name = slice_dup(device);
    for (char *c = name; *c; c++)
        if (*c >= 'a' && *c <= 'z') *c -= 'a' - 'A';
    RunQueue *q = runqueue_find(name);
    if (q) RedisModule_Free(name);
    else q = runqueue_new(name);
    return q;
}

bool runqueue_full(const RunQueue *q) { return (int64_t)q->length + q->waiting >= config.max_queue; }

/* ---- lanes ---------------------------------------------------------------------------------------------------------------- */

static const Tensor *input_of(const Op *op, int i) { return op->job->plan.slots[op->in[i]]; }

/* Dim 0 that all inputs agree on; 0 when they do not, one is a scalar, or one lies on a device: such an op runs alone. */
static int64_t rows_of(const Op *op) {
    int64_t rows = 0;
    for (int i = 0; i < op->nin; i++) {
        const Tensor *t = input_of(op, i);
        if (t->ndim == 0 || t->resident || (i && t->dims[0] != rows)) return 0;
        rows = t->dims[0];
    }
    return rows;
}

static bool may_share(const Op *a, const Op *b) {
    if (a->nin != b->nin || a->nout != b->nout) return false;
    for (int i = 0; i < a->nin; i++) {
        const Tensor *x = input_of(a, i), *y = input_of(b, i);
        if (x->dtype != y->dtype || x->ndim != y->ndim) return false;
        if (memcmp(x->dims + 1, y->dims + 1, (size_t)(x->ndim - 1) * sizeof(int64_t)) != 0) return false;
    }
    return true;
}

static uint64_t mix(uint64_t h, uint64_t n) { return (h ^ n) * 0x9E3779B97F4A7C15u; }

/* Equal for ops that may share a lane. */
static uint64_t hash_of(const Op *op, bool batchable) {
    uint64_t h = mix(batchable, op->program->id);
    if (!batchable) return h;
    h = mix(h, (uint64_t)op->nin << 32 | (unsigned)op->nout);
    for (int i = 0; i < op->nin; i++) {
        const Tensor *t = input_of(op, i);
        h = mix(h, (uint64_t)t->dtype << 8 | t->ndim);
        for (int d = 1; d < t->ndim; d++) h = mix(h ^ h >> 32, (uint64_t)t->dims[d]);
    }
    return h;
}

static Lane **bucket_of(RunQueue *q, uint64_t hash) { return &q->buckets[hash >> 56]; }
_Static_assert(LANE_BUCKETS == 256, "bucket_of takes eight bits");

static void ring_insert(RunQueue *q, Program *p) { /* last in the round */
    if (!q->turn) {
        q->turn = p->turn_prev = p->turn_next = p;
        return;
    }
    p->turn_next = q->turn;
    p->turn_prev = q->turn->turn_prev;
    p->turn_prev->turn_next = p->turn_next->turn_prev = p;
}

static void ring_remove(RunQueue *q, Program *p) {
    if (q->turn == p) q->turn = p->turn_next == p ? NULL : p->turn_next;
    p->turn_prev->turn_next = p->turn_next;
    p->turn_next->turn_prev = p->turn_prev;
    p->turn_prev = p->turn_next = NULL;
}

static LaneList *list_of(Lane *l) { return l->ripe ? &l->program->ripe : &l->program->unripe; }

static void list_remove(Lane *l) {
    LaneList *list = list_of(l);
    *(l->prev ? &l->prev->next : &list->first) = l->next;
    *(l->next ? &l->next->prev : &list->last) = l->prev;
}

/* Behind `before`; NULL = first. */
static void list_insert(Lane *l, Lane *before) {
    LaneList *list = list_of(l);
    l->prev = before;
    l->next = before ? before->next : list->first;
    *(l->prev ? &l->prev->next : &list->first) = l;
    *(l->next ? &l->next->prev : &list->last) = l;
}

static bool rows_suffice(BatchLimits limits, int64_t rows) { return rows >= limits.batchsize || rows >= limits.minbatchsize; }

static BatchLimits limits_of(const Program *p) {
    int64_t wait_us = p->minbatchtimeout > INT64_MAX / 2000 ? INT64_MAX / 2 : p->minbatchtimeout * 1000;
    return (BatchLimits){ p->batchsize, p->minbatchsize, wait_us };
}

static bool lane_suffices(const Lane *l) { return !l->batchable || rows_suffice(limits_of(l->program), l->rows); }

/* Puts a lane where it belongs by its rows; how long it has waited is looked at when a worker comes (ripen). Ripe ones join at the end, so
 * that lanes take turns. A lane that is new waits the shortest, so it is at home after one step of the loop. */
static void list_place(Lane *l) {
    l->ripe = lane_suffices(l);
    Lane *before = list_of(l)->last;
    while (!l->ripe && before && before->head->queued_us > l->head->queued_us) before = before->prev;
    list_insert(l, before);
}

static Lane *lane_new(RunQueue *q, Program *p, bool batchable, uint64_t hash) {
    Lane *l = RedisModule_Calloc(1, sizeof(*l)), **bucket = bucket_of(q, hash);
    l->program = p;
    l->batchable = batchable;
    l->hash = hash;
    l->same_bucket = *bucket;
    *bucket = l;
    if (!p->turn_next) ring_insert(q, p);
    return l;
}

/* The lane is in neither list of its program. */
static void lane_free(RunQueue *q, Lane *l) {
    Lane **at = bucket_of(q, l->hash);
    while (*at != l) at = &(*at)->same_bucket;
    *at = l->same_bucket;
    Program *p = l->program;
    if (!p->ripe.first && !p->unripe.first) ring_remove(q, p);
    RedisModule_Free(l);
}

/* A lane that was taken out of its list and lost ops. */
static void lane_put_back(RunQueue *q, Lane *l) {
    if (l->count) list_place(l);
    else lane_free(q, l);
}

/* Rows are small enough that no sum of them overflows. */
static bool can_be_batched(const Op *op) {
    return op->kind == OP_MODEL && op->rows > 0 && op->rows < op->program->batchsize && op->rows <= INT32_MAX;
}

static Lane *lane_find(RunQueue *q, const Op *op, bool batchable, uint64_t hash) {
    Lane *l = *bucket_of(q, hash);
    while (l && !(l->hash == hash && l->program == op->program && l->batchable == batchable && (!batchable || may_share(l->head, op))))
        l = l->same_bucket;
    return l;
}

static void lane_append(Lane *l, Op *op) {
    op->lane = l;
    op->prev = l->tail;
    *(l->tail ? &l->tail->next : &l->head) = op;
    l->tail = op;
    l->count++;
    l->rows += op->rows;
}

static void lane_unlink(Lane *l, Op *op) {
    if (op->prev) op->prev->next = op->next;
    else l->head = op->next;
    if (op->next) op->next->prev = op->prev;
    else l->tail = op->prev;
    l->count--;
    l->rows -= op->rows;
    op->lane = NULL;
    op->prev = op->next = NULL;
}

/* ---- when a lane is due --------------------------------------------------------------------------------------------------- */

bool batch_due(BatchLimits limits, int64_t rows, int64_t oldest_us, int64_t now, int64_t *next_due) {
    *next_due = INT64_MAX;
    if (rows_suffice(limits, rows)) return true;
    if (limits.minbatchtimeout_us <= 0) return false; /* waits for company as long as it takes */
    if (now - oldest_us > limits.minbatchtimeout_us) return true;
    *next_due = oldest_us + limits.minbatchtimeout_us + 1;
    return false;
}

/* Lanes of `p` whose wait is over join the ripe ones. *look_again becomes earlier when the next one's ends before it. */
static void ripen(Program *p, int64_t now, int64_t *look_again) {
    int64_t next = INT64_MAX;
    for (Lane *l; (l = p->unripe.first); ) {
        if (!p->dropped && !batch_due(limits_of(p), l->rows, l->head->queued_us, now, &next)) break;
        list_remove(l);
        l->ripe = true;
        list_insert(l, p->ripe.last);
    }
    if (p->unripe.first && next < *look_again) *look_again = next;
}

/* The next program in the round that has a ripe lane; NULL and when to look again. */
static Program *due_program(RunQueue *q, int64_t now, int64_t *look_again) {
    *look_again = INT64_MAX;
    Program *p = q->turn;
    if (!p) return NULL;
    do {
        ripen(p, now, look_again);
        if (p->ripe.first) return p;
        p = p->turn_next;
    } while (p != q->turn);
    return NULL;
}

/* ---- push and remove ------------------------------------------------------------------------------------------------------ */

void runqueue_push(RunQueue *q, Op *op, int64_t now) {
    op->rows = op->kind == OP_MODEL ? rows_of(op) : 0;
    op->queued_us = now;
    op->state = OP_QUEUED;
    bool batchable = can_be_batched(op);
    uint64_t hash = hash_of(op, batchable);
    Lane *l = lane_find(q, op, batchable, hash);
    bool placed = l != NULL;
    if (!l) l = lane_new(q, op->program, batchable, hash);
    lane_append(l, op);
    if (placed && !l->ripe) list_remove(l);
    if (!placed || !l->ripe) list_place(l);
    q->length++;
    /* An op that only adds to a wait that workers know of wakes nobody. */
    if (q->idle && (l->ripe || !placed)) pthread_cond_signal(&q->ready);
}

void runqueue_remove(Op *op) {
    RunQueue *q = op->program->queue;
    Lane *l = op->lane;
    lane_unlink(l, op);
    q->length--;
    op->state = OP_WAITING;
    if (l->ripe && l->count && lane_suffices(l)) return; /* it keeps its turn */
    list_remove(l);
    lane_put_back(q, l);
}

void runqueue_release(Program *p) {
    if (p->unripe.first) pthread_cond_signal(&p->queue->ready);
}

/* ---- pop ------------------------------------------------------------------------------------------------------------------ */

static int ops_to_take(const Lane *l) {
    if (!l->batchable) return 1;
    int64_t rows = 0;
    int n = 0;
    for (const Op *op = l->head; op && rows < l->program->batchsize; op = op->next, n++) rows += op->rows;
    return n;
}

Stats all_runs;

static void count_batch(Stats *s, int n, int64_t waited_us) {
    int bucket = 0;
    while (bucket < 15 && (n >> (bucket + 1))) bucket++;
    atomic_fetch_add_explicit(&s->batches, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->batched_rows, n, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->wait_us, waited_us, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->batch_sizes[bucket], 1, memory_order_relaxed);
}

static Batch *batch_new(int n) {
    Batch *b = RedisModule_Alloc(sizeof(*b) + (size_t)n * sizeof(Op *));
    memset(b, 0, sizeof(*b));
    b->ops = (Op **)(b + 1);
    b->n = n;
    return b;
}

static void worker_runs(Worker *w, Program *p, int64_t now) {
    w->running = p;
    w->run_started_us = now;
    w->overdue_seen = false;
}

static Batch *lane_take(RunQueue *q, Worker *w, Lane *l, int64_t now) {
    Batch *b = batch_new(ops_to_take(l));
    int64_t waited = 0;
    b->queue = q;
    b->worker = w;
    b->program = program_ref(l->program);
    for (int i = 0; i < b->n; i++) {
        Op *op = b->ops[i] = l->head;
        lane_unlink(l, op);
        op->state = OP_RUNNING;
        op->job->queued--;
        op->job->running++;
        b->rows += op->rows;
        waited += now - op->queued_us;
    }
    q->length -= b->n;
    q->turn = l->program->turn_next; /* whoever comes next in the round */
    list_remove(l);
    lane_put_back(q, l);
    count_batch(&b->program->stats, b->n, waited);
    count_batch(&all_runs, b->n, waited);
    worker_runs(w, b->program, now);
    b->started_us = now;
    return b;
}

static void wait_for_work(RunQueue *q, int64_t until_us) {
    q->idle++;
    if (until_us == INT64_MAX) {
        pthread_cond_wait(&q->ready, &ai_lock);
    } else {
        struct timespec t = { until_us / 1000000, until_us % 1000000 * 1000 };
        pthread_cond_timedwait(&q->ready, &ai_lock, &t);
    }
    q->idle--;
}

Batch *runqueue_take(RunQueue *q, Worker *w, int64_t now, int64_t *look_again) {
    Program *p = due_program(q, now, look_again);
    return p ? lane_take(q, w, p->ripe.first, now) : NULL;
}

/* A TIMEOUT has passed. Nothing starts before the requests that it ends are gone: the timer thread may be as late as we are. */
static bool somebody_is_late(int64_t now) {
    const Job *first = heap_first();
    return first && now > first->deadline_us;
}

static void end_the_late(int64_t now) {
    int64_t unused;
    pthread_mutex_unlock(&ai_lock);
    jobs_expire(now, &unused);
    pthread_mutex_lock(&ai_lock);
}

bool runqueue_wait(RunQueue *q) {
    pthread_mutex_lock(&ai_lock);
    while (!ai_closing) {
        int64_t now = now_us(), look_again;
        if (somebody_is_late(now)) end_the_late(now);
        else if (due_program(q, now, &look_again)) break;
        else wait_for_work(q, look_again);
    }
    bool open = !ai_closing;
    pthread_mutex_unlock(&ai_lock);
    return open;
}

Batch *runqueue_try(RunQueue *q, Worker *w) {
    int64_t unused;
    pthread_mutex_lock(&ai_lock);
    int64_t now = now_us();
    Batch *b = ai_closing || somebody_is_late(now) ? NULL : runqueue_take(q, w, now, &unused);
    /* Work for another, or a due time that this worker will be too busy to keep. */
    if (b && q->length && q->idle) pthread_cond_signal(&q->ready);
    pthread_mutex_unlock(&ai_lock);
    if (b) watch_started();
    return b;
}

Worker *runqueue_attach(RunQueue *q, unsigned long thread) {
    Worker *w = RedisModule_Calloc(1, sizeof(*w));
    w->thread = thread;
    pthread_getcpuclockid(pthread_self(), &w->cpu_clock);
    pthread_mutex_lock(&ai_lock);
    Worker **end = &q->workers;
    while (*end) end = &(*end)->next;
    *end = w;
    q->nworkers++;
    pthread_mutex_unlock(&ai_lock);
    return w;
}

void runqueues_close(void) {
    pthread_mutex_lock(&ai_lock);
    ai_closing = true;
    for (RunQueue *q = runqueues; q; q = q->next) pthread_cond_broadcast(&q->ready);
    pthread_mutex_unlock(&ai_lock);
}

/* ---- what a worker does with a batch --------------------------------------------------------------------------------------- */

const char *batch_gather(Batch *b, int input, Tensor **into) {
    const char *error = NULL;
    if (b->n == 1) {
        Op *op = b->ops[0];
        *into = tensor_ref(op->job->plan.slots[op->in[input]]);
        return NULL;
    }
    Tensor **parts = RedisModule_Alloc((size_t)b->n * sizeof(*parts));
    for (int i = 0; i < b->n; i++) parts[i] = b->ops[i]->job->plan.slots[b->ops[i]->in[input]];
    *into = tensor_concat(parts, b->n, &error);
    RedisModule_Free(parts);
    return *into ? NULL : error;
}

/* Hands each op its slots. Slots of a running op are touched by nobody else until job_op_done, so no lock is needed. */
static const char *scatter_one(Tensor *output, int k, Batch *b) {
    int64_t from = 0;
    if (b->n > 1 && (!output->ndim || output->dims[0] != b->rows)) return "ERR Model did not generate the expected batch size";
    for (int i = 0; i < b->n; i++) {
        Op *op = b->ops[i];
        const char *error = NULL;
        if (k >= op->nout) return NULL; /* one more than was asked for */
        Tensor *part = b->n == 1 ? tensor_ref(output) : tensor_rows(output, from, op->rows, &error);
        if (!part) return error;
        op->job->plan.slots[op->out[k]] = part;
        from += op->rows;
    }
    return NULL;
}

static const char *scatter(Batch *b, Tensor **outputs, int n) {
    const char *error = NULL;
    for (int k = 0; k < n && !error; k++)
        if (outputs[k]) error = scatter_one(outputs[k], k, b);
    return error;
}

static void count_op(const Op *op, int64_t duration_us, bool failed) {
    Tensor *first = !failed && op->nout ? op->job->plan.slots[op->out[0]] : NULL;
    program_count(op->program, failed ? 0 : duration_us, first && first->ndim ? first->dims[0] : 0, failed);
}

static void count_call(Stats *s, int64_t duration_us, int64_t samples, bool failed) {
    atomic_fetch_add_explicit(&s->calls, 1, memory_order_relaxed);
    if (failed) atomic_fetch_add_explicit(&s->errors, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->duration_us, duration_us, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->samples, samples, memory_order_relaxed);
}

void program_count(Program *p, int64_t duration_us, int64_t samples, bool failed) {
    count_call(&p->stats, duration_us, samples, failed);
    count_call(&all_runs, duration_us, samples, failed);
}

/* Ends every op of the batch, then hands over the jobs that ended with it, and frees the batch. */
static void batch_end(Batch *b, const char *error, int64_t duration_us) {
    Job *ended = NULL, **tail = &ended;
    for (int i = 0; i < b->n; i++) count_op(b->ops[i], duration_us, error != NULL);
    pthread_mutex_lock(&ai_lock);
    worker_runs(b->worker, NULL, 0);
    for (int i = 0; i < b->n; i++) {
        Job *job = b->ops[i]->job;
        if (!job_op_done(job, b->ops[i], error ? text("%s", error) : NULL)) continue;
        job->next = NULL;
        *tail = job;
        tail = &job->next;
    }
    pthread_mutex_unlock(&ai_lock);
    jobs_finish(ended);
    program_unref(b->program);
    RedisModule_Free(b);
}

void batch_finish(Batch *b, Tensor **outputs, int n, int64_t duration_us) {
    const char *error = scatter(b, outputs, n);
    for (int k = 0; k < n; k++) tensor_unref(outputs[k]);
    batch_end(b, error, duration_us);
}

void batch_fail(Batch *b, const char *error) { batch_end(b, error, 0); }

void batch_split(Batch *b, Batch **into) {
    for (int i = 0; i < b->n; i++) {
        into[i] = batch_new(1);
        into[i]->queue = b->queue;
        into[i]->worker = b->worker;
        into[i]->program = program_ref(b->program);
        into[i]->ops[0] = b->ops[i];
        into[i]->rows = b->ops[i]->rows;
        into[i]->retry = true;
    }
    program_unref(b->program);
    RedisModule_Free(b);
}

void batch_restart(Batch *b) {
    pthread_mutex_lock(&ai_lock);
    b->started_us = now_us();
    worker_runs(b->worker, b->program, b->started_us);
    pthread_mutex_unlock(&ai_lock);
    watch_started();
}
