/* redis_call.c -- redis.execute: a Redis command run by a script, from a worker, with the rights of the client that called the script.
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
static RedisModuleString *nested_user;

enum { MAX_DEPTH = 32 };

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

static bool reply_has_all(RedisModuleCtx *ctx, RedisModuleString *user, const char *const *wanted) {
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "ACL", "cs", "GETUSER", user);
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

static const char *permission(RedisModuleCtx *ctx, Job *job, RedisModuleString **argv, int argc) {
    static const char *const unrestricted[] = { "on", "allkeys", "allcommands", NULL };
    if (!job->user) return NOPERM;
    if (!RedisModule_ACLCheckCommandPermissions) return reply_has_all(ctx, job->user, unrestricted) ? NULL : NOPERM;
    RedisModuleUser *user = RedisModule_GetModuleUserFromUserName(job->user);
    if (!user) return NOPERM; /* deleted since; one who is switched off keeps what is open, as elsewhere in the server */
    errno = 0;
    bool allowed = RedisModule_ACLCheckCommandPermissions(user, argv, argc) == REDISMODULE_OK;
    int why = errno;
    RedisModule_FreeModuleUser(user);
    return allowed ? NULL : why == ENOENT || why == EINVAL ? strerror(why) : NOPERM;
}

RedisModuleString *redis_caller(RedisModuleCtx *ctx) {
    if (RedisModule_GetCurrentUserName) return RedisModule_GetCurrentUserName(ctx);
    /* 6.2: the client list names the user. */
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "CLIENT", "ccl", "LIST", "ID", (long long)RedisModule_GetClientId(ctx));
    size_t n = 0;
    const char *line = reply && RedisModule_CallReplyType(reply) == REPLY_STRING ? RedisModule_CallReplyStringPtr(reply, &n) : NULL;
    const char *user = line ? memmem(line, n, " user=", 6) : NULL;
    RedisModuleString *name = NULL;
    if (user) {
        user += 6;
        size_t left = (size_t)(line + n - user), len = 0;
        while (len < left && user[len] != ' ' && user[len] != '\n') len++;
        name = RedisModule_CreateString(NULL, user, len);
    }
    if (reply) RedisModule_FreeCallReply(reply);
    return name;
}

/* ---- whose keys a listing shows ------------------------------------------------------------------------------------------------------ */

/* To ask a context for its user (RM_GetCurrentUserName) ends the server where there is none: on a master's link, and inside a call by another
 * module. Asking for the user of its client's id is safe, and tells nothing of a Lua script's or a module's own client. */
static RedisModuleString *listing_user(RedisModuleCtx *ctx) {
    if (!ai_nested_call) return RedisModule_GetClientUserNameById(ctx, RedisModule_GetClientId(ctx));
    Slice name = nested_user ? slice_of(nested_user) : (Slice){ NULL, 0 };
    return nested_user ? RedisModule_CreateString(NULL, name.p, name.n) : NULL;
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

static void call(RedisModuleCtx *ctx, const char *name, RedisModuleString **argv, int argc, Arena *arena, ReplyNode *node) {
    const char *flags = RedisModule_ACLCheckCommandPermissions ? "!SMv" : "!v"; /* S and M came with 7.0, as did the check */
    errno = 0;
    RedisModuleCallReply *reply = RedisModule_Call(ctx, name, flags, argv + 1, (size_t)argc - 1);
    if (!reply) {
        reply_error(node, arena, errno ? errno_text(errno) : "ERR no reply");
        return;
    }
    copy_reply(reply, arena, node, 0);
    RedisModule_FreeCallReply(reply);
}

static bool read_only_here(RedisModuleCtx *ctx) {
    int flags = RedisModule_GetContextFlags(ctx);
    return (flags & CTX_SLAVE) && (flags & CTX_READONLY);
}

/* One attempt under the lock. False: writes are paused, try again later. */
static bool attempt(RedisModuleCtx *ctx, Job *job, const Slice *argv, int argc, Arena *arena, ReplyNode *node) {
    bool writes = false;
    const char *error = refusal(ctx, argv, argc, &writes);
    if (!error && writes && read_only_here(ctx)) error = errno_text(EROFS);
    if (!error && writes && RedisModule_AvoidReplicaTraffic()) return false;
    RedisModuleString **strings = RedisModule_Alloc((size_t)argc * sizeof(*strings));
    for (int i = 0; i < argc; i++) strings[i] = RedisModule_CreateString(NULL, argv[i].p, argv[i].n);
    if (!error) error = permission(ctx, job, strings, argc);
    if (error) {
        reply_error(node, arena, error);
    } else {
        char *name = slice_dup(argv[0]);
        ai_nested_call = true;
        nested_user = job->user;
        call(ctx, name, strings, argc, arena, node);
        ai_nested_call = false;
        nested_user = NULL;
        RedisModule_Free(name);
    }
    for (int i = 0; i < argc; i++) RedisModule_FreeString(NULL, strings[i]);
    RedisModule_Free(strings);
    return true;
}

void redis_execute(Job *job, const Slice *argv, int argc, Arena *arena, ReplyNode *reply) {
    static const struct timespec pause = { 0, 5000000 };
    RedisModuleCtx *ctx = RedisModule_GetThreadSafeContext(NULL);
    memset(reply, 0, sizeof(*reply));
    for (bool done = false; !done;) {
        RedisModule_ThreadSafeContextLock(ctx);
        if (ai_closing) {
            reply_error(reply, arena, "ERR the server is shutting down");
            done = true;
        } else {
            RedisModule_SelectDb(ctx, job->db);
            done = attempt(ctx, job, argv, argc, arena, reply);
        }
        RedisModule_ThreadSafeContextUnlock(ctx);
        if (!done) nanosleep(&pause, NULL);
    }
    RedisModule_FreeThreadSafeContext(ctx);
}

/* ---- redisAI.model_execute ----------------------------------------------------------------------------------------------------------- */

static const char *model_permission(RedisModuleCtx *ctx, Job *job, RedisModuleString *key) {
    if (!RedisModule_ACLCheckKeyPermissions) return permission(ctx, job, NULL, 0);
    RedisModuleUser *user = job->user ? RedisModule_GetModuleUserFromUserName(job->user) : NULL;
    bool allowed = user && RedisModule_ACLCheckKeyPermissions(user, key, KEY_ACCESS) == REDISMODULE_OK;
    if (user) RedisModule_FreeModuleUser(user);
    return allowed ? NULL : "NOPERM this user has no permissions to access the model's key";
}

Program *redis_model(Job *job, Slice key, const char **error) {
    RedisModuleCtx *ctx = RedisModule_GetThreadSafeContext(NULL);
    Program *p = NULL;
    RedisModule_ThreadSafeContextLock(ctx);
    RedisModule_SelectDb(ctx, job->db);
    RedisModuleString *name = RedisModule_CreateString(NULL, key.p, key.n);
    *error = model_permission(ctx, job, name);
    if (!*error) p = program_lookup(ctx, name, PROGRAM_MODEL, error);
    if (p) program_ref(p);
    RedisModule_FreeString(NULL, name);
    RedisModule_ThreadSafeContextUnlock(ctx);
    RedisModule_FreeThreadSafeContext(ctx);
    return p;
}
