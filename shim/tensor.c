/* tensor.c -- the tensor value, AI.TENSORSET and AI.TENSORGET.
 *
 * 1. A tensor is one allocation: header, dims, offsets of strings, data. Or it keeps the client's own argument: from 32 KiB on Redis
 *    reads an argument into a string of its own, and keeping that costs the main thread nothing where a copy costs 85-120 us per
 *    588 KiB. Its bytes begin at an odd address, which no inference library is promised to survive: the worker that first needs them
 *    makes an aligned copy (tensor_aligned). TENSORGET, RDB and replication read the string itself.
 * 2. Such a string must not move. Redis trims a kept argument after the command, so we trim it first (RM_TrimStringAllocation); on
 *    servers without that function the data is copied.
 * 3. Every shape, from a client, a model or a dump, passes tensor_alloc(): overflow, then the limit, then the allocation.
 * 4. A failing command changes nothing, not even a WATCH: the arguments are parsed before the key is opened for writing, although a wrong
 *    key type is reported before a wrong argument. */
#include "ai.h"

#include <stdio.h>

const DtypeRow dtypes[T_COUNT] = {
    [T_FLOAT] = {"FLOAT", 2, 32, 4, "f"},   [T_DOUBLE] = {"DOUBLE", 2, 64, 8, "d"}, [T_INT8] = {"INT8", 0, 8, 1, "b"},
    [T_INT16] = {"INT16", 0, 16, 2, "h"},   [T_INT32] = {"INT32", 0, 32, 4, "i"},   [T_INT64] = {"INT64", 0, 64, 8, "l"},
    [T_UINT8] = {"UINT8", 1, 8, 1, "B"},    [T_UINT16] = {"UINT16", 1, 16, 2, "H"}, [T_BOOL] = {"BOOL", 6, 8, 1, "?"},
    [T_STRING] = {"STRING", 7, 8, 1, NULL},
};

static const struct {
    int64_t low, high;
} ranges[T_COUNT] = { /* of VALUES; those of T_FLOAT, T_DOUBLE and T_STRING are not looked at */
    [T_INT8] = {INT8_MIN, INT8_MAX},    [T_INT16] = {INT16_MIN, INT16_MAX}, [T_INT32] = {INT32_MIN, INT32_MAX},
    [T_INT64] = {INT64_MIN, INT64_MAX}, [T_UINT8] = {0, UINT8_MAX},         [T_UINT16] = {0, UINT16_MAX},
    [T_BOOL] = {0, 1},
};

#define ERR_SHAPE "ERR invalid or negative value found in tensor shape"
#define ERR_RANK "ERR tensor shape has more than 64 dimensions"
#define ERR_LIMIT "ERR tensor is larger than MAX_TENSOR_BYTES"
#define ERR_MEMORY "ERR not enough memory for the tensor"
#define ERR_ITEMS "ERR Number of string elements in data blob does not match tensor length"

enum {
    ALIGNMENT = 64,
    KEEP_BYTES = 32 * 1024, /* from this size on Redis makes an argument without a copy (PROTO_MBULK_BIG_ARG) */
    FEW_WORDS = 32,         /* arguments whose slices fit on the stack */
};

bool dtype_parse(Slice name, Dtype *out) {
    int d = 0;
    while (d < T_COUNT && !slice_is(name, dtypes[d].name)) d++;
    *out = (Dtype)d;
    return d < T_COUNT;
}

/* ---- the value ----------------------------------------------------------------------------------------------------- */

/* A dim of 0 counts as 1 in the bound, so that no product of some dims (a stride) overflows where the length does not. */
static bool extend(int64_t *length, int64_t *bound, int64_t dim) {
    if (__builtin_mul_overflow(*bound, dim ? dim : 1, bound)) return false;
    *length *= dim;
    return true;
}

bool tensor_length(Dtype dtype, int ndim, const int64_t *dims, int64_t *length) {
    int64_t bound = dtypes[dtype].size;
    *length = 1;
    for (int i = 0; i < ndim; i++)
        if (!extend(length, &bound, dims[i])) return false;
    return true;
}

static char *align(char *p) { return (char *)(((uintptr_t)p + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1)); }

/* Header, dims, offsets and room for `inner` bytes of data, which is nbytes, or 0 where a kept string holds them. */
static Tensor *tensor_alloc(Dtype dtype, int ndim, const int64_t *dims, size_t nbytes, size_t inner, size_t limit, const char **error) {
    int64_t length;
    size_t noffsets = 0, offsets_bytes, wanted, total;
    *error = ERR_RANK;
    if (ndim > AI_MAX_DIMS) return NULL;
    *error = ERR_SHAPE;
    if (!tensor_length(dtype, ndim, dims, &length)) return NULL;
    if (dtype == T_STRING) noffsets = (size_t)length;
    size_t head = sizeof(Tensor) + (size_t)ndim * sizeof(int64_t);
    if (mul_overflow(noffsets, sizeof(uint64_t), &offsets_bytes)) return NULL;
    *error = ERR_LIMIT;
    if (__builtin_add_overflow(offsets_bytes, nbytes, &wanted) || wanted > limit) return NULL;
    *error = ERR_MEMORY;
    if (__builtin_add_overflow(head + offsets_bytes + ALIGNMENT, inner, &total)) return NULL;
    Tensor *t = mem_try(total, SIZE_MAX);
    if (!t) return NULL;
    *error = NULL;
    atomic_init(&t->refs, 1);
    t->dtype = (uint8_t)dtype;
    t->ndim = (uint8_t)ndim;
    t->length = length;
    t->nbytes = nbytes;
    memcpy(t->dims, dims, (size_t)ndim * sizeof(int64_t));
    t->offsets = dtype == T_STRING ? (uint64_t *)(t->dims + ndim) : NULL;
    t->bytes = align((char *)t + head + offsets_bytes);
    t->source = NULL;
    t->resident = 0;
    atomic_init(&t->aligned, (char *)t->bytes);
    return t;
}

static Tensor *new_within(Dtype dtype, int ndim, const int64_t *dims, size_t nbytes, size_t limit, const char **error) {
    int64_t length;
    if (dtype != T_STRING) nbytes = tensor_length(dtype, ndim, dims, &length) ? (size_t)length * dtypes[dtype].size : 0;
    return tensor_alloc(dtype, ndim, dims, nbytes, nbytes, limit, error);
}

Tensor *tensor_new(Dtype dtype, int ndim, const int64_t *dims, size_t nbytes, const char **error) {
    return new_within(dtype, ndim, dims, nbytes, (size_t)config.max_tensor_bytes, error);
}

/* What was accepted once comes back: a server must start with its own file, and hold what its master holds, whatever the limit is now. */
Tensor *tensor_load(Dtype dtype, int ndim, const int64_t *dims, size_t nbytes, const char **error) {
    return new_within(dtype, ndim, dims, nbytes, SIZE_MAX, error);
}

/* Numbers of tensors on devices that nobody refers to any more, until a worker asks for them. */
static pthread_mutex_t released_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t *released;
static int nreleased, released_room;

static void release_resident(uint64_t id) {
    pthread_mutex_lock(&released_lock);
    if (nreleased == released_room) {
        released_room = released_room ? released_room * 2 : 64;
        released = RedisModule_Realloc(released, (size_t)released_room * sizeof *released);
    }
    released[nreleased++] = id;
    pthread_mutex_unlock(&released_lock);
}

int resident_released(uint64_t *ids, int room) {
    pthread_mutex_lock(&released_lock);
    int n = nreleased < room ? nreleased : room;
    nreleased -= n;
    if (n) memcpy(ids, released + nreleased, (size_t)n * sizeof *ids);
    pthread_mutex_unlock(&released_lock);
    return n;
}

Tensor *tensor_resident(Dtype dtype, int ndim, const int64_t *dims, uint64_t id, const char **error) {
    int64_t length;
    size_t nbytes = tensor_length(dtype, ndim, dims, &length) ? (size_t)length * dtypes[dtype].size : 0;
    Tensor *t = tensor_alloc(dtype, ndim, dims, nbytes, 0, (size_t)config.max_tensor_bytes, error);
    if (!t) return NULL;
    t->resident = id;
    t->bytes = NULL;
    atomic_init(&t->aligned, NULL);
    return t;
}

Tensor *tensor_ref(Tensor *t) {
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    return t;
}

void tensor_unref(Tensor *t) {
    if (!t || atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) != 1) return;
    if (t->source) {
        char *aligned = atomic_load_explicit(&t->aligned, memory_order_acquire);
        if (aligned) RedisModule_Free(((void **)aligned)[-1]);
        strings_drop(t->source);
    }
    if (t->resident) release_resident(t->resident);
    RedisModule_Free(t);
}

/* Aligned memory that remembers, just before itself, what is to be freed. */
static char *aligned_alloc64(size_t n) {
    char *base = n < SIZE_MAX - ALIGNMENT - sizeof(void *) ? mem_try(n + ALIGNMENT + sizeof(void *), SIZE_MAX) : NULL;
    if (!base) return NULL;
    char *p = align(base + sizeof(void *));
    ((void **)p)[-1] = base;
    return p;
}

char *tensor_aligned(Tensor *t) {
    char *published = atomic_load_explicit(&t->aligned, memory_order_acquire);
    if (published) return published;
    char *copy = aligned_alloc64(t->nbytes);
    if (!copy) return NULL;
    memcpy(copy, t->bytes, t->nbytes);
    if (atomic_compare_exchange_strong_explicit(&t->aligned, &published, copy, memory_order_acq_rel, memory_order_acquire)) return copy;
    RedisModule_Free(((void **)copy)[-1]); /* another worker was first */
    return published;
}

bool tensor_index_strings(Tensor *t) {
    const char *p = t->bytes, *end = p + t->nbytes;
    for (int64_t i = 0; i < t->length; i++) {
        const char *nul = p < end ? memchr(p, '\0', (size_t)(end - p)) : NULL;
        if (!nul) return false;
        t->offsets[i] = (uint64_t)(p - t->bytes);
        p = nul + 1;
    }
    return p == end;
}

/* ---- rows of dim 0 ------------------------------------------------------------------------------------------------- */

static int64_t row_length(const Tensor *t) {
    int64_t n = 1;
    for (int i = 1; i < t->ndim; i++) n *= t->dims[i];
    return n;
}

/* Where element `i` begins; i = length gives the end of the data. */
static size_t byte_of(const Tensor *t, int64_t i) {
    if (i == t->length) return t->nbytes;
    return t->offsets ? t->offsets[i] : (size_t)i * dtypes[t->dtype].size;
}

/* Appends elements [from, from + n) of `t` to `to`, which has filled `done` elements and `at` bytes. Returns the bytes filled then. */
static size_t append(Tensor *to, int64_t done, size_t at, const Tensor *t, int64_t from, int64_t n) {
    size_t first = byte_of(t, from), bytes = byte_of(t, from + n) - first;
    memcpy((char *)to->bytes + at, t->bytes + first, bytes);
    if (to->offsets)
        for (int64_t i = 0; i < n; i++) to->offsets[done + i] = t->offsets[from + i] - first + at;
    return at + bytes;
}

static Tensor *with_rows(const Tensor *t, int64_t rows, size_t nbytes, const char **error) {
    int64_t dims[AI_MAX_DIMS];
    memcpy(dims, t->dims, t->ndim * sizeof(int64_t));
    dims[0] = rows;
    return tensor_new(t->dtype, t->ndim, dims, nbytes, error);
}

Tensor *tensor_rows(Tensor *t, int64_t from, int64_t count, const char **error) {
    *error = NULL;
    if (from == 0 && count == t->dims[0]) return tensor_ref(t);
    int64_t row = row_length(t);
    Tensor *part = with_rows(t, count, byte_of(t, (from + count) * row) - byte_of(t, from * row), error);
    if (part) append(part, 0, 0, t, from * row, count * row);
    return part;
}

Tensor *tensor_concat(Tensor *const *parts, int n, const char **error) {
    *error = NULL;
    if (n == 1) return tensor_ref(parts[0]);
    int64_t rows = 0;
    size_t nbytes = 0;
    for (int i = 0; i < n; i++) {
        *error = ERR_SHAPE;
        if (__builtin_add_overflow(rows, parts[i]->dims[0], &rows)) return NULL;
        if (__builtin_add_overflow(nbytes, parts[i]->nbytes, &nbytes)) return NULL;
    }
    Tensor *whole = with_rows(parts[0], rows, nbytes, error);
    if (!whole) return NULL;
    int64_t done = 0;
    size_t at = 0;
    for (int i = 0; i < n; i++) {
        at = append(whole, done, at, parts[i], 0, parts[i]->length);
        done += parts[i]->length;
    }
    return whole;
}

/* ---- AI.TENSORSET: arguments -> tensor ----------------------------------------------------------------------------- */

typedef struct Spec { /* what the words say, before a byte of data is looked at */
    Dtype dtype;
    int ndim;
    int64_t dims[AI_MAX_DIMS];
    int64_t length;
    int blob, values; /* index of the first word of data; 0 = not given */
    size_t limit;     /* bytes the tensor may take */
} Spec;

/* `least` is the smallest dim allowed. */
static const char *spec_parse(Spec *s, const Slice *argv, int argc, int64_t least) {
    s->ndim = s->blob = s->values = 0;
    s->length = 1;
    if (!dtype_parse(argv[0], &s->dtype)) return "ERR invalid data type";
    int64_t dim, bound = dtypes[s->dtype].size;
    for (int at = 1; at < argc; at++) {
        int left = argc - at - 1;
        if (slice_is(argv[at], "BLOB")) {
            s->blob = at + 1;
            return left == 1 ? NULL : "ERR a single binary string should come after the BLOB argument in 'AI.TENSORSET' command";
        }
        if (slice_is(argv[at], "VALUES")) {
            s->values = at + 1;
            return left == s->length ? NULL : "ERR wrong number of values was given in 'AI.TENSORSET' command";
        }
        if (!slice_to_int(argv[at], &dim) || dim < least) return ERR_SHAPE;
        if (s->ndim == AI_MAX_DIMS) return ERR_RANK;
        s->dims[s->ndim++] = dim;
        if (!extend(&s->length, &bound, dim)) return ERR_SHAPE;
    }
    return NULL;
}

static Tensor *tensor_zeros(const Spec *s, const char **error) {
    Tensor *t = new_within(s->dtype, s->ndim, s->dims, (size_t)s->length, s->limit, error);
    if (!t) return NULL;
    memset((char *)t->bytes, 0, t->nbytes);
    if (t->offsets) tensor_index_strings(t);
    return t;
}

static bool all_bool(const char *p, size_t n) {
    uint64_t seen = 0, eight;
    size_t i = 0;
    for (; i + sizeof eight <= n; i += sizeof eight) {
        memcpy(&eight, p + i, sizeof eight);
        seen |= eight;
    }
    for (; i < n; i++) seen |= (unsigned char)p[i];
    return !(seen & ~UINT64_C(0x0101010101010101));
}

/* Whether the bytes can be this tensor's, as far as that shows before memory is taken: NULL, or what is wrong. */
static const char *blob_check(const Spec *s, Slice blob) {
    if (s->dtype == T_STRING) return (int64_t)blob.n < s->length ? ERR_ITEMS : NULL; /* an item is at least its NUL */
    if (blob.n != (size_t)s->length * dtypes[s->dtype].size) return "ERR data length does not match tensor shape and type";
    if (s->dtype == T_BOOL && !all_bool(blob.p, blob.n)) return "ERR BOOL tensor elements must be 0 or 1";
    return NULL;
}

static void keep_source(Tensor *t, RedisModuleString *string) {
    RedisModule_TrimStringAllocation(string);
    t->source = strings_keep(string);
    t->bytes = slice_of(t->source).p;
    atomic_init(&t->aligned, NULL);
}

/* `string`, when not NULL, holds the blob and may be kept. */
static Tensor *tensor_from_blob(const Spec *s, Slice blob, RedisModuleString *string, const char **error) {
    *error = blob_check(s, blob);
    if (*error) return NULL;
    bool keep = string && ai_can_trim && blob.n >= KEEP_BYTES;
    Tensor *t = tensor_alloc(s->dtype, s->ndim, s->dims, blob.n, keep ? 0 : blob.n, s->limit, error);
    if (!t) return NULL;
    if (keep) keep_source(t, string);
    else memcpy((char *)t->bytes, blob.p, blob.n);
    if (!t->offsets || tensor_index_strings(t)) return t;
    tensor_unref(t);
    *error = ERR_ITEMS;
    return NULL;
}

static bool ends_in_nul(Slice s) { return s.p[s.n - 1] == '\0'; }

static Tensor *tensor_from_strings(const Spec *s, const Slice *values, const char **error) {
    size_t nbytes = 0;
    for (int64_t i = 0; i < s->length; i++) {
        *error = "ERR C-string value contains null character";
        if (values[i].n == 0 || memchr(values[i].p, '\0', values[i].n - 1)) return NULL;
        nbytes += values[i].n + !ends_in_nul(values[i]);
    }
    Tensor *t = new_within(T_STRING, s->ndim, s->dims, nbytes, s->limit, error);
    if (!t) return NULL;
    char *p = (char *)t->bytes;
    for (int64_t i = 0; i < s->length; i++) {
        t->offsets[i] = (uint64_t)(p - t->bytes);
        memcpy(p, values[i].p, values[i].n);
        p += values[i].n;
        if (!ends_in_nul(values[i])) *p++ = '\0';
    }
    return t;
}

static bool store_real(Dtype dtype, void *data, int64_t i, Slice value) {
    double v;
    if (!slice_to_double(value, &v)) return false;
    if (dtype == T_FLOAT) ((float *)data)[i] = (float)v; /* beyond float's range: an infinity, as in 1.2.7 */
    else ((double *)data)[i] = v;
    return true;
}

static bool store_int(Dtype dtype, void *data, int64_t i, Slice value) {
    int64_t v;
    if (!slice_to_int(value, &v) || v < ranges[dtype].low || v > ranges[dtype].high) return false;
    switch (dtypes[dtype].size) {
    case 1: ((uint8_t *)data)[i] = (uint8_t)v; break;
    case 2: ((uint16_t *)data)[i] = (uint16_t)v; break;
    case 4: ((uint32_t *)data)[i] = (uint32_t)v; break;
    default: ((uint64_t *)data)[i] = (uint64_t)v;
    }
    return true;
}

static Tensor *tensor_from_numbers(const Spec *s, const Slice *values, const char **error) {
    Tensor *t = new_within(s->dtype, s->ndim, s->dims, 0, s->limit, error);
    if (!t) return NULL;
    bool (*store)(Dtype, void *, int64_t, Slice) = s->dtype <= T_DOUBLE ? store_real : store_int;
    for (int64_t i = 0; i < s->length; i++) {
        if (store(s->dtype, (char *)t->bytes, i, values[i])) continue;
        tensor_unref(t);
        *error = "ERR invalid value";
        return NULL;
    }
    return t;
}

/* What comes back from the AOF or from the master was accepted once: it may have a dim of 0, which models produce, and any size. */
static Tensor *parse(const Slice *argv, int argc, RedisModuleString **strings, bool replay, const char **error) {
    Spec s = {.limit = replay ? SIZE_MAX : (size_t)config.max_tensor_bytes};
    *error = spec_parse(&s, argv, argc, replay ? 0 : 1);
    if (*error) return NULL;
    if (s.blob) return tensor_from_blob(&s, argv[s.blob], strings ? strings[s.blob] : NULL, error);
    if (s.values) return (s.dtype == T_STRING ? tensor_from_strings : tensor_from_numbers)(&s, argv + s.values, error);
    return tensor_zeros(&s, error);
}

Tensor *tensor_parse(const Slice *argv, int argc, RedisModuleString **strings, const char **error) {
    return parse(argv, argc, strings, false, error);
}

bool is_replay(RedisModuleCtx *ctx) {
    return (RedisModule_GetContextFlags(ctx) & (CTX_LOADING | CTX_REPLICATED)) != 0;
}

/* argv as of the command: name, key, dtype ... */
static Tensor *parse_command(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, const char **error) {
    Slice few[FEW_WORDS], *words = few;
    int n = argc - 2;
    if (n > FEW_WORDS) words = RedisModule_Alloc((size_t)n * sizeof(Slice));
    for (int i = 0; i < n; i++) words[i] = slice_of(argv[i + 2]);
    Tensor *t = tensor_parse(words, n, argv + 2, error);
    bool strict = !t && (strcmp(*error, ERR_SHAPE) == 0 || strcmp(*error, ERR_LIMIT) == 0);
    if (strict && is_replay(ctx)) t = parse(words, n, argv + 2, true, error);
    if (words != few) RedisModule_Free(words);
    return t;
}

/* ---- keys ---------------------------------------------------------------------------------------------------------- */

static bool may_hold_tensor(RedisModuleKey *key) {
    return RedisModule_KeyType(key) == REDISMODULE_KEYTYPE_EMPTY || RedisModule_ModuleTypeGetType(key) == ai_tensor_type;
}

Tensor *tensor_lookup(RedisModuleCtx *ctx, RedisModuleString *name, const char **error) {
    RedisModuleKey *key = RedisModule_OpenKey(ctx, name, REDISMODULE_READ);
    *error = "ERR tensor key is empty or in a different shard";
    if (!key) return NULL;
    bool found = RedisModule_ModuleTypeGetType(key) == ai_tensor_type;
    Tensor *t = found ? RedisModule_ModuleTypeGetValue(key) : NULL;
    *error = found ? NULL : REDISMODULE_ERRORMSG_WRONGTYPE;
    RedisModule_CloseKey(key);
    return t;
}

int tensor_store(RedisModuleKey *key, Tensor *t) {
    void *old = NULL;
    if (RedisModule_ModuleTypeGetType(key) != ai_tensor_type) {
        if (RedisModule_ModuleTypeSetValue(key, ai_tensor_type, t) != REDISMODULE_OK) return REDISMODULE_ERR;
        tensor_ref(t);
        return REDISMODULE_OK;
    }
    /* Spares a deletion and an insertion (a third of the command), but keeps the TTL. */
    if (RedisModule_ModuleTypeReplaceValue(key, ai_tensor_type, t, &old) != REDISMODULE_OK) return REDISMODULE_ERR;
    tensor_ref(t);
    if (RedisModule_GetExpire(key) != REDISMODULE_NO_EXPIRE) RedisModule_SetExpire(key, REDISMODULE_NO_EXPIRE);
    tensor_unref(old);
    strings_drain();
    return REDISMODULE_OK;
}

void tensor_replicate(RedisModuleCtx *ctx, RedisModuleString *key, Tensor *t) {
    RedisModuleString *dims[AI_MAX_DIMS];
    const char *name = dtypes[t->dtype].name;
    char digits[24];
    for (int i = 0; i < t->ndim; i++)
        dims[i] = RedisModule_CreateString(NULL, digits, (size_t)snprintf(digits, sizeof digits, "%lld", (long long)t->dims[i]));
    if (t->source) RedisModule_Replicate(ctx, "AI.TENSORSET", "scvcs", key, name, dims, (size_t)t->ndim, "BLOB", t->source);
    else RedisModule_Replicate(ctx, "AI.TENSORSET", "scvcb", key, name, dims, (size_t)t->ndim, "BLOB", t->bytes, t->nbytes);
    for (int i = 0; i < t->ndim; i++) RedisModule_FreeString(NULL, dims[i]);
}

/* ---- AI.TENSORSET -------------------------------------------------------------------------------------------------- */

/* A wrong argument, unless the key is wrong as well: that comes first. */
static int refuse(RedisModuleCtx *ctx, RedisModuleString *name, const char *error) {
    RedisModuleKey *key = RedisModule_OpenKey(ctx, name, REDISMODULE_READ | REDISMODULE_OPEN_KEY_NOTOUCH);
    if (key && !may_hold_tensor(key)) error = REDISMODULE_ERRORMSG_WRONGTYPE;
    if (key) RedisModule_CloseKey(key);
    return RedisModule_ReplyWithError(ctx, error);
}

/* NULL, or why nothing was written. */
static const char *write_tensor(RedisModuleCtx *ctx, RedisModuleString *name, Tensor *t) {
    const char *error = NULL;
    RedisModuleKey *key = RedisModule_OpenKey(ctx, name, REDISMODULE_READ | REDISMODULE_WRITE);
    if (!may_hold_tensor(key)) error = REDISMODULE_ERRORMSG_WRONGTYPE;
    else if (tensor_store(key, t) != REDISMODULE_OK) error = "ERR could not save tensor";
    RedisModule_CloseKey(key);
    if (!error) announce(ctx, name, "ai.tensorset");
    return error;
}

int cmd_tensorset(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    const char *error;
    strings_drain();
    if (argc < 4) return RedisModule_WrongArity(ctx);
    Tensor *t = parse_command(ctx, argv, argc, &error);
    if (!t) return refuse(ctx, argv[1], error);
    error = write_tensor(ctx, argv[1], t);
    tensor_unref(t);
    if (error) return RedisModule_ReplyWithError(ctx, error);
    RedisModule_ReplicateVerbatim(ctx);
    return RedisModule_ReplyWithSimpleString(ctx, "OK");
}

/* ---- AI.TENSORGET -------------------------------------------------------------------------------------------------- */

const char *tensor_get_options(const Slice *argv, int argc, int *show) {
    *show = 0;
    for (int i = 0; i < argc; i++) {
        if (slice_is(argv[i], "META")) *show |= TENSORGET_META;
        else if (slice_is(argv[i], "BLOB")) *show |= TENSORGET_BLOB;
        else if (slice_is(argv[i], "VALUES")) *show |= TENSORGET_VALUES;
        else return "ERR unsupported data format";
    }
    if (*show == 0) *show = TENSORGET_META | TENSORGET_BLOB;
    return *show & TENSORGET_BLOB && *show & TENSORGET_VALUES ? "ERR both BLOB and VALUES specified" : NULL;
}

static void reply_word(RedisModuleCtx *ctx, const char *word) { RedisModule_ReplyWithStringBuffer(ctx, word, strlen(word)); }

static void reply_shape(RedisModuleCtx *ctx, const Tensor *t) {
    RedisModule_ReplyWithArray(ctx, t->ndim);
    for (int i = 0; i < t->ndim; i++) RedisModule_ReplyWithLongLong(ctx, t->dims[i]);
}

static void reply_blob(RedisModuleCtx *ctx, const Tensor *t) {
    if (t->source) RedisModule_ReplyWithString(ctx, t->source); /* a server that can send it without a copy may */
    else RedisModule_ReplyWithStringBuffer(ctx, t->bytes, t->nbytes);
}

#define REPLY_AS(type, reply) \
    for (int64_t i = 0; i < t->length; i++) { \
        type v; \
        memcpy(&v, t->bytes + (size_t)i * sizeof v, sizeof v); /* a kept string is not aligned */ \
        reply(ctx, v); \
    } \
    break

static void reply_values(RedisModuleCtx *ctx, const Tensor *t) {
    RedisModule_ReplyWithArray(ctx, t->length);
    switch ((Dtype)t->dtype) {
    case T_FLOAT: REPLY_AS(float, RedisModule_ReplyWithDouble);
    case T_DOUBLE: REPLY_AS(double, RedisModule_ReplyWithDouble);
    case T_INT8: REPLY_AS(int8_t, RedisModule_ReplyWithLongLong);
    case T_INT16: REPLY_AS(int16_t, RedisModule_ReplyWithLongLong);
    case T_INT32: REPLY_AS(int32_t, RedisModule_ReplyWithLongLong);
    case T_INT64: REPLY_AS(int64_t, RedisModule_ReplyWithLongLong);
    case T_UINT8:
    case T_BOOL: REPLY_AS(uint8_t, RedisModule_ReplyWithLongLong);
    case T_UINT16: REPLY_AS(uint16_t, RedisModule_ReplyWithLongLong);
    case T_STRING:
        for (int64_t i = 0; i < t->length; i++) reply_word(ctx, t->bytes + t->offsets[i]);
        break;
    case T_COUNT: break;
    }
}

void tensor_reply(RedisModuleCtx *ctx, Tensor *t, int show) {
    if (show & TENSORGET_META) {
        RedisModule_ReplyWithArray(ctx, show == TENSORGET_META ? 4 : 6);
        reply_word(ctx, "dtype");
        reply_word(ctx, dtypes[t->dtype].name);
        reply_word(ctx, "shape");
        reply_shape(ctx, t);
        if (show != TENSORGET_META) reply_word(ctx, show & TENSORGET_BLOB ? "blob" : "values");
    }
    if (show & TENSORGET_BLOB) reply_blob(ctx, t);
    if (show & TENSORGET_VALUES) reply_values(ctx, t);
}

int cmd_tensorget(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    const char *error;
    Slice options[2];
    int show;
    strings_drain();
    if (argc < 2 || argc > 4) return RedisModule_WrongArity(ctx);
    Tensor *t = tensor_lookup(ctx, argv[1], &error);
    if (!t) return RedisModule_ReplyWithError(ctx, error);
    for (int i = 2; i < argc; i++) options[i - 2] = slice_of(argv[i]);
    error = tensor_get_options(options, argc - 2, &show);
    if (error) return RedisModule_ReplyWithError(ctx, error);
    tensor_reply(ctx, t, show);
    return REDISMODULE_OK;
}
