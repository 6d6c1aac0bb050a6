/* redis_call.c -- redis.execute: a Redis command run by a script or a flow, off the main thread, with the rights of the client that called the
 * script or registered the flow.
 *
 * 1. Order of locks: the caller has dropped the GIL; here the Redis lock is taken, everything is copied out, the lock is dropped. Python
 *    objects are made after that.
 * 2. Rights are checked at each call, so a user who is changed or deleted while the script runs gains nothing: the server's own check
 *    (RM_ACLCheckCommandPermissions) against the user who sent the command, all within one hold of the lock. The flag `C` of RM_Call is
 *    not used: off the main thread it crashed Redis 7.0 where permission was denied.
 * 3. On Redis 6.2, which has no such check, only a user without any restriction may use redis.execute.
 * 4. Refused for everybody: commands that are admin, dangerous, blocking or scripting, or marked noscript: what COMMAND INFO says, asked
 *    once per command. SORT with BY or GET is refused because it reads keys that no key position shows.
 * 5. While writes are paused a writing command waits, lock released: replicating then aborts the server. */
#include "ai.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

/* Under the Redis lock: a command of ours that runs now was called from here, and for whom. */
bool ai_nested_call;
const char *ai_nested_origin;
static const User *nested_user;

enum { MAX_DEPTH = 32 };

/* ---- users ------------------------------------------------------------------------------------------------------------------------ */

User *user_new(Slice name) {
    User *u = RedisModule_Alloc(sizeof(*u));
    atomic_init(&u->refs, 1);
    u->name = (Slice){ slice_dup(name), name.n };
    return u;
}

User *user_ref(User *u) {
    if (u) atomic_fetch_add_explicit(&u->refs, 1, memory_order_relaxed);
    return u;
}

void user_unref(User *u) {
    if (!u || atomic_fetch_sub_explicit(&u->refs, 1, memory_order_acq_rel) != 1) return;
    RedisModule_Free((char *)u->name.p);
    RedisModule_Free(u);
}

static RedisModuleString *string_of(Slice s) { return RedisModule_CreateString(NULL, s.p, s.n); }

/* The server's own view of a user; NULL: deleted or not known. */
static RedisModuleUser *server_user(const User *u) {
    if (!u) return NULL;
    RedisModuleString *name = string_of(u->name);
    RedisModuleUser *user = RedisModule_GetModuleUserFromUserName(name);
    RedisModule_FreeString(NULL, name);
    return user;
}

/* ---- copying a reply out ------------------------------------------------------------------------------------------------------ */

static Slice copied(RedisModuleCallReply *reply, Arena *arena) {
    Slice s;
    s.p = RedisModule_CallReplyStringPtr(reply, &s.n);
    return s.p ? arena_copy(arena, s) : (Slice){ "", 0 };
}

static void copy_reply(RedisModuleCallReply *reply, Arena *arena, ReplyNode *node, int depth) {
    switch (RedisModule_CallReplyType(reply)) {
    case REPLY_STRING: {
        size_t n;
        const char *proto = RedisModule_CallReplyProto(reply, &n);
        node->kind = proto && n && proto[0] == '+' ? NODE_STATUS : NODE_BULK;
        node->bytes = copied(reply, arena);
        return;
    }
    case REPLY_ERROR:
        node->kind = NODE_ERROR;
        node->bytes = copied(reply, arena);
        return;
    case REPLY_INTEGER:
        node->kind = NODE_INTEGER;
        node->integer = RedisModule_CallReplyInteger(reply);
        return;
    case REPLY_ARRAY: {
        size_t n = RedisModule_CallReplyLength(reply);
        node->kind = NODE_ARRAY;
        if (depth == MAX_DEPTH) return; /* no command nests so deep */
        node->items = arena_alloc(arena, n * sizeof(*node->items));
        node->n = (int)n;
        for (size_t i = 0; i < n; i++) copy_reply(RedisModule_CallReplyArrayElement(reply, i), arena, &node->items[i], depth + 1);
        return;
    }
    default: /* null; the other types exist only in RESP3, which is not asked for */
        node->kind = NODE_NULL;
    }
}

static void reply_error(ReplyNode *node, Arena *arena, const char *line) {
    node->kind = NODE_ERROR;
    node->bytes = arena_copy(arena, (Slice){ line, strlen(line) });
}

/* ---- what a command is ---------------------------------------------------------------------------------------------------------- */

typedef struct Rule {
    char name[64]; /* lower case; "config|set" for a subcommand */
    bool known, refused, writes;
    struct Rule *next;
} Rule;
static Rule *rules[256]; /* under the Redis lock; grows by commands that exist, never by what a client sends */

static bool reply_is(RedisModuleCallReply *reply, const char *word) {
    size_t n;
    const char *p = reply ? RedisModule_CallReplyStringPtr(reply, &n) : NULL;
    return p && n == strlen(word) && memcmp(p, word, n) == 0;
}

static bool list_has(RedisModuleCallReply *list, const char *const *words) {
    if (!list || RedisModule_CallReplyType(list) != REPLY_ARRAY) return false;
    for (size_t i = 0; i < RedisModule_CallReplyLength(list); i++)
        for (const char *const *w = words; *w; w++)
            if (reply_is(RedisModule_CallReplyArrayElement(list, i), *w)) return true;
    return false;
}

static void read_rule(RedisModuleCtx *ctx, Rule *rule) {
    static const char *const refused_flags[] = { "noscript", "admin", "blocking", NULL };
    static const char *const refused_categories[] = { "@admin", "@dangerous", "@blocking", "@scripting", NULL };
    static const char *const write_flags[] = { "write", "may_replicate", NULL };
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "COMMAND", "cc", "INFO", rule->name);
    RedisModuleCallReply *row = reply && RedisModule_CallReplyType(reply) == REPLY_ARRAY ? RedisModule_CallReplyArrayElement(reply, 0) : NULL;
    if (row && RedisModule_CallReplyType(row) == REPLY_ARRAY && RedisModule_CallReplyLength(row) >= 7) {
        RedisModuleCallReply *flags = RedisModule_CallReplyArrayElement(row, 2);
        rule->known = true;
        rule->refused = list_has(flags, refused_flags) || list_has(RedisModule_CallReplyArrayElement(row, 6), refused_categories);
        rule->writes = list_has(flags, write_flags);
    }
    if (reply) RedisModule_FreeCallReply(reply);
}

static Rule rule_of(RedisModuleCtx *ctx, const char *name) {
    unsigned h = 5381;
    for (const char *c = name; *c; c++) h = h * 33 + (unsigned char)*c;
    for (Rule *r = rules[h & 255]; r; r = r->next)
        if (strcmp(r->name, name) == 0) return *r;
    Rule rule = { .known = false };
    strcpy(rule.name, name); /* command_name() bounds it */
    read_rule(ctx, &rule);
    if (rule.known) {
        Rule *kept = RedisModule_Alloc(sizeof(*kept));
        *kept = rule;
        kept->next = rules[h & 255];
        rules[h & 255] = kept;
    }
    return rule;
}

/* Lower-case name, with "|sub" when `sub` is given. False when no command has so long a name. */
static bool command_name(char *into, size_t room, Slice name, const Slice *sub) {
    size_t n = name.n + (sub ? sub->n + 1 : 0);
    if (n >= room || memchr(name.p, 0, name.n) || (sub && memchr(sub->p, 0, sub->n))) return false;
    if (sub) snprintf(into, room, "%.*s|%.*s", (int)name.n, name.p, (int)sub->n, sub->p);
    else snprintf(into, room, "%.*s", (int)name.n, name.p);
    for (char *c = into; *c; c++)
        if (*c >= 'A' && *c <= 'Z') *c += 'a' - 'A';
    return true;
}

static bool sorts_by_other_keys(const char *name, const Slice *argv, int argc) {
    if (strcmp(name, "sort") != 0 && strcmp(name, "sort_ro") != 0) return false;
    for (int i = 2; i < argc; i++)
        if (slice_is(argv[i], "BY") || slice_is(argv[i], "GET")) return true;
    return false;
}

/* NULL when the command may be tried; *writes says whether it changes data. */
static const char *refusal(RedisModuleCtx *ctx, const Slice *argv, int argc, bool *writes) {
    char name[64];
    if (!command_name(name, sizeof(name), argv[0], NULL)) return strerror(ENOENT);
    Rule rule = rule_of(ctx, name);
    if (!rule.known) return strerror(ENOENT); /* the words that 1.2.7 sends for an unknown command */
    bool refused = rule.refused || sorts_by_other_keys(name, argv, argc);
    *writes = rule.writes;
    if (argc > 1 && command_name(name, sizeof(name), argv[0], &argv[1])) {
        Rule sub = rule_of(ctx, name);
        refused |= sub.known && sub.refused;
        *writes |= sub.known && sub.writes;
    }
    return refused ? "ERR This Redis command is not allowed from script" : NULL;
}

/* ---- what the caller may do --------------------------------------------------------------------------------------------------------- */

static bool reply_has_all(RedisModuleCtx *ctx, Slice user, const char *const *wanted) {
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "ACL", "cb", "GETUSER", user.p, user.n);
    bool all = reply && RedisModule_CallReplyType(reply) == REPLY_ARRAY && RedisModule_CallReplyLength(reply) >= 2;
    RedisModuleCallReply *flags = all ? RedisModule_CallReplyArrayElement(reply, 1) : NULL;
    for (; all && *wanted; wanted++) {
        const char *one[] = { *wanted, NULL };
        all = list_has(flags, one);
    }
    if (reply) RedisModule_FreeCallReply(reply);
    return all;
}

static const char NOPERM[] = "NOPERM this user has no permissions to run this command or to access its keys";

static const char *permission(RedisModuleCtx *ctx, const Caller *caller, RedisModuleString **argv, int argc) {
    static const char *const unrestricted[] = { "on", "allkeys", "allcommands", NULL };
    if (!caller->user) return NOPERM;
    if (!RedisModule_ACLCheckCommandPermissions) return reply_has_all(ctx, caller->user->name, unrestricted) ? NULL : NOPERM;
    RedisModuleUser *user = server_user(caller->user);
    if (!user) return NOPERM; /* deleted since; one who is switched off keeps what is open, as elsewhere in the server */
    errno = 0;
    bool allowed = RedisModule_ACLCheckCommandPermissions(user, argv, argc) == REDISMODULE_OK;
    int why = errno;
    RedisModule_FreeModuleUser(user);
    return allowed ? NULL : why == ENOENT || why == EINVAL ? strerror(why) : NOPERM;
}

User *redis_caller(RedisModuleCtx *ctx) {
    if (RedisModule_GetCurrentUserName) {
        RedisModuleString *current = RedisModule_GetCurrentUserName(ctx);
        User *u = current ? user_new(slice_of(current)) : NULL;
        if (current) RedisModule_FreeString(NULL, current);
        return u;
    }
    /* 6.2: the client list names the user. */
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "CLIENT", "ccl", "LIST", "ID", (long long)RedisModule_GetClientId(ctx));
    size_t n = 0;
    const char *line = reply && RedisModule_CallReplyType(reply) == REPLY_STRING ? RedisModule_CallReplyStringPtr(reply, &n) : NULL;
    const char *user = line ? memmem(line, n, " user=", 6) : NULL;
    User *name = NULL;
    if (user) {
        user += 6;
        size_t left = (size_t)(line + n - user), len = 0;
        while (len < left && user[len] != ' ' && user[len] != '\n') len++;
        name = user_new((Slice){ user, len });
    }
    if (reply) RedisModule_FreeCallReply(reply);
    return name;
}

/* ---- whose keys a listing shows ------------------------------------------------------------------------------------------------------ */

/* To ask a context for its user (RM_GetCurrentUserName) ends the server where there is none: on a master's link, and inside a call by another
 * module. Asking for the user of its client's id is safe, and tells nothing of a Lua script's or a module's own client. */
static RedisModuleString *listing_user(RedisModuleCtx *ctx) {
    if (!ai_nested_call) return RedisModule_GetClientUserNameById(ctx, RedisModule_GetClientId(ctx));
    return nested_user ? string_of(nested_user->name) : NULL;
}

static void add_reader(Readers *r, RedisModuleString *name) { r->user[r->n++] = RedisModule_GetModuleUserFromUserName(name); }

static void add_every_user(RedisModuleCtx *ctx, Readers *r) {
    RedisModuleCallReply *names = RedisModule_Call(ctx, "ACL", "c", "USERS");
    size_t n = names && RedisModule_CallReplyType(names) == REPLY_ARRAY ? RedisModule_CallReplyLength(names) : 0;
    r->user = RedisModule_Calloc(n + 1, sizeof *r->user);
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *p = RedisModule_CallReplyStringPtr(RedisModule_CallReplyArrayElement(names, i), &len);
        RedisModuleString *name = RedisModule_CreateString(NULL, p, len);
        add_reader(r, name);
        RedisModule_FreeString(NULL, name);
    }
    if (names) RedisModule_FreeCallReply(names);
}

Readers readers_of(RedisModuleCtx *ctx) {
    Readers r = { .everything = !RedisModule_ACLCheckKeyPermissions || !RedisModule_GetClientUserNameById ||
                                (RedisModule_GetContextFlags(ctx) & (CTX_REPLICATED | CTX_LOADING)) };
    if (r.everything) return r;
    RedisModuleString *name = listing_user(ctx);
    if (!name) {
        add_every_user(ctx, &r);
        return r;
    }
    r.user = RedisModule_Calloc(1, sizeof *r.user);
    add_reader(&r, name);
    RedisModule_FreeString(NULL, name);
    return r;
}

bool readers_may_read(const Readers *r, Slice key) {
    if (r->everything) return true;
    RedisModuleString *name = RedisModule_CreateString(NULL, key.p, key.n);
    int i = 0;
    while (i < r->n && r->user[i] && RedisModule_ACLCheckKeyPermissions(r->user[i], name, KEY_ACCESS) == REDISMODULE_OK) i++;
    RedisModule_FreeString(NULL, name);
    return r->n && i == r->n;
}

void readers_free(Readers *r) {
    for (int i = 0; i < r->n; i++)
        if (r->user[i]) RedisModule_FreeModuleUser(r->user[i]);
    RedisModule_Free(r->user);
}

/* ---- the call -------------------------------------------------------------------------------------------------------------------------- */

static const char *errno_text(int why) {
    switch (why) {
    case EROFS: return "READONLY You can't write against a read only replica.";
    case ENOSPC: return "OOM command not allowed when used memory > 'maxmemory'.";
    case EPERM: return "ERR the key belongs to a slot that this node does not serve";
    case ESPIPE: return "ERR This Redis command is not allowed from script";
    case EACCES: return NOPERM;
    default: return strerror(why);
    }
}

/* Whether the server's own errors come as replies (E): Valkey 9.1 crashes where it makes none, be it for a wrong number of arguments or for a
 * key of another node. */
static const char *call_flags(bool as_replies) {
    if (!RedisModule_ACLCheckCommandPermissions) return "!v"; /* S and M came with 7.0, as did the check and E */
    return as_replies ? "!ESMv" : "!SMv";
}

/* Of those replies the ones for which clients know a text: of 1.2.7, or ours. Any other error is the command's, whatever errno is. */
static bool has_own_text(RedisModuleCallReply *reply, int why) {
    static const char arity[] = "ERR wrong number of arguments";
    size_t n = 0;
    const char *line = RedisModule_CallReplyType(reply) == REPLY_ERROR ? RedisModule_CallReplyStringPtr(reply, &n) : NULL;
    return line && (why == EPERM || (why == EINVAL && n >= sizeof(arity) - 1 && memcmp(line, arity, sizeof(arity) - 1) == 0));
}

static void call(RedisModuleCtx *ctx, const char *name, RedisModuleString **argv, int argc, Arena *arena, ReplyNode *node) {
    bool as_replies = ai_valkey || (RedisModule_GetContextFlags(ctx) & CTX_CLUSTER);
    errno = 0;
    RedisModuleCallReply *reply = RedisModule_Call(ctx, name, call_flags(as_replies), argv + 1, (size_t)argc - 1);
    int why = errno;
    if (reply && !(as_replies && has_own_text(reply, why))) copy_reply(reply, arena, node, 0);
    else reply_error(node, arena, why ? errno_text(why) : "ERR no reply");
    if (reply) RedisModule_FreeCallReply(reply);
}

static bool read_only_here(RedisModuleCtx *ctx) {
    int flags = RedisModule_GetContextFlags(ctx);
    return (flags & CTX_SLAVE) && (flags & CTX_READONLY);
}

/* A command as the server wants it, and what is known of it before it runs. */
typedef struct Prepared {
    RedisModuleString **argv;
    int argc;
    bool writes;
    const char *error; /* it may not run */
} Prepared;

static Prepared prepare(RedisModuleCtx *ctx, const Caller *caller, CommandLine line) {
    Prepared p = { .argc = line.argc };
    p.error = refusal(ctx, line.argv, line.argc, &p.writes);
    if (!p.error && p.writes && read_only_here(ctx)) p.error = errno_text(EROFS);
    p.argv = RedisModule_Alloc((size_t)line.argc * sizeof(*p.argv));
    for (int i = 0; i < line.argc; i++) p.argv[i] = string_of(line.argv[i]);
    if (!p.error) p.error = permission(ctx, caller, p.argv, p.argc);
    return p;
}

static void prepared_free(Prepared *p) {
    for (int i = 0; i < p->argc; i++) RedisModule_FreeString(NULL, p->argv[i]);
    RedisModule_Free(p->argv);
}

static void run_prepared(RedisModuleCtx *ctx, const Caller *caller, const Prepared *p, Arena *arena, ReplyNode *node) {
    char *name = slice_dup(slice_of(p->argv[0]));
    ai_nested_call = true;
    ai_nested_origin = caller->origin;
    nested_user = caller->user;
    call(ctx, name, p->argv, p->argc, arena, node);
    ai_nested_call = false;
    ai_nested_origin = NULL;
    nested_user = NULL;
    RedisModule_Free(name);
}

/* One attempt under the lock. False: writes are paused, try again later. */
static bool attempt(RedisModuleCtx *ctx, const Caller *caller, const CommandLine *lines, int n, Arena *arena, ReplyNode *nodes) {
    Prepared few[1], *prepared = n == 1 ? few : RedisModule_Alloc((size_t)n * sizeof(*prepared));
    bool refused = false, writes = false;
    for (int i = 0; i < n; i++) {
        prepared[i] = prepare(ctx, caller, lines[i]);
        refused |= prepared[i].error != NULL;
        writes |= prepared[i].writes;
    }
    bool paused = !refused && writes && RedisModule_AvoidReplicaTraffic();
    for (int i = 0; i < n && !paused; i++) {
        if (!refused) run_prepared(ctx, caller, &prepared[i], arena, &nodes[i]);
        else reply_error(&nodes[i], arena, prepared[i].error ? prepared[i].error : "EXECABORT Transaction discarded because of previous errors.");
    }
    for (int i = 0; i < n; i++) prepared_free(&prepared[i]);
    if (prepared != few) RedisModule_Free(prepared);
    return !paused;
}

void redis_transaction(const Caller *caller, const CommandLine *commands, int n, Arena *arena, ReplyNode *replies) {
    static const struct timespec pause = { 0, 5000000 };
    RedisModuleCtx *ctx = RedisModule_GetThreadSafeContext(NULL);
    memset(replies, 0, (size_t)n * sizeof(*replies));
    for (bool done = false; !done;) {
        RedisModule_ThreadSafeContextLock(ctx);
        if (ai_closing) {
            for (int i = 0; i < n; i++) reply_error(&replies[i], arena, "ERR the server is shutting down");
            done = true;
        } else {
            RedisModule_SelectDb(ctx, caller->db);
            done = attempt(ctx, caller, commands, n, arena, replies);
        }
        RedisModule_ThreadSafeContextUnlock(ctx);
        if (!done) nanosleep(&pause, NULL);
    }
    RedisModule_FreeThreadSafeContext(ctx);
}

void redis_execute(const Caller *caller, const Slice *argv, int argc, Arena *arena, ReplyNode *reply) {
    redis_transaction(caller, &(CommandLine){ argv, argc }, 1, arena, reply);
}

const char *redis_may_run(RedisModuleCtx *ctx, const Caller *caller, CommandLine line) {
    RedisModuleString **argv = RedisModule_Alloc((size_t)line.argc * sizeof(*argv));
    for (int i = 0; i < line.argc; i++) argv[i] = string_of(line.argv[i]);
    const char *error = permission(ctx, caller, argv, line.argc);
    for (int i = 0; i < line.argc; i++) RedisModule_FreeString(NULL, argv[i]);
    RedisModule_Free(argv);
    return error;
}

/* ---- redisAI.model_execute ----------------------------------------------------------------------------------------------------------- */

const char *redis_may_read(RedisModuleCtx *ctx, const Caller *caller, RedisModuleString *key) {
    if (!RedisModule_ACLCheckKeyPermissions) return permission(ctx, caller, NULL, 0);
    RedisModuleUser *user = server_user(caller->user);
    bool allowed = user && RedisModule_ACLCheckKeyPermissions(user, key, KEY_ACCESS) == REDISMODULE_OK;
    if (user) RedisModule_FreeModuleUser(user);
    return allowed ? NULL : "NOPERM this user has no permissions to access the model's key";
}

Program *redis_model(const Caller *caller, Slice key, const char **error) {
    RedisModuleCtx *ctx = RedisModule_GetThreadSafeContext(NULL);
    Program *p = NULL;
    RedisModule_ThreadSafeContextLock(ctx);
    RedisModule_SelectDb(ctx, caller->db);
    RedisModuleString *name = string_of(key);
    *error = redis_may_read(ctx, caller, name);
    if (!*error) p = program_lookup(ctx, name, PROGRAM_MODEL, error);
    if (p) program_ref(p);
    RedisModule_FreeString(NULL, name);
    RedisModule_ThreadSafeContextUnlock(ctx);
    RedisModule_FreeThreadSafeContext(ctx);
    return p;
}
