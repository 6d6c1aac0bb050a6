/* flows.c -- AI flows: Python that a client registers and that runs when it is triggered, when keys change or when streams grow.
 *
 * 1. RG.PYEXECUTE hands a source to Python, whose thread executes it and registers what it finds (flow_register). Nothing of that counts
 *    before Python answers: flow_reply() takes the Redis lock, enters all registrations into the table at once, replicates them and then lets
 *    the client read its answer. So a source that raises half-way leaves nothing behind.
 * 2. What is kept is the source, because a function cannot be stored. After a restart and on promotion each source is executed again
 *    (flows_wake); its k-th registration takes the place of the k-th it had. What is triggered meanwhile waits. A replica keeps the table and
 *    runs nothing.
 * 3. The table is changed by the holder of the Redis lock under ai_lock, and read under either; a child that saves reads it alone.
 *    Counters and states are under ai_lock.
 * 4. A flow runs with the rights of who registered it, looked up at each command, whoever triggers it: as with functions of the server.
 *
 * Sources and registrations are few, and found by walking: an index would be for thousands. */
#include "ai.h"

#include <errno.h>
#include <stdio.h>
#include <sys/random.h>
#include <time.h>

const char *const flow_readers[READER_COUNT] = { "CommandReader", "KeysReader", "StreamReader" };

_Atomic int64_t flows_triggered, flows_failed, flows_dropped;

static FlowSource *sources;    /* oldest first */
static FlowSource *set_aside;  /* while a dump loads: what was there before */

static const char NO_BLOCKING[] = "ERR can not run a non-sync execution inside a MULTI/LUA (blocking is not allowed) or on loading.";
static const char REPLICA[] = "READONLY You can't write against a read only replica.";
static const char TAKEN[] = "trigger already registered";
static const char FULL[] = "ERR the flow queue is full (MAX_QUEUE)";

FlowSource *flows_first(void) { return sources; }

int flows_number(void) {
    int n = 0;
    for (const FlowSource *s = sources; s; s = s->next)
        for (const Flow *f = s->flows; f; f = f->next) n++;
    return n;
}

/* ---- names that no other server gives ----------------------------------------------------------------------------------------- */

static char this_run[41];

static bool name_this_run(void) {
    unsigned char noise[20];
    if (getrandom(noise, sizeof(noise), 0) != (ssize_t)sizeof(noise)) return false;
    for (int i = 0; i < 20; i++) snprintf(this_run + 2 * i, 3, "%02x", noise[i]);
    return true;
}

/* 40 hexadecimal digits of this run of the server, and a number. */
static char *new_id(void) {
    static _Atomic uint64_t last;
    return text("%s-%llu", this_run, (unsigned long long)++last);
}

/* ---- values ---------------------------------------------------------------------------------------------------------------------- */

FlowSource *flow_source_new(Slice id, const User *user, int db, Blob *body, Names requirements) {
    FlowSource *s = RedisModule_Calloc(1, sizeof(*s));
    atomic_init(&s->refs, 1);
    s->id = slice_dup(id);
    s->user = user_ref((User *)user);
    s->db = db;
    s->text = body;
    s->requirements = requirements;
    return s;
}

static FlowSource *flow_source_ref(FlowSource *s) {
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    return s;
}

void flow_source_unref(FlowSource *s) {
    if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1) return;
    for (Flow *f = s->flows, *next; f; f = next) {
        next = f->next;
        flow_unref(f);
    }
    RedisModule_Free(s->id);
    user_unref(s->user);
    blob_unref(s->text);
    names_free(&s->requirements);
    RedisModule_Free(s);
}

static const Slice *argument(const Names *args, const char *name) {
    for (int i = 0; i + 1 < args->n; i += 2)
        if (args->item[i].n == strlen(name) && memcmp(args->item[i].p, name, args->item[i].n) == 0) return &args->item[i + 1];
    return NULL;
}

Flow *flow_new(Slice id, Slice reader, int ordinal, const FlowSource *source, Names args, const char **error) {
    int kind = 0;
    while (kind < READER_COUNT && !(reader.n == strlen(flow_readers[kind]) && memcmp(reader.p, flow_readers[kind], reader.n) == 0)) kind++;
    const Slice *trigger = argument(&args, "trigger"), *prefix = argument(&args, "prefix");
    *error = NULL;
    if (kind == READER_COUNT) *error = "ERR no such reader";
    else if (args.n % 2) *error = "ERR an argument of a registration has no value";
    else if (kind == READER_COMMAND && !trigger) *error = "ERR a CommandReader is registered with a trigger";
    if (*error) {
        names_free(&args);
        return NULL;
    }
    Flow *f = RedisModule_Calloc(1, sizeof(*f));
    atomic_init(&f->refs, 1);
    f->reader = (uint8_t)kind;
    f->ordinal = ordinal;
    f->id = slice_dup(id);
    f->user = user_ref(source->user);
    f->db = source->db;
    f->args = args;
    f->waiting_tail = &f->waiting;
    if (trigger) f->trigger = *trigger;
    if (prefix) {
        f->prefix = *prefix;
        f->exact = !prefix->n || prefix->p[prefix->n - 1] != '*';
        if (!f->exact) f->prefix.n--;
    }
    return f;
}

void flow_unref(Flow *f) {
    if (!f || atomic_fetch_sub_explicit(&f->refs, 1, memory_order_acq_rel) != 1) return;
    RedisModule_Free(f->id);
    RedisModule_Free(f->last_error);
    user_unref(f->user);
    names_free(&f->args);
    RedisModule_Free(f);
}

static bool same_text(Slice a, Slice b) { return a.n == b.n && (!a.n || memcmp(a.p, b.p, a.n) == 0); }

static Flow *flow_by_trigger(const FlowSource *list, Slice trigger) {
    for (const FlowSource *s = list; s; s = s->next)
        for (Flow *f = s->flows; f; f = f->next)
            if (f->reader == READER_COMMAND && same_text(f->trigger, trigger)) return f;
    return NULL;
}

static Flow *flow_by_id(Slice id) {
    for (const FlowSource *s = sources; s; s = s->next)
        for (Flow *f = s->flows; f; f = f->next)
            if (same_text((Slice){ f->id, strlen(f->id) }, id)) return f;
    return NULL;
}

/* ---- falling asleep and going, under ai_lock ---------------------------------------------------------------------------------------- */

/* What waited for a flow, given up by whoever ends its wait: answer_all() outside the lock. */
static void take_waiting(Flow *f, FlowItem **into) {
    *f->waiting_tail = *into;
    *into = f->waiting;
    f->waiting = NULL;
    f->waiting_tail = &f->waiting;
    for (FlowItem *item = *into; item; item = item->next)
        if (item->kind == ITEM_STREAM) flow_stream_leave(item);
}

static void end_flow(Flow *f, FlowState state, FlowItem **waiting) {
    if (f->state == FLOW_LIVE || f->state == FLOW_WAKING) flow_post_locked(flow_item(ITEM_DROP, f, NULL));
    f->state = state;
    take_waiting(f, waiting);
}

static void end_flows(FlowSource *list, FlowState state, FlowItem **waiting) {
    for (FlowSource *s = list; s; s = s->next) {
        s->epoch++;
        for (Flow *f = s->flows; f; f = f->next) end_flow(f, state, waiting);
    }
}

static void answer_all(FlowItem *item, const char *error) {
    for (FlowItem *next; item; item = next) {
        next = item->next;
        if (item->kind == ITEM_TRIGGER) {
            flow_fail(item, error);
            continue;
        }
        flows_dropped++;
        flow_item_free(item);
    }
}

static void unref_all(FlowSource *list) {
    for (FlowSource *s = list, *next; s; s = next) {
        next = s->next;
        flow_source_unref(s);
    }
}

/* ---- the table: holder, under ai_lock ---------------------------------------------------------------------------------------------- */

static void table_append(FlowSource *s) {
    FlowSource **at = &sources;
    while (*at) at = &(*at)->next;
    s->next = NULL;
    s->listed = true;
    *at = s;
}

static void table_remove(FlowSource *s) {
    FlowSource **at = &sources;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    s->next = NULL;
    s->listed = false;
}

static FlowSource *source_of(const Flow *flow) {
    for (FlowSource *s = sources; s; s = s->next)
        for (Flow *f = s->flows; f; f = f->next)
            if (f == flow) return s;
    return NULL;
}

bool flow_remove(Slice id) {
    FlowItem *waiting = NULL;
    FlowSource *emptied = NULL;
    pthread_mutex_lock(&ai_lock);
    Flow *f = flow_by_id(id);
    if (f) {
        FlowSource *s = source_of(f);
        Flow **at = &s->flows;
        while (*at != f) at = &(*at)->next;
        *at = f->next;
        f->next = NULL;
        end_flow(f, FLOW_GONE, &waiting);
        if (!s->flows) table_remove(emptied = s);
    }
    pthread_mutex_unlock(&ai_lock);
    answer_all(waiting, "ERR the flow was unregistered");
    flow_source_unref(emptied);
    flow_unref(f);
    return f != NULL;
}

static FlowSource *table_find(const char *id) {
    FlowSource *s = sources;
    while (s && strcmp(s->id, id) != 0) s = s->next;
    return s;
}

void flow_source_list(FlowSource *s) {
    FlowItem *waiting = NULL;
    pthread_mutex_lock(&ai_lock);
    FlowSource *before = table_find(s->id);
    if (before) {
        table_remove(before);
        end_flows(before, FLOW_GONE, &waiting);
    }
    table_append(s);
    pthread_mutex_unlock(&ai_lock);
    answer_all(waiting, "ERR the flow was replaced");
    flow_source_unref(before);
}

/* ---- life with the server: holder --------------------------------------------------------------------------------------------------- */

static bool asleep(const FlowSource *s) {
    for (const Flow *f = s->flows; f; f = f->next)
        if (f->state != FLOW_ASLEEP) return false;
    return true;
}

static void wake_source(FlowSource *s) {
    FlowItem *item = flow_item(ITEM_SOURCE, NULL, NULL);
    item->source = flow_source_ref(s);
    item->restoring = true;
    item->db = s->db;
    item->epoch = ++s->epoch;
    for (Flow *f = s->flows; f; f = f->next) {
        f->state = FLOW_WAKING;
        f->seen = false;
    }
    flow_post_locked(item);
}

static bool reads_events(const FlowSource *s) {
    for (const Flow *f = s->flows; f; f = f->next)
        if (f->reader != READER_COMMAND) return true;
    return false;
}

void flows_wake(void) {
    if (!config.flows) return;
    bool events = false;
    pthread_mutex_lock(&ai_lock);
    for (FlowSource *s = sources; s; s = s->next) {
        if (!asleep(s)) continue;
        wake_source(s);
        events |= reads_events(s);
    }
    pthread_mutex_unlock(&ai_lock);
    if (events) flow_events_want(ai_log_ctx);
}

void flows_sleep(void) {
    FlowItem *waiting = NULL;
    pthread_mutex_lock(&ai_lock);
    end_flows(sources, FLOW_ASLEEP, &waiting);
    pthread_mutex_unlock(&ai_lock);
    answer_all(waiting, REPLICA);
}

/* What loads replaces what there was; a load that fails leaves it. */
void flows_loading(uint64_t subevent) {
    FlowItem *waiting = NULL;
    FlowSource *discard = NULL;
    pthread_mutex_lock(&ai_lock);
    if (subevent == LOADING_FAILED) {
        discard = sources;
        sources = set_aside;
        set_aside = NULL;
    } else if (subevent == LOADING_ENDED) {
        discard = set_aside;
        set_aside = NULL;
    } else {
        discard = set_aside; /* of a load that never ended */
        set_aside = sources;
        sources = NULL;
        end_flows(set_aside, FLOW_ASLEEP, &waiting);
    }
    pthread_mutex_unlock(&ai_lock);
    answer_all(waiting, "ERR the server is loading");
    unref_all(discard);
    if (subevent == LOADING_ENDED && !ai_is_replica) flows_wake();
}

/* ---- what Python does: no GIL, no lock held ------------------------------------------------------------------------------------------- */

/* Under ai_lock. The flow that an executed-again source registers at its k-th place; NULL when that is not what it registered before. */
static Flow *restored(FlowItem *item, const Flow *candidate) {
    if (!item->source->listed || item->source->epoch != item->epoch) return NULL;
    Flow *f = item->source->flows;
    while (f && f->ordinal != candidate->ordinal) f = f->next;
    bool same = f && f->state == FLOW_WAKING && f->reader == candidate->reader && same_text(f->trigger, candidate->trigger) &&
                same_text(f->prefix, candidate->prefix);
    return same ? f : NULL;
}

static bool trigger_is_taken(const FlowItem *item, const Flow *candidate) {
    if (candidate->reader != READER_COMMAND) return false;
    for (const Flow *f = item->fresh; f; f = f->next)
        if (f->reader == READER_COMMAND && same_text(f->trigger, candidate->trigger)) return true;
    return flow_by_trigger(sources, candidate->trigger) != NULL;
}

char *flow_register(FlowItem *item, Slice reader, Names args, const char **error) {
    char *id = new_id();
    Flow *f = flow_new((Slice){ id, strlen(id) }, reader, item->registered, item->source, args, error);
    Flow *before = NULL;
    if (!f) goto err;
    pthread_mutex_lock(&ai_lock);
    item->registered++;
    if (item->restoring && (before = restored(item, f))) before->seen = true;
    if (!item->restoring && trigger_is_taken(item, f)) *error = TAKEN;
    pthread_mutex_unlock(&ai_lock);
    if (*error) goto err;
    if (before) {
        RedisModule_Free(id);
        id = text("%s", before->id);
        flow_unref(f);
        return id;
    }
    Flow **at = &item->fresh;
    while (*at) at = &(*at)->next;
    *at = f;
    return id;
err:
    RedisModule_Free(id);
    flow_unref(f);
    return NULL;
}

/* Holder. NULL, or why these registrations cannot be entered. */
static const char *enter(RedisModuleCtx *ctx, FlowItem *item) {
    if (ai_closing) return "ERR the server is shutting down";
    if (ai_is_replica) return REPLICA;
    FlowSource *s = item->source;
    for (const Flow *f = item->fresh; f; f = f->next)
        if (f->reader == READER_COMMAND && flow_by_trigger(sources, f->trigger)) return TAKEN;
    pthread_mutex_lock(&ai_lock);
    s->flows = item->fresh;
    item->fresh = NULL;
    for (Flow *f = s->flows; f; f = f->next) f->state = FLOW_LIVE;
    table_append(flow_source_ref(s));
    pthread_mutex_unlock(&ai_lock);
    if (reads_events(s)) flow_events_want(ai_log_ctx);
    flow_replicate_add(ctx, s);
    return NULL;
}

/* Does `step` under the Redis lock, when writes are not paused: replicating would abort the server then. */
static const char *with_redis_lock(const char *(*step)(RedisModuleCtx *ctx, void *u), void *u) {
    static const struct timespec pause = { 0, 5000000 };
    RedisModuleCtx *ctx = RedisModule_GetThreadSafeContext(NULL);
    const char *error = NULL;
    for (bool paused = true; paused;) {
        RedisModule_ThreadSafeContextLock(ctx);
        paused = !ai_closing && !ai_is_replica && RedisModule_AvoidReplicaTraffic();
        if (!paused) error = step(ctx, u);
        RedisModule_ThreadSafeContextUnlock(ctx);
        if (paused) nanosleep(&pause, NULL);
    }
    RedisModule_FreeThreadSafeContext(ctx);
    return error;
}

static const char *enter_step(RedisModuleCtx *ctx, void *item) { return enter(ctx, item); }

static void drop_fresh(FlowItem *item) {
    for (Flow *f = item->fresh; f; f = f->next) flow_post(flow_item(ITEM_DROP, f, NULL));
}

static void release_waiting(Flow *f) {
    for (FlowItem *item = f->waiting, *next; item; item = next) {
        next = item->next;
        flow_post_locked(item);
    }
    f->waiting = NULL;
    f->waiting_tail = &f->waiting;
}

/* A source was executed again; `error` says why in vain. What it did not register again sleeps on. */
static void woken(FlowItem *item, const char *error) {
    FlowItem *waiting = NULL;
    int lost = 0;
    pthread_mutex_lock(&ai_lock);
    bool current = item->source->listed && item->source->epoch == item->epoch;
    for (Flow *f = current ? item->source->flows : NULL; f; f = f->next) {
        if (!error && f->seen) {
            f->state = FLOW_LIVE;
            release_waiting(f);
            continue;
        }
        RedisModule_Free(f->last_error);
        f->last_error = text("%s", error ? error : "its source did not register it again");
        end_flow(f, FLOW_ASLEEP, &waiting);
        lost++;
    }
    pthread_mutex_unlock(&ai_lock);
    answer_all(waiting, "ERR the flow could not be restored");
    drop_fresh(item);
    if (lost) ai_log("warning", "%d flows of source %s could not be restored: %s", lost, item->source->id,
                     error ? error : "the source does not register them any more");
}

static void answer(FlowItem *item, Arena arena, ReplyNode *node) {
    Job *job = item->job;
    item->job = NULL;
    if (!job) {
        if (node->kind == NODE_ERROR && item->kind == ITEM_SOURCE && !item->restoring)
            ai_log("warning", "source %s failed: %s", item->source->id, node->bytes.p);
        arena_free(&arena);
    } else {
        job->arena = arena;
        job->answer = node;
    }
    flow_item_free(item);
    if (job) job_finish(job);
}

static ReplyNode *error_node(Arena *arena, const char *error) {
    ReplyNode *node = arena_alloc(arena, sizeof(*node));
    node->kind = NODE_ERROR;
    node->bytes = arena_copy(arena, (Slice){ error, strlen(error) });
    return node;
}

bool flow_reply(FlowItem *item, Arena arena, ReplyNode *node) {
    const char *refused = NULL;
    if (item->kind == ITEM_SOURCE && item->restoring) {
        woken(item, NULL);
    } else if (item->fresh) {
        refused = with_redis_lock(enter_step, item);
        if (refused) {
            drop_fresh(item);
            node = error_node(&arena, refused);
        }
    }
    answer(item, arena, node);
    return !refused;
}

void flow_fail(FlowItem *item, const char *error) {
    Arena arena = { 0 };
    if (item->kind == ITEM_SOURCE && item->restoring) woken(item, error);
    answer(item, arena, error_node(&arena, error));
}

static void count(Flow *f, const char *error) {
    char *copy = error ? text("%s", error) : NULL, *old = NULL;
    if (error) flows_failed++;
    pthread_mutex_lock(&ai_lock);
    if (error) {
        f->failed++;
        old = f->last_error;
        f->last_error = copy;
    } else {
        f->succeeded++;
    }
    pthread_mutex_unlock(&ai_lock);
    RedisModule_Free(old);
}

void flow_done(FlowItem *item, const char *error) {
    if (item->kind == ITEM_EVENT || (item->kind == ITEM_STREAM && error)) count(item->flow, error); /* of a stream batches count: flow_count */
    flow_item_free(item);
}

void flow_count(Slice id, const char *error) {
    pthread_mutex_lock(&ai_lock);
    Flow *f = flow_by_id(id);
    if (f) atomic_fetch_add_explicit(&f->refs, 1, memory_order_relaxed);
    pthread_mutex_unlock(&ai_lock);
    if (!f) return;
    count(f, error);
    flow_unref(f);
}

typedef struct Removal {
    const Caller *caller;
    Slice id;
} Removal;

static const char *remove_step(RedisModuleCtx *ctx, void *u) {
    const Removal *r = u;
    const Slice words[] = { { "rg.unregister", 13 }, r->id };
    const char *error = ai_is_replica ? REPLICA : redis_may_run(ctx, r->caller, (CommandLine){ words, 2 });
    if (error) return error;
    if (!flow_remove(r->id)) return "ERR no such registration";
    flow_replicate_remove(ctx, r->id);
    return NULL;
}

const char *flow_unregister(const Caller *caller, Slice id) { return with_redis_lock(remove_step, &(Removal){ caller, id }); }

/* ---- the commands -------------------------------------------------------------------------------------------------------------------------- */

typedef struct Options { /* of RG.PYEXECUTE */
    bool unblocking;
    int first_requirement, requirements;
} Options;

static const char *parse_options(RedisModuleString **argv, int argc, Options *o) {
    for (int i = 2; i < argc; i++) {
        Slice word = slice_of(argv[i]);
        if (slice_is(word, "UNBLOCKING")) {
            o->unblocking = true;
        } else if (slice_is(word, "REQUIREMENTS")) {
            o->first_requirement = i + 1;
            o->requirements = argc - i - 1;
            return o->requirements ? NULL : "ERR REQUIREMENTS names no package";
        } else {
            return "ERR RG.PYEXECUTE knows UNBLOCKING and REQUIREMENTS after the source";
        }
    }
    return NULL;
}

static Names requirements_of(RedisModuleString **argv, const Options *o) {
    Slice *words = RedisModule_Calloc((size_t)o->requirements + 1, sizeof(*words));
    for (int i = 0; i < o->requirements; i++) words[i] = slice_of(argv[o->first_requirement + i]);
    Names names = names_new(o->requirements, words);
    RedisModule_Free(words);
    return names;
}

static FlowItem *source_item(RedisModuleCtx *ctx, RedisModuleString **argv, const Options *o, Blob *body) {
    char *id = new_id();
    User *user = redis_caller(ctx);
    FlowItem *item = flow_item(ITEM_SOURCE, NULL, NULL);
    item->db = RedisModule_GetSelectedDb(ctx);
    item->source = flow_source_new((Slice){ id, strlen(id) }, user, item->db, body, requirements_of(argv, o));
    item->unblocking = o->unblocking;
    item->counted = true;
    flows_outstanding++;
    user_unref(user);
    RedisModule_Free(id);
    return item;
}

int cmd_rg_pyexecute(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    Options o = { false, 0, 0 };
    if (argc < 2) return RedisModule_WrongArity(ctx);
    Slice source = slice_of(argv[1]);
    const char *error = parse_options(argv, argc, &o);
    if (!error && !may_block(ctx)) error = NO_BLOCKING;
    if (!error && ai_is_replica) error = REPLICA;
    if (!error && flow_queue_full()) error = FULL;
    if (!error && (int64_t)source.n > config.max_script_bytes) error = "ERR the source is larger than MAX_SCRIPT_BYTES";
    Blob *body = error ? NULL : blob_new(source.n);
    if (!error && !body) error = "ERR not enough memory for the source";
    if (error) return RedisModule_ReplyWithError(ctx, error);
    if (source.n) memcpy(body->data, source.p, source.n);

    FlowItem *item = source_item(ctx, argv, &o, body);
    if (o.unblocking) RedisModule_ReplyWithStringBuffer(ctx, item->source->id, strlen(item->source->id));
    else job_block(ctx, item->job = job_new(JOB_FLOW));
    flow_post(item);
    return REDISMODULE_OK;
}

int cmd_rg_trigger(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    if (argc < 2) return RedisModule_WrongArity(ctx);
    Flow *f = flow_by_trigger(sources, slice_of(argv[1])); /* lives as long as we hold the Redis lock */
    const char *error = NULL;
    if (!f) error = "ERR subcommand not found";
    else if (!may_block(ctx)) error = NO_BLOCKING;
    else if (ai_is_replica) error = REPLICA;
    else if (f->state == FLOW_ASLEEP) error = "ERR the flow could not be restored";
    else if (flow_queue_full()) error = FULL;
    if (error) return RedisModule_ReplyWithError(ctx, error);

    Job *job = job_new(JOB_FLOW);
    job_block(ctx, job);
    FlowItem *item = flow_item(ITEM_TRIGGER, f, job);
    item->db = RedisModule_GetSelectedDb(ctx);
    item->nargs = argc - 1;
    item->args = arena_alloc(&item->arena, (size_t)item->nargs * sizeof(Slice));
    for (int i = 0; i < item->nargs; i++) item->args[i] = arena_copy(&item->arena, slice_of(argv[i + 1]));
    flow_send(item);
    return REDISMODULE_OK;
}

void flow_send(FlowItem *item) {
    Flow *f = item->flow;
    flows_triggered++;
    pthread_mutex_lock(&ai_lock);
    f->triggered++;
    FlowState state = f->state;
    if (state == FLOW_WAKING) {
        item->next = NULL;
        *f->waiting_tail = item;
        f->waiting_tail = &item->next;
    } else if (state == FLOW_LIVE) {
        flow_post_locked(item);
    }
    pthread_mutex_unlock(&ai_lock);
    if (state == FLOW_ASLEEP || state == FLOW_GONE) answer_all(item, "ERR the flow could not be restored"); /* it failed just now */
}

int cmd_rg_unregister(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    if (argc != 2) return RedisModule_WrongArity(ctx);
    if (!flow_remove(slice_of(argv[1]))) return RedisModule_ReplyWithError(ctx, "ERR no such registration");
    flow_replicate_remove(ctx, slice_of(argv[1]));
    return RedisModule_ReplyWithSimpleString(ctx, "OK");
}

static void reply_word(RedisModuleCtx *ctx, const char *word) { RedisModule_ReplyWithStringBuffer(ctx, word, strlen(word)); }
static void reply_word_or_null(RedisModuleCtx *ctx, Slice s) {
    if (s.p) RedisModule_ReplyWithStringBuffer(ctx, s.p, s.n);
    else RedisModule_ReplyWithNull(ctx);
}

/* What has a field of its own is left out. */
static void reply_arguments(RedisModuleCtx *ctx, const Names *args) {
    static const char *const fields[] = { "mode", "description" };
    long n = 0;
    RedisModule_ReplyWithArray(ctx, REDISMODULE_POSTPONED_ARRAY_LEN);
    for (int i = 0; i < args->n; i += 2) {
        if (strcmp(args->item[i].p, fields[0]) == 0 || strcmp(args->item[i].p, fields[1]) == 0) continue;
        reply_word_or_null(ctx, args->item[i]);
        reply_word_or_null(ctx, args->item[i + 1]);
        n += 2;
    }
    RedisModule_ReplySetArrayLength(ctx, n);
}

static void reply_registration(RedisModuleCtx *ctx, Flow *f) {
    static const char *const states[] = { "asleep", "restoring", "live", "gone" };
    const Slice *mode = argument(&f->args, "mode"), *description = argument(&f->args, "description");
    pthread_mutex_lock(&ai_lock);
    const struct {
        const char *name;
        int64_t n;
    } counters[] = { { "numTriggered", f->triggered }, { "numSuccess", f->succeeded }, { "numFailures", f->failed }, { "numAborted", f->dropped } };
    char *last_error = f->last_error ? text("%s", f->last_error) : NULL;
    FlowState state = f->state;
    pthread_mutex_unlock(&ai_lock);
    RedisModule_ReplyWithArray(ctx, 8);
    reply_word(ctx, "id");
    reply_word(ctx, f->id);
    reply_word(ctx, "reader");
    reply_word(ctx, flow_readers[f->reader]);
    reply_word(ctx, "desc");
    reply_word_or_null(ctx, description ? *description : (Slice){ NULL, 0 });
    reply_word(ctx, "RegistrationData");
    RedisModule_ReplyWithArray(ctx, 18);
    reply_word(ctx, "mode");
    reply_word_or_null(ctx, mode ? *mode : (Slice){ "async", 5 });
    for (size_t i = 0; i < sizeof(counters) / sizeof(*counters); i++) {
        reply_word(ctx, counters[i].name);
        RedisModule_ReplyWithLongLong(ctx, counters[i].n);
    }
    reply_word(ctx, "lastError");
    reply_word_or_null(ctx, (Slice){ last_error, last_error ? strlen(last_error) : 0 });
    reply_word(ctx, "args");
    reply_arguments(ctx, &f->args);
    reply_word(ctx, "status");
    reply_word(ctx, states[state]);
    reply_word(ctx, "user");
    reply_word_or_null(ctx, f->user ? f->user->name : (Slice){ NULL, 0 });
    RedisModule_Free(last_error);
}

int cmd_rg_dumpregistrations(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    if (argc != 1) return RedisModule_WrongArity(ctx);
    RedisModule_ReplyWithArray(ctx, flows_number());
    for (FlowSource *s = sources; s; s = s->next)
        for (Flow *f = s->flows; f; f = f->next) reply_registration(ctx, f);
    return REDISMODULE_OK;
}

/* ---- load ------------------------------------------------------------------------------------------------------------------------------ */

/* The commands are left to RedisGears where that was loaded first; loaded after us it fails, for its commands are taken. */
int flows_register(RedisModuleCtx *ctx) {
    if (flow_persist_register(ctx) != REDISMODULE_OK) return REDISMODULE_ERR;
    if (!config.flows) return REDISMODULE_OK;
    if (RedisModule_IsModuleNameBusy("rg")) {
        ai_log("warning", "FLOWS: RedisGears is loaded, which has commands of the same names: AI flows are off");
        config.flows = false;
        return REDISMODULE_OK;
    }
    if (!name_this_run()) {
        ai_log("warning", "FLOWS: the system gives no random numbers: %s", strerror(errno));
        return REDISMODULE_ERR;
    }
    return commands_register_flows(ctx);
}
