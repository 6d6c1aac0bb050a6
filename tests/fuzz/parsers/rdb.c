/* rdb.c -- the decoders of persist.c: each type, each encoding.
 *
 * Input: a byte that chooses type and encoding, one for the state of the server and the size of chunks, then the fields as Redis writes them.
 * What is accepted is written and read again, copied, digested, rewritten for an AOF; each way must give the same value. */
#include "server.h"

static struct RedisModuleKeyOptCtx *no_names;
static const RedisModuleString *no_key(RedisModuleKeyOptCtx *ctx) { return NULL; }
static int no_db(RedisModuleKeyOptCtx *ctx) { return 0; }

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    server_start();
    RedisModule_GetToKeyNameFromOptCtx = no_key;
    RedisModule_GetToDbIdFromOptCtx = no_db;
    return 0;
}

static void save(RedisModuleTypeMethods *m, void *value, Bytes *out) {
    RedisModuleIO io = {.out = out};
    out->n = 0;
    m->rdb_save(&io, value);
}

static void digest(RedisModuleTypeMethods *m, void *value, RedisModuleDigest *d) {
    d->all.n = 0;
    m->digest(d, value);
}

static void *load(RedisModuleTypeMethods *m, const Bytes *in) {
    RedisModuleIO io = {.p = (const uint8_t *)in->p, .end = (const uint8_t *)in->p + in->n};
    void *value = m->rdb_load(&io, AI_ENCVER);
    must(value && io.p == io.end);
    return value;
}

/* Both are written and digested alike. */
static void must_equal(RedisModuleTypeMethods *m, void *a, void *b) {
    static Bytes one, other;
    static RedisModuleDigest of_one, of_other;
    save(m, a, &one);
    save(m, b, &other);
    must(bytes_equal(&one, &other));
    digest(m, a, &of_one);
    digest(m, b, &of_other);
    must(bytes_equal(&of_one.all, &of_other.all));
}

static void check_rewrite(RedisModuleTypeMethods *m, void *value) {
    RedisModuleString *key = fake_create(NULL, "k", 1);
    m->aof_rewrite(NULL, key, value);
    fake_free_string(NULL, key);
    if (m != ai_tensor_type->methods) return;
    context_flags = CTX_LOADING;
    must(run(cmd_tensorset, &emitted));
    must_equal(m, value, the_key.value);
}

static void check(RedisModuleTypeMethods *m, void *value) {
    static Bytes saved;
    must(m->mem_usage2(no_names, value, 0) > 0 && m->free_effort2(no_names, value) > 0);
    save(m, value, &saved);
    context_flags = CTX_LOADING; /* its own file loads whatever the limits are */
    void *again = load(m, &saved), *copy = m->copy2(no_names, value);
    must_equal(m, value, again);
    must_equal(m, value, copy);
    check_rewrite(m, value);
    m->free(again);
    m->free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    RedisModuleTypeMethods *m = types[data[0] % 3].methods;
    int encver = data[0] / 3 % (AI_ENCVER + 2);
    config.model_chunk_size = 1 + data[1] % 64;
    context_flags = data[1] & 64 ? CTX_LOADING : 0;
    ai_is_replica = data[1] & 128;
    RedisModuleIO io = {.p = data + 2, .end = data + size};
    void *value = m->rdb_load(&io, encver);
    must(!value || encver <= AI_ENCVER);
    if (value) {
        check(m, value);
        m->free(value);
    }
    server_rest();
    return 0;
}
