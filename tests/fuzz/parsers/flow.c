/* flow.c -- the decoder of flow_persist.c: flows as they lie in an RDB beside the keys and travel to replicas.
 *
 * Input: a byte for the version, then the fields as Redis writes them. What is accepted is written and read again, from an RDB and from the
 * commands that replicas get, and is the same each time. */
#include "server.h"

/* ---- what the neighbours of flows.c would bring: users, and nothing of what runs a flow --------------------------------------------------- */

User *user_new(Slice name) {
    User *u = RedisModule_Calloc(1, sizeof(*u));
    atomic_init(&u->refs, 1);
    u->name = (Slice){slice_dup(name), name.n};
    return u;
}
User *user_ref(User *u) {
    if (u) u->refs++;
    return u;
}
void user_unref(User *u) {
    if (!u || --u->refs) return;
    RedisModule_Free((char *)u->name.p);
    RedisModule_Free(u);
}
static RedisModuleTypeMethods *methods;

static int method_version(void) { return 5; }

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    server_start();
    RedisModule_GetTypeMethodVersion = method_version;
    config.flows = true;
    must(flow_persist_register(NULL) == REDISMODULE_OK);
    methods = ai_flows_type->methods;
    return 0;
}

static void save(Bytes *out) {
    RedisModuleIO io = {.out = out};
    out->n = 0;
    methods->aux_save2(&io, 1);
}

static void remove_all(void) {
    while (flows_first()) {
        char *id = slice_dup((Slice){flows_first()->flows->id, strlen(flows_first()->flows->id)});
        must(flow_remove((Slice){id, strlen(id)}));
        RedisModule_Free(id);
    }
}

/* As a replica does with what its master sends. */
static void add_by_command(const FlowSource *s) {
    flow_replicate_add(NULL, s);
    remove_all();
    context_flags = CTX_REPLICATED;
    must(run(cmd_config_flow, &emitted));
}

static void check(void) {
    static Bytes once, again;
    save(&once);
    remove_all();
    RedisModuleIO io = {.p = (const uint8_t *)once.p, .end = (const uint8_t *)once.p + once.n};
    must(methods->aux_load(&io, 0, 1) == REDISMODULE_OK && io.p == io.end);
    save(&again);
    must(bytes_equal(&once, &again));
    if (flows_number() == 0 || flows_first()->next) return;
    add_by_command(flows_first());
    save(&again);
    must(bytes_equal(&once, &again));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1) return 0;
    RedisModuleIO io = {.p = data + 1, .end = data + size};
    int loaded = methods->aux_load(&io, data[0] % 2, 1);
    if (loaded == REDISMODULE_OK && flows_first()) check();
    remove_all();
    server_rest();
    return 0;
}
