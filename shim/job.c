/* job.c -- one command in flight: from its arguments to the moment its reply can be made.
 *
 * 1. A job takes references on every value its command names when it arrives; what happens to the keys later does not change what it sees.
 * 2. It reaches job_finish() exactly once, from whichever thread ends it last: a worker, the timer, the loader, or the holder. From
 *    there the reply phase runs on the main thread, and then job_free(), also there. A run that a flow started has no client: it ends in
 *    the flow queue, without the Redis lock, because who waits for it may hold that.
 * 3. Ops of one device run in text order, those of different devices side by side. An op starts when its inputs exist. What can never
 *    start, because an op it needs gave no tensor, is passed over.
 * 4. Blocking a client where Redis forbids it aborts the server: may_block() decides, job_block() is the only caller of RM_BlockClient. */
#include "ai.h"

_Atomic int64_t jobs_in_flight, jobs_timed_out, jobs_gone;

static Job *blocked[1024];               /* jobs that block a client, by that client; holder only */
static Job *parked, **parked_tail = &parked; /* finished, but writes are paused; under ai_lock */
static _Atomic bool writes_paused;       /* what the holder saw before it last went to sleep */

bool may_block(RedisModuleCtx *ctx) {
    return !ai_nested_call && !(RedisModule_GetContextFlags(ctx) & (CTX_LUA | CTX_MULTI | CTX_LOADING | CTX_REPLICATED | CTX_DENY_BLOCKING));
}

/* ---- life ----------------------------------------------------------------------------------------------------------------- */

Job *job_new(JobKind kind) {
    Job *job = RedisModule_Calloc(1, sizeof(*job));
    job->kind = kind;
    job->heap_at = -1;
    return job;
}

/* Thousands of clients may leave at once, when a proxy goes: each must be found without walking past the others. */
static Job **blocked_by(const RedisModuleBlockedClient *bc) { return &blocked[(uint64_t)(uintptr_t)bc * 0x9E3779B97F4A7C15u >> 54]; }
_Static_assert(sizeof(blocked) / sizeof(*blocked) == 1 << 10, "blocked_by takes ten bits");

static void list_blocked(Job *job) {
    Job **bucket = blocked_by(job->bc);
    job->older = *bucket;
    job->newer = NULL;
    if (job->older) job->older->newer = job;
    *bucket = job;
}

static void unlist_blocked(Job *job) {
    *(job->newer ? &job->newer->older : blocked_by(job->bc)) = job->older;
    if (job->older) job->older->newer = job->newer;
}

void job_free(Job *job) {
    if (job->bc) {
        unlist_blocked(job);
        jobs_in_flight--;
    }
    plan_release(&job->plan);
    if (job->program) program_unref(job->program);
    for (int i = 0; i < job->nheld; i++) RedisModule_FreeString(NULL, job->held[i]);
    user_unref(job->user);
    if (job->error) RedisModule_Free(job->error);
    arena_free(&job->arena);
    RedisModule_Free(job);
}

static void free_private_data(RedisModuleCtx *ctx, void *job) { job_free(job); }

/* ---- going ahead, under ai_lock --------------------------------------------------------------------------------------------- */

static void wait_for_opening(Job *job, Program *p) {
    job->waits_for = p;
    job->next = NULL;
    if (!p->waiting) p->waiting_tail = &p->waiting;
    *p->waiting_tail = job;
    p->waiting_tail = &job->next;
    p->queue->waiting++;
    loader_want(p);
}

static void stop_waiting(Job *job) {
    Program *p = job->waits_for;
    struct Job **at = &p->waiting;
    while (*at != job) at = &(*at)->next;
    *at = job->next;
    if (!*at) p->waiting_tail = at;
    p->queue->waiting--;
    job->waits_for = NULL;
    job->next = NULL;
}

/* The first program of the plan that is neither open nor beyond hope. */
static Program *unopened_program(const Plan *plan) {
    for (int i = 0; i < plan->nops; i++) {
        Program *p = plan->ops[i].program;
        if (p && (p->state == PROGRAM_UNOPENED || p->state == PROGRAM_OPENING)) return p;
    }
    return NULL;
}

static bool inputs_exist(const Op *op) {
    for (int i = 0; i < op->nin; i++)
        if (!op->job->plan.slots[op->in[i]]) return false;
    return true;
}

static const char *cannot_start(const Op *op) {
    const Program *p = op->program;
    if (p->state == PROGRAM_FAILED) return p->open_error;
    if (op->kind != OP_MODEL || !p->names_known) return NULL;
    if (op->nin != p->inputs.n) return "Number of keys given as INPUTS here does not match model definition";
    if (op->nout != p->outputs.n) return "Number of keys given as OUTPUTS here does not match model definition";
    return NULL;
}

static void start_op(Job *job, Op *op, int64_t now) {
    const char *error = cannot_start(op);
    if (error) {
        op->state = OP_FAILED;
        op->error = text("%s", error);
        job->failed = true;
        return;
    }
    job->queued++;
    runqueue_push(op->program->queue, op, now);
}

static void start_ready_ops(Job *job) {
    int64_t now = now_us();
    for (int t = 0; t < job->plan.ntracks; t++) {
        Op *op = job->plan.tracks[t].next;
        if (!op || op->state != OP_WAITING || !inputs_exist(op)) continue;
        if (job->deadline_us && now > job->deadline_us) job->timed_out = true;
        if (job->failed || job->timed_out) return;
        start_op(job, op, now);
    }
}

/* Nothing runs and nothing is queued: the first op of the text that is left lacks a tensor which nobody will give any more (a model may give
 * fewer than were named). It replies NA, and those after it have their turn. False when none is left. */
static bool pass_over(Job *job) {
    Track *first = NULL;
    for (int t = 0; t < job->plan.ntracks; t++) {
        Track *track = &job->plan.tracks[t];
        if (track->next && (!first || track->next < first->next)) first = track;
    }
    if (first) first->next = first->next->after;
    return first != NULL;
}

static void drop_queued_ops(Job *job) {
    for (int t = 0; job->queued && t < job->plan.ntracks; t++) {
        Op *op = job->plan.tracks[t].next;
        if (!op || op->state != OP_QUEUED) continue;
        runqueue_remove(op);
        job->queued--;
    }
}

static bool over(const Job *job) { return job->failed || job->timed_out || job->gone; }

/* Does what can be done next. True when the job has just ended. */
static bool proceed(Job *job) {
    if (job->kind != JOB_RUN || job->finished) return false;
    if (!over(job) && !job->programs_open) {
        Program *p = unopened_program(&job->plan);
        if (p) {
            wait_for_opening(job, p);
            return false;
        }
        job->programs_open = true;
    }
    if (!over(job)) {
        do start_ready_ops(job);
        while (!over(job) && !job->running && !job->queued && pass_over(job));
    }
    if (over(job)) drop_queued_ops(job);
    if (job->running || job->queued) return false;
    job->finished = true;
    heap_remove(job);
    if (job->timed_out) jobs_timed_out++;
    return true;
}

bool job_op_done(Job *job, Op *op, char *error) {
    Track *track = job->plan.tracks;
    while (track->queue != op->program->queue) track++;
    track->next = op->after;
    op->state = error ? OP_FAILED : OP_DONE;
    op->error = error;
    if (error) job->failed = true;
    job->running--;
    return proceed(job);
}

void program_opened_locked(Program *p, Job **ended) {
    Job *job = p->waiting;
    p->waiting = NULL;
    while (job) {
        Job *next = job->next;
        p->queue->waiting--;
        job->waits_for = NULL;
        job->next = NULL;
        bool ends = job->kind == JOB_GET ? (job->finished = true) : proceed(job);
        if (ends) {
            job->next = *ended;
            *ended = job;
        }
        job = next;
    }
}

void jobs_finish(Job *ended) {
    while (ended) {
        Job *job = ended;
        ended = job->next;
        job->next = NULL;
        job_finish(job);
    }
}

/* ---- deadlines and clients that leave ----------------------------------------------------------------------------------------- */

void jobs_expire(int64_t now, int64_t *next_due) {
    Job *ended = NULL, *job;
    pthread_mutex_lock(&ai_lock);
    while ((job = heap_first()) && now > job->deadline_us) {
        heap_remove(job);
        if (!job->queued && !job->waits_for) continue; /* runs: the rule is applied when its next op would start */
        job->timed_out = true;
        if (job->waits_for) stop_waiting(job);
        if (proceed(job)) {
            job->next = ended;
            ended = job;
        }
    }
    *next_due = job ? job->deadline_us + 1 : INT64_MAX;
    pthread_mutex_unlock(&ai_lock);
    jobs_finish(ended);
}

/* The server calls this once when a blocked client goes away; the job lives on until it ends. A store that the loader has not begun ends
 * here: it holds the bytes of its model, and nobody will read how it went. */
static void client_gone(RedisModuleCtx *ctx, RedisModuleBlockedClient *bc) {
    Job *job = *blocked_by(bc);
    while (job && job->bc != bc) job = job->older;
    if (!job) return;
    pthread_mutex_lock(&ai_lock);
    job->gone = true;
    jobs_gone++;
    bool waited = job->waits_for;
    if (waited) stop_waiting(job);
    Message *store = job->kind == JOB_STORE ? inbox_withdraw(job) : NULL;
    bool ended = job->kind == JOB_RUN ? !job->finished && job->started && proceed(job) : waited || store;
    if (ended) job->finished = true;
    pthread_mutex_unlock(&ai_lock);
    if (store) {
        program_unref(store->program);
        RedisModule_Free(store);
    }
    if (ended) job_finish(job);
}

/* ---- blocking and finishing ---------------------------------------------------------------------------------------------------- */

void job_block(RedisModuleCtx *ctx, Job *job) {
    job->db = RedisModule_GetSelectedDb(ctx);
    job->bc = RedisModule_BlockClient(ctx, reply_job, NULL, free_private_data, 0);
    RedisModule_SetDisconnectCallback(job->bc, client_gone);
    if (RedisModule_BlockedClientMeasureTimeStart) RedisModule_BlockedClientMeasureTimeStart(job->bc);
    list_blocked(job);
    jobs_in_flight++;
}

void job_start(Job *job) {
    pthread_mutex_lock(&ai_lock);
    job->started = true;
    if (job->plan.timeout_ms) {
        int64_t now = now_us(), ms = job->plan.timeout_ms;
        job->deadline_us = ms > (INT64_MAX - now) / 1000 ? 0 : now + ms * 1000; /* beyond the clock's range: no deadline */
        if (job->deadline_us) heap_push(job);
    }
    bool ended = proceed(job);
    pthread_mutex_unlock(&ai_lock);
    if (ended) job_finish(job);
}

void job_wait_open(RedisModuleCtx *ctx, Job *job) {
    job_block(ctx, job);
    pthread_mutex_lock(&ai_lock);
    bool ended = job->program->state == PROGRAM_OPEN || job->program->state == PROGRAM_FAILED;
    if (!ended) wait_for_opening(job, job->program);
    pthread_mutex_unlock(&ai_lock);
    if (ended) job_finish(job);
}

static bool writes(const Job *job) { return job->kind == JOB_STORE || job->plan.noutputs; }

static void unblock(Job *job) {
    if (RedisModule_BlockedClientMeasureTimeEnd) RedisModule_BlockedClientMeasureTimeEnd(job->bc);
    RedisModule_UnblockClient(job->bc, job);
}

void job_finish(Job *job) {
    if (job->item) {
        flow_run_ended(job);
        return;
    }
    if (writes_paused && writes(job)) {
        bool park;
        pthread_mutex_lock(&ai_lock);
        if ((park = writes_paused)) {
            job->next = NULL;
            *parked_tail = job;
            parked_tail = &job->next;
        }
        pthread_mutex_unlock(&ai_lock);
        if (park) return;
    }
    unblock(job);
}

/* Replicating while writes are paused (CLIENT PAUSE WRITE, FAILOVER, SHUTDOWN with a lagging replica) aborts the server. The holder looks
 * before each sleep; in between, the reply phase looks again (reply.c) and refuses rather than write. */
void jobs_pause_check(void) {
    bool paused = RedisModule_AvoidReplicaTraffic();
    if (paused == writes_paused) return;
    pthread_mutex_lock(&ai_lock);
    Job *release = paused ? NULL : parked;
    writes_paused = paused;
    if (!paused) {
        parked = NULL;
        parked_tail = &parked;
    }
    pthread_mutex_unlock(&ai_lock);
    while (release) {
        Job *job = release;
        release = job->next;
        job->next = NULL;
        unblock(job);
    }
}

/* ---- the commands --------------------------------------------------------------------------------------------------------------- */

typedef struct World {
    RedisModuleCtx *ctx;
    RedisModuleString **argv;
    const Slice *words;
} World;

static Program *world_program(void *u, int arg, ProgramKind kind, const char **error) {
    World *w = u;
    Program *p = program_lookup(w->ctx, w->argv[arg], kind, error);
    return p ? program_ref(p) : NULL;
}

static Tensor *world_tensor(void *u, int arg, const char **error) {
    World *w = u;
    Tensor *t = tensor_lookup(w->ctx, w->argv[arg], error);
    return t ? tensor_ref(t) : NULL;
}

static Tensor *world_tensorset(void *u, int arg, int n, const char **error) {
    World *w = u;
    return tensor_parse(w->words + arg, n, w->argv + arg, error);
}

static void report_key(void *u, int arg, int access) {
    RedisModuleCtx *ctx = u;
    if (RedisModule_KeyAtPosWithFlags) RedisModule_KeyAtPosWithFlags(ctx, arg, access);
    else RedisModule_KeyAtPos(ctx, arg);
}

static Slice *slices_of(Arena *arena, RedisModuleString **argv, int argc) {
    Slice *words = arena_alloc(arena, (size_t)argc * sizeof(*words));
    for (int i = 0; i < argc; i++) words[i] = slice_of(argv[i]);
    return words;
}

/* COMMAND GETKEYS, cluster routing and ACL ask with the same walk that plans. */
static int report_keys(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, RunCommand command) {
    Arena arena = { 0 };
    Plan plan;
    PlanWorld world = { .u = ctx, .key = report_key };
    plan_make(command, slices_of(&arena, argv, argc), argc, &world, &arena, &plan);
    plan_release(&plan);
    arena_free(&arena);
    return REDISMODULE_OK;
}

static const RunQueue *full_queue(const Plan *plan) {
    for (int t = 0; t < plan->ntracks; t++)
        if (runqueue_full(plan->tracks[t].queue)) return plan->tracks[t].queue;
    return NULL;
}

int cmd_run(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, RunCommand command) {
    if (RedisModule_IsKeysPositionRequest(ctx)) return report_keys(ctx, argv, argc, command);
    strings_drain();
    if (!may_block(ctx))
        return RedisModule_ReplyWithError(ctx, "ERR Cannot run RedisAI command within a transaction or a LUA script");
    Job *job = job_new(JOB_RUN);
    Slice *words = slices_of(&job->arena, argv, argc);
    World w = { ctx, argv, words };
    PlanWorld world = { &w, world_program, world_tensor, world_tensorset, NULL, ai_enterprise };
    const char *error = plan_make(command, words, argc, &world, &job->arena, &job->plan);
    const RunQueue *full = error ? NULL : full_queue(&job->plan);
    if (full) error = "ERR the run queue of the device is full (MAX_QUEUE)";
    if (error || !job->plan.ntracks) { /* nothing to run: refused, or tensors only */
        if (error) reply_error_line(ctx, error);
        else reply_run(ctx, argv, job);
        job_free(job);
        return REDISMODULE_OK;
    }
    for (int i = 0; i < job->plan.nops; i++) job->plan.ops[i].job = job;
    if (job->plan.has_script) job->user = redis_caller(ctx);
    job_block(ctx, job);
    job_start(job);
    return REDISMODULE_OK;
}
