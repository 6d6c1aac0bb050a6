/* queues_driver.c -- what jobs, run queues and the timer need from the server, so that a test can drive them in its own process.
 *
 * The clock is a number that the test turns. Clients are tokens: the server's functions for blocked clients only note which job was handed
 * to the reply phase, and in what order. Allocations are counted, so that a test can see that everything was given back. No thread is started:
 * workers are records, and what would wait is never called. */
#include "ai.h"

#include <stdio.h>
#include <stdlib.h>

pthread_mutex_t ai_lock = PTHREAD_MUTEX_INITIALIZER;
RedisModuleType *ai_tensor_type, *ai_model_type, *ai_script_type;
RedisModuleCtx *ai_log_ctx;
const char *const backend_names[BACKEND_COUNT];
bool ai_can_trim, ai_enterprise, ai_nested_call;
_Atomic bool ai_closing;
Config config = { .threads_per_queue = 1, .model_execution_timeout = 5000, .max_tensor_bytes = 1 << 24, .max_queue = 1 << 16 };

/* ---- the server ----------------------------------------------------------------------------------------------------------- */

static int64_t live, clock_us;

int64_t now_us(void) { return clock_us; }

static void *counted(void *p) {
    if (p) live++;
    return p;
}
static void *fake_alloc(size_t n) { return counted(malloc(n)); }
static void *fake_calloc(size_t n, size_t size) { return counted(calloc(n, size)); }
static void *fake_realloc(void *p, size_t n) { return realloc(p, n); } /* of the timer's heap, which keeps its room */
static void fake_free(void *p) {
    if (p) live--;
    free(p);
}

static RedisModuleDisconnectFunc on_disconnect;
static Job *ended, **ended_tail = &ended; /* handed to the reply phase, in order */
static int writes_are_paused;

static RedisModuleBlockedClient *fake_block(RedisModuleCtx *ctx, RedisModuleCmdFunc reply, RedisModuleCmdFunc timeout,
                                            void (*free_data)(RedisModuleCtx *, void *), long long ms) {
    return fake_alloc(1);
}
static int fake_unblock(RedisModuleBlockedClient *bc, void *data) {
    Job *job = data;
    job->next = NULL;
    *ended_tail = job;
    ended_tail = &job->next;
    return REDISMODULE_OK;
}
static void fake_disconnect_callback(RedisModuleBlockedClient *bc, RedisModuleDisconnectFunc f) { on_disconnect = f; }
static int fake_db(RedisModuleCtx *ctx) { return 0; }
static int fake_avoid_replica_traffic(void) { return writes_are_paused; }

static void unit_start(void) {
    RedisModule_Alloc = RedisModule_TryAlloc = fake_alloc;
    RedisModule_Calloc = fake_calloc;
    RedisModule_Realloc = fake_realloc;
    RedisModule_Free = fake_free;
    RedisModule_BlockClient = fake_block;
    RedisModule_UnblockClient = fake_unblock;
    RedisModule_SetDisconnectCallback = fake_disconnect_callback;
    RedisModule_GetSelectedDb = fake_db;
    RedisModule_AvoidReplicaTraffic = fake_avoid_replica_traffic;
}

static int64_t unit_live(void) { return live; }
static void unit_clock(int64_t now) { clock_us = now; }
static void unit_max_queue(int64_t n) { config.max_queue = n; }
static void unit_pause(bool paused) {
    writes_are_paused = paused;
    jobs_pause_check();
}

/* Never reached from here. */
int reply_job(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) { abort(); }
void reply_run(RedisModuleCtx *ctx, RedisModuleString **argv, Job *job) { abort(); }
void reply_error_line(RedisModuleCtx *ctx, const char *line) { abort(); }
Program *program_lookup(RedisModuleCtx *ctx, RedisModuleString *key, ProgramKind kind, const char **error) { abort(); }
User *redis_caller(RedisModuleCtx *ctx) { abort(); }
void user_unref(User *user) {
    if (user) abort();
}
void flow_run_ended(Job *job) { abort(); }
int thread_start(const char *name, size_t stack, void *(*run)(void *), void *argument) { abort(); }

/* ---- programs ------------------------------------------------------------------------------------------------------------- */

Program *program_ref(Program *p) {
    p->refs++;
    return p;
}

void program_unref(Program *p) {
    if (--p->refs) return;
    fake_free(p->open_error);
    names_free(&p->inputs);
    names_free(&p->outputs);
    fake_free(p);
}

/* Open already, unless `state` says otherwise. Sizes in rows, the timeout in milliseconds. */
static Program *unit_program(const char *device, int kind, int state, int64_t batchsize, int64_t minbatchsize, int64_t minbatchtimeout) {
    static uint64_t last_id;
    Program *p = fake_calloc(1, sizeof(*p));
    p->refs = 1;
    p->id = ++last_id;
    p->kind = (uint8_t)kind;
    p->state = (uint8_t)state;
    p->batchsize = batchsize;
    p->minbatchsize = minbatchsize;
    p->minbatchtimeout = minbatchtimeout;
    p->queue = runqueue_of((Slice){ device, strlen(device) });
    p->waiting_tail = &p->waiting;
    return p;
}

static void unit_drop(Program *p, bool dropped) {
    pthread_mutex_lock(&ai_lock);
    p->dropped = dropped;
    if (dropped) runqueue_release(p);
    pthread_mutex_unlock(&ai_lock);
}

static int unit_refs(const Program *p) { return p->refs; }
static int unit_queue_length(const Program *p) { return p->queue->length; }
static int unit_queue_waiting(const Program *p) { return p->queue->waiting; }
static bool unit_queue_full(const Program *p) { return runqueue_full(p->queue); }
static int64_t unit_stat(const Program *p, int which) {
    const Stats *s = &p->stats;
    const int64_t numbers[] = { s->calls, s->errors, s->duration_us, s->samples, s->batches, s->batched_rows, s->wait_us };
    return which < 7 ? numbers[which] : s->batch_sizes[which - 7];
}

/* Ends the opening that the first request asked for, as the loader would: a model with one input and one output, or an error. */
static void unit_opened(Program *p, const char *error) {
    Slice name = { "x", 1 };
    if (error) loader_failed(p, NULL, error);
    else loader_opened(p, NULL, names_new(1, &name), names_new(1, &name));
}
static int unit_inbox(void) { return inbox_length(); }
static void unit_inbox_pop(void) {
    Message *m = inbox_pop();
    program_unref(m->program);
    RedisModule_Free(m);
}

/* ---- tensors ---------------------------------------------------------------------------------------------------------------- */

/* A tensor with a copy of `n` bytes of data; NULL when the shape or the strings in it are wrong. */
static Tensor *unit_tensor(int dtype, int ndim, const int64_t *dims, const char *data, size_t n) {
    const char *error;
    Tensor *t = tensor_new((Dtype)dtype, ndim, dims, n, &error);
    if (!t) return NULL;
    if (n) memcpy((char *)t->bytes, data, n);
    if (dtype != T_STRING || tensor_index_strings(t)) return t;
    tensor_unref(t);
    return NULL;
}

static int64_t unit_dim(const Tensor *t, int i) { return t->dims[i]; }

/* ---- jobs ------------------------------------------------------------------------------------------------------------------- */

static Job *unit_job(int nops, int nslots) {
    Job *job = job_new(JOB_RUN);
    job->plan.nops = nops;
    job->plan.nslots = nslots;
    job->plan.ops = arena_alloc(&job->arena, (size_t)nops * sizeof(Op));
    job->plan.tracks = arena_alloc(&job->arena, (size_t)nops * sizeof(Track));
    job->plan.slots = arena_alloc(&job->arena, (size_t)nslots * sizeof(Tensor *));
    return job;
}

static Track *track_of(Plan *plan, RunQueue *q) {
    int t = 0;
    while (t < plan->ntracks && plan->tracks[t].queue != q) t++;
    if (t == plan->ntracks) plan->tracks[plan->ntracks++].queue = q;
    return &plan->tracks[t];
}

static int *copied(Arena *arena, const int *numbers, int n) {
    int *copy = arena_alloc(arena, (size_t)n * sizeof(int));
    if (n) memcpy(copy, numbers, (size_t)n * sizeof(int));
    return copy;
}

/* Op `i` of the job: `p` reads slots `in` and fills slots `out`. */
static void unit_op(Job *job, int i, Program *p, int nin, const int *in, int nout, const int *out) {
    Op *op = &job->plan.ops[i];
    op->kind = p->kind == PROGRAM_MODEL ? OP_MODEL : OP_SCRIPT;
    op->job = job;
    op->program = program_ref(p);
    op->nin = nin;
    op->nout = nout;
    op->in = copied(&job->arena, in, nin);
    op->out = copied(&job->arena, out, nout);
    Track *t = track_of(&job->plan, p->queue);
    if (t->last) t->last->after = op;
    else t->next = op;
    t->last = op;
}

/* Takes over the reference. */
static void unit_slot(Job *job, int slot, Tensor *t) { job->plan.slots[slot] = t; }

static void unit_run(Job *job, int64_t timeout_ms, bool writes) {
    job->plan.timeout_ms = timeout_ms;
    job->plan.noutputs = writes;
    job_block(NULL, job);
    job_start(job);
}

static void unit_disconnect(Job *job) { on_disconnect(NULL, job->bc); }

/* The next job that reached the reply phase, or NULL. */
static Job *unit_ended(void) {
    Job *job = ended;
    if (!job) return NULL;
    ended = job->next;
    if (!ended) ended_tail = &ended;
    return job;
}

/* What the main thread does after the reply. */
static void unit_free(Job *job) {
    void *bc = job->bc;
    job_free(job);
    fake_free(bc);
}

static Tensor *unit_slot_of(const Job *job, int slot) { return job->plan.slots[slot]; }
static int unit_op_state(const Job *job, int i) { return job->plan.ops[i].state; }
static uint64_t unit_lane_hash(const Job *job) { return job->plan.ops[0].lane->hash; }
static const char *unit_op_error(const Job *job, int i) { return job->plan.ops[i].error; }
static bool unit_flag(const Job *job, int which) {
    const bool flags[] = { job->timed_out, job->failed, job->gone, job->finished };
    return flags[which];
}
static int64_t unit_in_flight(void) { return jobs_in_flight; }

/* ---- workers ------------------------------------------------------------------------------------------------------------------ */

static Worker *unit_worker(Program *p) { return runqueue_attach(p->queue, 1); }

/* What a worker would get now; NULL and when it would look again. */
static Batch *unit_take(Program *p, Worker *w, int64_t *look_again) {
    pthread_mutex_lock(&ai_lock);
    Batch *b = runqueue_take(p->queue, w, clock_us, look_again);
    pthread_mutex_unlock(&ai_lock);
    return b;
}

static Batch *unit_try(Program *p, Worker *w) { return runqueue_try(p->queue, w); }

/* The same as a worker does it, which would wait if nothing were due. */
static Batch *unit_pop(Program *p, Worker *w) {
    Batch *b;
    while (!(b = runqueue_try(p->queue, w)) && runqueue_wait(p->queue)) {}
    return b;
}

static const Job *unit_batch_job(const Batch *b, int i) { return b->ops[i]->job; }
static int unit_batch_op(const Batch *b, int i) { return (int)(b->ops[i] - b->ops[i]->job->plan.ops); }

/* The run that the watchdog is told of now; only for when there is one. */
static uint64_t unit_overdue(Overdue *run) {
    if (!watch_overdue(run)) return 0;
    RedisModule_Free(run->key);
    return run->program;
}

/* ---- the timer's heap ---------------------------------------------------------------------------------------------------------- */

static Job *unit_timed(int64_t deadline_us) {
    Job *job = job_new(JOB_RUN);
    job->deadline_us = deadline_us;
    return job;
}
static int64_t unit_deadline(const Job *job) { return job->deadline_us; }
static int unit_heap_at(const Job *job) { return job->heap_at; }
