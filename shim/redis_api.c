/* redis_api.c -- finds the server's module API at load time. See redis_api.h. */
#include "redis_api.h"

#define API_DEFINE(ret, name, args, wire) ret(*RedisModule_##name) args;
API_FUNCTIONS(API_DEFINE, API_DEFINE)

typedef int (*GetApi)(const char *name, void *target);

typedef struct {
    const char *name;
    void *target;
    int required;
} Entry;

#define API_REQUIRED(ret, name, args, wire) { "RedisModule_" wire, (void *)&RedisModule_##name, 1 },
#define API_OPTIONAL(ret, name, args, wire) { "RedisModule_" wire, (void *)&RedisModule_##name, 0 },
static const Entry table[] = { API_FUNCTIONS(API_REQUIRED, API_OPTIONAL) };
enum { ENTRIES = sizeof(table) / sizeof(table[0]) };

const char *redis_api_load(RedisModuleCtx *ctx) {
    GetApi get = (GetApi)((void **)ctx)[0]; /* the published convention: a context begins with its lookup function */
    const char *missing = NULL;
    for (int i = 0; i < ENTRIES; i++)
        if (get(table[i].name, table[i].target) != REDISMODULE_OK && table[i].required && !missing) missing = table[i].name;
    return missing;
}

const char *redis_api_missing(int n) {
    for (int i = 0; i < ENTRIES; i++)
        if (!*(void **)table[i].target && n-- == 0) return table[i].name;
    return NULL;
}
