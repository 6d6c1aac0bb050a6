/* flow_persist.c -- flows as they are stored and replicated: the source, who sent it, and what it registered, as a list of words.
 *
 * 1. One form for all: the words of AI.CONFIG _FLOW ADD. They go to replicas and to the AOF when a source has registered something, and lie in
 *    the RDB as data beside the keys. Nothing of it is executed by being read; that is flows_wake's, on a master whose FLOWS is yes.
 * 2. A subcommand, not a command of its own: a server with FLOWS no, and RedisAI 1.2.7, which know no RG.*, get past it in an AOF or on a
 *    master's link. Nobody else may send it.
 * 3. Data beside the keys makes a dump unreadable for RedisAI 1.2.7, even when it is nothing. From 7.2 on a server writes none of it while there
 *    are no flows (aux_save2). Before, it is written with FLOWS yes only; with FLOWS no it is read, kept in memory and not saved again, of
 *    which the log tells.
 * 4. An AOF that is rewritten without an RDB preamble has no place for data beside keys. What is replicated after the child was forked follows
 *    what the child writes: so all flows are replicated again, in the turn of the loop after the fork (in the fork itself 6.2 has not yet
 *    switched the AOF on, and writes may be paused).
 * 5. Nothing that was read is believed: counts are bounded by the words there are, and what is malformed refuses the dump. */
#include "ai.h"

#include <stdio.h>

RedisModuleType *ai_flows_type;

enum { FLOWS_ENCVER = 0, MAX_SOURCES = 1 << 20, MAX_WORDS = 1 << 20, AUX_BEFORE_RDB = 1, METHODS_WITH_AUX_SAVE2 = 5 };

/* ---- words ---------------------------------------------------------------------------------------------------------------------- */

/* id, user, db, source, number of requirements, requirements ..., number of flows, then of each: id, reader, ordinal, number of arguments,
 * arguments ... An unknown user is an empty word. */

typedef struct Words {
    RedisModuleString **item;
    size_t n;
} Words;

static void put(Words *w, Slice s) { w->item[w->n++] = RedisModule_CreateString(NULL, s.n ? s.p : "", s.n); }
static void put_text(Words *w, const char *s) { put(w, (Slice){ s, strlen(s) }); }

static void put_number(Words *w, int64_t n) {
    char digits[24];
    snprintf(digits, sizeof(digits), "%lld", (long long)n);
    put_text(w, digits);
}

static void put_names(Words *w, Names names) {
    put_number(w, names.n);
    for (int i = 0; i < names.n; i++) put(w, names.item[i]);
}

static Words words_of(const FlowSource *s) {
    size_t n = 6 + (size_t)s->requirements.n;
    int flows = 0;
    for (const Flow *f = s->flows; f; f = f->next, flows++) n += 4 + (size_t)f->args.n;
    Words w = { RedisModule_Alloc(n * sizeof(*w.item)), 0 };
    put_text(&w, s->id);
    put(&w, s->user ? s->user->name : (Slice){ "", 0 });
    put_number(&w, s->db);
    put(&w, (Slice){ s->text->data, s->text->len });
    put_names(&w, s->requirements);
    put_number(&w, flows);
    for (const Flow *f = s->flows; f; f = f->next) {
        put_text(&w, f->id);
        put_text(&w, flow_readers[f->reader]);
        put_number(&w, f->ordinal);
        put_names(&w, f->args);
    }
    return w;
}

static void words_free(Words w) {
    for (size_t i = 0; i < w.n; i++) RedisModule_FreeString(NULL, w.item[i]);
    RedisModule_Free(w.item);
}

/* ---- reading them back ------------------------------------------------------------------------------------------------------------ */

typedef struct WordReader {
    const Slice *word;
    size_t n, at;
    const char *wrong; /* the first thing that was wrong */
} WordReader;

static Slice next_word(WordReader *r) {
    if (!r->wrong && r->at == r->n) r->wrong = "words are missing";
    return r->wrong ? (Slice){ "", 0 } : r->word[r->at++];
}

static int next_number(WordReader *r, int64_t most) {
    int64_t n = 0;
    Slice s = next_word(r);
    if (!r->wrong && (!slice_to_int(s, &n) || n < 0 || n > most)) r->wrong = "a number is not one, or too large";
    return r->wrong ? 0 : (int)n;
}

static Names next_names(WordReader *r) {
    int n = next_number(r, MAX_WORDS);
    if (!r->wrong && (size_t)n > r->n - r->at) r->wrong = "words are missing";
    if (r->wrong) return (Names){ 0, NULL };
    r->at += (size_t)n;
    return names_new(n, r->word + r->at - n);
}

static Flow *next_flow(WordReader *r, const FlowSource *s) {
    Slice id = next_word(r), reader = next_word(r);
    int ordinal = next_number(r, MAX_WORDS);
    Names args = next_names(r);
    if (!r->wrong) return flow_new(id, reader, ordinal, s, args, &r->wrong);
    names_free(&args);
    return NULL;
}

/* NULL and why. */
static FlowSource *source_from(const Slice *words, size_t n, const char **wrong) {
    WordReader r = { words, n, 0, NULL };
    Slice id = next_word(&r), name = next_word(&r);
    int db = next_number(&r, INT32_MAX);
    Slice body = next_word(&r);
    Names requirements = next_names(&r);
    int flows = next_number(&r, MAX_WORDS);
    Blob *text_of_it = r.wrong ? NULL : blob_new(body.n);
    if (!r.wrong && !text_of_it) r.wrong = "memory is short";
    if (text_of_it && body.n) memcpy(text_of_it->data, body.p, body.n);
    User *user = name.n ? user_new(name) : NULL;
    FlowSource *s = flow_source_new(id, user, db, text_of_it, requirements);
    user_unref(user);
    Flow **at = &s->flows;
    for (int i = 0; i < flows && !r.wrong; i++)
        if ((*at = next_flow(&r, s))) at = &(*at)->next;
    if (!r.wrong && r.at != r.n) r.wrong = "there are words too many";
    if (!r.wrong && !s->flows) r.wrong = "it has no flow";
    *wrong = r.wrong;
    if (!r.wrong) return s;
    flow_source_unref(s);
    return NULL;
}

/* ---- RDB ---------------------------------------------------------------------------------------------------------------------------- */

static bool writes_nothing_for_none(void) {
    return RedisModule_GetTypeMethodVersion && RedisModule_GetTypeMethodVersion() >= METHODS_WITH_AUX_SAVE2;
}

static void save(RedisModuleIO *io, int when) {
    uint64_t n = 0;
    for (const FlowSource *s = flows_first(); s; s = s->next) n++;
    if (!n && writes_nothing_for_none()) return;
    RedisModule_SaveUnsigned(io, n);
    for (const FlowSource *s = flows_first(); s; s = s->next) {
        Words w = words_of(s);
        RedisModule_SaveUnsigned(io, w.n);
        for (size_t i = 0; i < w.n; i++) RedisModule_SaveStringBuffer(io, slice_of(w.item[i]).p, slice_of(w.item[i]).n);
        words_free(w);
    }
}

static uint64_t load_number(RedisModuleIO *io, uint64_t most, const char **wrong) {
    uint64_t n = *wrong ? 0 : RedisModule_LoadUnsigned(io);
    if (!*wrong && (RedisModule_IsIOError(io) || n > most)) *wrong = "short read, or a number that is too large";
    return *wrong ? 0 : n;
}

/* The list of words grows as they come: their number may lie. */
static FlowSource *load_source(RedisModuleIO *io, const char **wrong) {
    size_t n = load_number(io, MAX_WORDS, wrong), have = 0, room = 0;
    Slice *words = NULL;
    for (; have < n && !*wrong; have++) {
        if (have == room) words = RedisModule_Realloc(words, (room = room ? room * 2 : 64) * sizeof(*words));
        words[have] = (Slice){ NULL, 0 };
        words[have].p = RedisModule_LoadStringBuffer(io, &words[have].n);
        if (!words[have].p || RedisModule_IsIOError(io)) *wrong = "short read";
    }
    FlowSource *s = *wrong ? NULL : source_from(words, n, wrong);
    for (size_t i = 0; i < have; i++) RedisModule_Free((char *)words[i].p);
    RedisModule_Free(words);
    return s;
}

static int load(RedisModuleIO *io, int encver, int when) {
    const char *wrong = encver > FLOWS_ENCVER ? "it is of a later version" : NULL;
    uint64_t n = load_number(io, MAX_SOURCES, &wrong);
    for (uint64_t i = 0; i < n && !wrong; i++) {
        FlowSource *s = load_source(io, &wrong);
        if (s) flow_source_list(s);
    }
    if (!wrong && n && !config.flows)
        ai_log("warning", "FLOWS is no: %d flows are kept and not run%s", flows_number(),
               writes_nothing_for_none() ? "" : "; they will not be in what this server saves as RDB");
    if (!wrong) return REDISMODULE_OK;
    RedisModule_LogIOError(io, "warning", "Could not load the flows: %s", wrong);
    return REDISMODULE_ERR;
}

/* No key ever holds this type; what RESTORE is given under its name is refused. */
static void *no_key_load(RedisModuleIO *io, int encver) { return NULL; }
static void no_key_save(RedisModuleIO *io, void *value) {}
static void no_key_rewrite(RedisModuleIO *aof, RedisModuleString *key, void *value) {}
static void no_key_free(void *value) {}

int flow_persist_register(RedisModuleCtx *ctx) {
    static RedisModuleTypeMethods methods = {
        .version = 5,
        .rdb_load = no_key_load,
        .rdb_save = no_key_save,
        .aof_rewrite = no_key_rewrite,
        .free = no_key_free,
        .aux_load = load,
        .aux_save_triggers = AUX_BEFORE_RDB, /* a server asks only a type that can save */
    };
    if (writes_nothing_for_none()) methods.aux_save2 = save;
    else if (config.flows) methods.aux_save = save;
    ai_flows_type = RedisModule_CreateDataType(ctx, "AI__FLOWS", FLOWS_ENCVER, &methods);
    if (ai_flows_type) return REDISMODULE_OK;
    ai_log("warning", "can not initialize flows dt");
    return REDISMODULE_ERR;
}

/* ---- replicas and AOF ----------------------------------------------------------------------------------------------------------------- */

void flow_replicate_add(RedisModuleCtx *ctx, const FlowSource *s) {
    Words w = words_of(s);
    RedisModule_Replicate(ctx, "AI.CONFIG", "ccv", "_FLOW", "ADD", w.item, w.n);
    words_free(w);
}

void flow_replicate_remove(RedisModuleCtx *ctx, Slice id) { RedisModule_Replicate(ctx, "AI.CONFIG", "ccb", "_FLOW", "DEL", id.p, id.n); }

static const char *add(RedisModuleString **argv, int argc) {
    const char *wrong;
    Slice *words = RedisModule_Calloc((size_t)argc + 1, sizeof(*words));
    for (int i = 0; i < argc; i++) words[i] = slice_of(argv[i]);
    FlowSource *s = source_from(words, (size_t)argc, &wrong);
    RedisModule_Free(words);
    if (s) flow_source_list(s);
    return wrong;
}

int cmd_config_flow(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    const char *error = NULL;
    if (!(RedisModule_GetContextFlags(ctx) & (CTX_REPLICATED | CTX_LOADING)) || argc < 4) error = "ERR unsupported subcommand";
    else if (slice_is(slice_of(argv[2]), "ADD")) error = add(argv + 3, argc - 3);
    else if (slice_is(slice_of(argv[2]), "DEL")) flow_remove(slice_of(argv[3]));
    else error = "ERR unsupported subcommand";
    if (error) return RedisModule_ReplyWithError(ctx, error);
    RedisModule_ReplicateVerbatim(ctx);
    return RedisModule_ReplyWithSimpleString(ctx, "OK");
}

static bool rewrites_plain_aof(RedisModuleCtx *ctx) {
    RedisModuleCallReply *info = RedisModule_Call(ctx, "INFO", "c", "persistence");
    RedisModuleCallReply *setting = RedisModule_Call(ctx, "CONFIG", "cc", "GET", "aof-use-rdb-preamble");
    size_t n = 0, m = 0;
    const char *p = info ? RedisModule_CallReplyStringPtr(info, &n) : NULL, *value = NULL;
    if (setting && RedisModule_CallReplyType(setting) == REPLY_ARRAY && RedisModule_CallReplyLength(setting) == 2)
        value = RedisModule_CallReplyStringPtr(RedisModule_CallReplyArrayElement(setting, 1), &m);
    bool plain = p && memmem(p, n, "aof_rewrite_in_progress:1", 25) && value && m == 2 && memcmp(value, "no", 2) == 0;
    if (info) RedisModule_FreeCallReply(info);
    if (setting) RedisModule_FreeCallReply(setting);
    return plain;
}

static bool append_all;

static void on_fork(RedisModuleCtx *ctx, RedisModuleEvent e, uint64_t sub, void *data) {
    if (sub == FORK_CHILD_BORN && flows_first()) append_all |= rewrites_plain_aof(ctx);
}

void flow_persist_turn(RedisModuleCtx *ctx) {
    if (!append_all || RedisModule_AvoidReplicaTraffic()) return;
    append_all = false;
    for (const FlowSource *s = flows_first(); s; s = s->next) flow_replicate_add(ctx, s);
}

void flow_persist_subscribe(RedisModuleCtx *ctx) {
    RedisModule_SubscribeToServerEvent(ctx, (RedisModuleEvent){ EVENT_FORK_CHILD, 1 }, on_fork);
}
