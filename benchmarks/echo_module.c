/* echo_module.c -- the floor that any command answered by another thread stands on.
 *
 * ECHO.BLOCKED blocks its client, hands it to one plain C thread (a mutex and a condition), which unblocks it at once. What a run costs beyond
 * this and the library's own call is the price of the module. */
#include "../shim/redis_api.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct Item {
    RedisModuleBlockedClient *bc;
    struct Item *next;
} Item;

static Item *head, **tail = &head;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ready = PTHREAD_COND_INITIALIZER;

static int reply(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) { return RedisModule_ReplyWithSimpleString(ctx, "OK"); }
static void release(RedisModuleCtx *ctx, void *item) { free(item); }

static void *serve(void *unused) {
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!head) pthread_cond_wait(&ready, &lock);
        Item *item = head;
        head = item->next;
        if (!head) tail = &head;
        pthread_mutex_unlock(&lock);
        RedisModule_UnblockClient(item->bc, item);
    }
    return NULL;
}

static int echo_blocked(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    Item *item = malloc(sizeof(*item));
    item->bc = RedisModule_BlockClient(ctx, reply, NULL, release, 0);
    item->next = NULL;
    pthread_mutex_lock(&lock);
    *tail = item;
    tail = &item->next;
    pthread_cond_signal(&ready);
    pthread_mutex_unlock(&lock);
    return REDISMODULE_OK;
}

__attribute__((visibility("default"))) int RedisModule_OnLoad(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    pthread_t thread;
    if (redis_api_load(ctx)) return REDISMODULE_ERR;
    RedisModule_SetModuleAttribs_(ctx, "echo", 1, 1);
    if (RedisModule_CreateCommand(ctx, "echo.blocked", echo_blocked, "readonly", 0, 0, 0) != REDISMODULE_OK) return REDISMODULE_ERR;
    return pthread_create(&thread, NULL, serve, NULL) ? REDISMODULE_ERR : REDISMODULE_OK;
}
