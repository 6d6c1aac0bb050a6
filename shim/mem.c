/* mem.c -- memory, bytes and names: what every other file is written with.
 *
 * 1. A size that came from outside passes mem_try(). Redis aborts when RM_Alloc fails, and a lazy allocation of terabytes succeeds,
 *    counts as used memory and evicts the whole keyspace: so the limit is checked before anything is asked for.
 * 2. Redis strings have plain counters. Who lost the last use of one off the main thread pushes it to the drop list, a stack without a
 *    lock: pushing is one compare-and-swap, and emptying takes the whole stack at once, so that no node can come back under a reader.
 *    Emptying an empty list is one load, because every command begins with it. */
#include "ai.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- sizes --------------------------------------------------------------------------------------------------------- */

/* Servers without RM_TryAlloc abort where malloc fails; none fails below this. */
enum { SURE_BITS = 40 };

void *mem_try(size_t n, size_t limit) {
    if (n > limit) return NULL;
    if (RedisModule_TryAlloc) return RedisModule_TryAlloc(n);
    return n < (size_t)1 << SURE_BITS ? RedisModule_Alloc(n) : NULL;
}

bool mul_overflow(size_t a, size_t b, size_t *out) {
    return __builtin_mul_overflow(a, b, out);
}

/* ---- slices -------------------------------------------------------------------------------------------------------- */

Slice slice_of(const RedisModuleString *s) {
    Slice slice;
    slice.p = RedisModule_StringPtrLen(s, &slice.n);
    return slice;
}

static char upper(char c) {
    return c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
}

bool slice_is(Slice s, const char *word) {
    size_t i = 0;
    while (i < s.n && word[i] && upper(s.p[i]) == word[i]) i++;
    return i == s.n && !word[i];
}

bool slice_to_int(Slice s, int64_t *out) {
    const char *p = s.p, *end = s.p + s.n;
    bool negative = p < end && *p == '-';
    if (negative) p++;
    if (p == end) return false;
    if (*p == '0') { /* only zero itself begins with one, and it has no sign */
        *out = 0;
        return s.n == 1;
    }
    uint64_t v = 0;
    for (; p < end; p++) {
        if (*p < '0' || *p > '9') return false;
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v)) return false;
    }
    if (v > (uint64_t)INT64_MAX + negative) return false;
    *out = negative ? (int64_t)(0 - v) : (int64_t)v;
    return true;
}

/* strtod, which wants a closing NUL that a slice need not have. */
static double to_double(const char *digits, size_t n, bool *whole) {
    char *end;
    errno = 0;
    double v = strtod(digits, &end);
    bool out_of_range = errno == ERANGE && (v == HUGE_VAL || v == -HUGE_VAL || v == 0);
    *whole = end == digits + n && !out_of_range && !isnan(v);
    return v;
}

bool slice_to_double(Slice s, double *out) {
    char few[64], *digits = few;
    bool ok = false;
    if (s.n == 0 || isspace((unsigned char)s.p[0])) return false;
    if (s.n >= sizeof few) digits = RedisModule_Alloc(s.n + 1);
    memcpy(digits, s.p, s.n);
    digits[s.n] = '\0';
    *out = to_double(digits, s.n, &ok);
    if (digits != few) RedisModule_Free(digits);
    return ok;
}

char *slice_dup(Slice s) {
    char *copy = RedisModule_Alloc(s.n + 1);
    if (s.n) memcpy(copy, s.p, s.n);
    copy[s.n] = '\0';
    return copy;
}

char *text(const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    char *out = RedisModule_Alloc((size_t)n + 1);
    vsnprintf(out, (size_t)n + 1, format, again);
    va_end(again);
    va_end(args);
    return out;
}

/* ---- Redis strings whose last use may end on any thread ------------------------------------------------------------ */

typedef struct Dropped {
    RedisModuleString *string;
    struct Dropped *next;
} Dropped;
static Dropped *_Atomic dropped;

RedisModuleString *strings_keep(RedisModuleString *s) {
    if (RedisModule_HoldString) return RedisModule_HoldString(NULL, s);
    RedisModule_RetainString(NULL, s);
    return s;
}

void strings_drop(RedisModuleString *s) {
    Dropped *d = RedisModule_Alloc(sizeof(*d));
    d->string = s;
    d->next = atomic_load_explicit(&dropped, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&dropped, &d->next, d, memory_order_release, memory_order_relaxed)) {
    }
}

void strings_drain(void) {
    if (!atomic_load_explicit(&dropped, memory_order_relaxed)) return;
    Dropped *d = atomic_exchange_explicit(&dropped, NULL, memory_order_acquire);
    while (d) {
        Dropped *next = d->next;
        RedisModule_FreeString(NULL, d->string);
        RedisModule_Free(d);
        d = next;
    }
}

/* ---- arena --------------------------------------------------------------------------------------------------------- */

/* The first block holds a common command's plan; later ones grow with the job, so that a long command takes few. */
enum { ARENA_FIRST = 1024 - 32, ARENA_MAX = 64 * 1024 };

typedef struct ArenaBlock {
    struct ArenaBlock *next;
    size_t size;
    char data[];
} ArenaBlock;

static void arena_grow(Arena *a, size_t n) {
    size_t size = a->blocks ? 2 * a->blocks->size : ARENA_FIRST;
    if (size > ARENA_MAX) size = ARENA_MAX;
    if (size < n) size = n;
    ArenaBlock *b = RedisModule_Alloc(sizeof(*b) + size);
    b->size = size;
    b->next = a->blocks;
    a->blocks = b;
    a->next = b->data;
    a->end = b->data + size;
}

void *arena_alloc(Arena *a, size_t n) {
    n = n ? (n + 7) & ~(size_t)7 : 8; /* never the same address twice, never NULL */
    if ((size_t)(a->end - a->next) < n) arena_grow(a, n);
    void *p = a->next;
    a->next += n;
    return memset(p, 0, n);
}

Slice arena_copy(Arena *a, Slice s) {
    char *copy = arena_alloc(a, s.n + 1);
    if (s.n) memcpy(copy, s.p, s.n);
    return (Slice){copy, s.n};
}

void arena_free(Arena *a) {
    for (ArenaBlock *b = a->blocks, *next; b; b = next) {
        next = b->next;
        RedisModule_Free(b);
    }
    *a = (Arena){0};
}

/* ---- blobs --------------------------------------------------------------------------------------------------------- */

Blob *blob_new(size_t len) {
    if (len > SIZE_MAX / 2) return NULL;
    Blob *b = mem_try(sizeof(*b) + len, SIZE_MAX);
    if (!b) return NULL;
    atomic_init(&b->refs, 1);
    b->len = len;
    return b;
}

Blob *blob_ref(Blob *b) {
    atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
    return b;
}

void blob_unref(Blob *b) {
    if (b && atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1) RedisModule_Free(b);
}

/* ---- names --------------------------------------------------------------------------------------------------------- */

Names names_new(int n, const Slice *items) {
    if (n == 0) return (Names){0, NULL};
    size_t bytes = (size_t)n * sizeof(Slice);
    for (int i = 0; i < n; i++) bytes += items[i].n + 1;
    Names names = {n, RedisModule_Alloc(bytes)};
    char *p = (char *)(names.item + n);
    for (int i = 0; i < n; i++) {
        names.item[i] = (Slice){p, items[i].n};
        if (items[i].n) memcpy(p, items[i].p, items[i].n);
        p[items[i].n] = '\0';
        p += items[i].n + 1;
    }
    return names;
}

void names_free(Names *n) {
    RedisModule_Free(n->item);
    *n = (Names){0, NULL};
}
