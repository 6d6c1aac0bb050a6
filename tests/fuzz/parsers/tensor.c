/* tensor.c -- AI.TENSORSET and AI.TENSORGET.
 *
 * Input: the words after the key, a blank between them; what follows BLOB is one word to the end. "!" before them: they come from a master
 * or an AOF. "@": the blob is repeated until the tensor keeps the client's own string. What is accepted is read in every form; each form,
 * written again, gives the same tensor, and so do its parts put together. */
#include "server.h"

#include <ctype.h>

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    server_start();
    return 0;
}

enum { LONG = 33 << 10 };

static void add_blob(Words *w, const char *p, size_t n, bool repeated) {
    static Bytes all;
    all.n = 0;
    do bytes_add(&all, p, n);
    while (repeated && n && all.n < LONG);
    words_add(w, all.n ? all.p : "", all.n);
}

static void split(Words *w, const char *p, const char *end, bool repeated) {
    while (p < end && w->n < MAX_WORDS - 1) {
        const char *blank = memchr(p, ' ', (size_t)(end - p));
        size_t n = (size_t)((blank ? blank : end) - p);
        words_add(w, p, n);
        p += n + 1;
        if (slice_is(slice_of(w->item[w->n - 1]), "BLOB") && p <= end) {
            add_blob(w, p, (size_t)(end - p), repeated);
            return;
        }
    }
}

static void add(Words *w, const char *word) { words_add(w, word, strlen(word)); }

/* The answer to AI.TENSORGET with these options is in `reply` then. */
static void get(const char *first, const char *second) {
    static Words w;
    add(&w, "AI.TENSORGET");
    add(&w, "k");
    add(&w, first);
    if (second) add(&w, second);
    must(run(cmd_tensorget, &w));
    words_free(&w);
}

static void save(const Tensor *t, Bytes *out) {
    RedisModuleIO io = {.out = out};
    out->n = 0;
    ai_tensor_type->methods->rdb_save(&io, (void *)t);
}

static void must_equal(const Tensor *a, const Tensor *b) {
    static Bytes one, other;
    save(a, &one);
    save(b, &other);
    must(bytes_equal(&one, &other));
}

/* `w` sets the key to what `t` is. */
static void must_set(Words *w, Tensor *t) {
    must(run(cmd_tensorset, w));
    must_equal(t, the_key.value);
    words_free(w);
}

static void begin_set(Words *w, const Tensor *t) {
    char digits[24];
    add(w, "AI.TENSORSET");
    add(w, "k");
    add(w, dtypes[t->dtype].name);
    for (int i = 0; i < t->ndim; i++) {
        snprintf(digits, sizeof digits, "%lld", (long long)t->dims[i]);
        add(w, digits);
    }
}

static void check_blob(Tensor *t) {
    static Words w;
    get("META", "BLOB");
    must(reply.words.n == 5 + t->ndim); /* dtype D shape n... blob B */
    begin_set(&w, t);
    add(&w, "BLOB");
    words_add(&w, reply.words.item[4 + t->ndim]->p, reply.words.item[4 + t->ndim]->n);
    must_set(&w, t);
}

/* VALUES knows no nan, and an empty string only with its NUL. */
static void check_values(Tensor *t) {
    static Words w;
    bool nan = false;
    if (t->length > 1000) return;
    get("VALUES", NULL);
    must(reply.words.n == t->length);
    begin_set(&w, t);
    add(&w, "VALUES");
    for (int i = 0; i < reply.words.n; i++) {
        const RedisModuleString *value = reply.words.item[i];
        nan |= t->dtype <= T_DOUBLE && memmem(value->p, value->n, "nan", 3);
        if (t->dtype == T_STRING) words_add(&w, t->bytes + t->offsets[i], value->n + 1);
        else words_add(&w, value->p, value->n);
    }
    if (nan) words_free(&w);
    else must_set(&w, t);
}

/* What came from a master may be beyond the limit, which its parts obey. */
static void check_rows(Tensor *t) {
    const char *error;
    if (!t->ndim || t->dims[0] < 2 || t->nbytes > (size_t)config.max_tensor_bytes / 2) return;
    int64_t half = t->dims[0] / 3 + 1;
    Tensor *parts[] = {tensor_rows(t, 0, half, &error), tensor_rows(t, half, t->dims[0] - half, &error)};
    must(parts[0] && parts[1]);
    Tensor *whole = tensor_concat(parts, 2, &error);
    must(whole);
    must_equal(t, whole);
    tensor_unref(whole);
    tensor_unref(parts[0]);
    tensor_unref(parts[1]);
}

static void check_replica(Tensor *t) {
    RedisModuleString *key = fake_create(NULL, "k", 1);
    tensor_replicate(NULL, key, t);
    fake_free_string(NULL, key);
    context_flags = CTX_REPLICATED;
    must(run(cmd_tensorset, &emitted));
    must_equal(t, the_key.value);
}

static void check(Tensor *t) {
    char *aligned = tensor_aligned(t);
    must(t->nbytes == 0 || ((uintptr_t)aligned % 64 == 0 && memcmp(aligned, t->bytes, t->nbytes) == 0));
    check_blob(t);
    check_values(t);
    check_rows(t);
    check_replica(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Words w;
    const char *p = (const char *)data, *end = p + size;
    bool replay = p < end && *p == '!';
    p += replay;
    bool repeated = p < end && *p == '@';
    p += repeated;
    add(&w, "AI.TENSORSET");
    add(&w, "k");
    split(&w, p, end, repeated);
    context_flags = replay ? CTX_REPLICATED : 0;
    if (run(cmd_tensorset, &w)) {
        Tensor *t = tensor_ref(the_key.value);
        check(t);
        tensor_unref(t);
    } else {
        must(!the_key.value);
    }
    words_free(&w);
    server_rest();
    return 0;
}
