/* flow_events.c -- keyspace events for flows: from the server's notification, on the main thread, to an item of the flow queue.
 *
 * The server tells of every write once the first KeysReader or StreamReader is registered, and not before. So the walk comes to its end
 * early: what no registration wants costs a few comparisons; what one wants, a copy of the key's name. Values are read by the flow when it
 * runs, with its user's rights, and may be newer by then. A flow is not told of what it did itself (ai_nested_origin): one that writes the
 * key it reads would never end. Flows that write each other's keys can still do that. A key that is found expired or that is evicted while a
 * flow's command runs is not its doing. */
#include "ai.h"

#include <strings.h>

static bool begins_with(Slice s, Slice prefix, bool whole) {
    if (whole ? s.n != prefix.n : s.n < prefix.n) return false;
    return !prefix.n || memcmp(s.p, prefix.p, prefix.n) == 0;
}

/* A flow that named no events wants all. */
static bool wants_event(const Flow *f, const char *event) {
    bool named = false;
    for (int i = 0; i + 1 < f->args.n; i += 2) {
        if (strcmp(f->args.item[i].p, "events") != 0) continue;
        if (strcasecmp(f->args.item[i + 1].p, event) == 0) return true;
        named = true;
    }
    return !named;
}

static bool own_doing(const Flow *f, int type) {
    return ai_nested_origin && strcmp(ai_nested_origin, f->id) == 0 && !(type & (NOTIFY_EXPIRED | NOTIFY_EVICTED));
}

static bool wants(const Flow *f, int db, Slice key, int type, const char *event) {
    if (f->state != FLOW_LIVE && f->state != FLOW_WAKING) return false;
    if (f->reader == READER_COMMAND || f->db != db || !begins_with(key, f->prefix, f->exact)) return false;
    if (own_doing(f, type)) return false;
    return f->reader == READER_STREAM ? strcmp(event, "xadd") == 0 : wants_event(f, event);
}

static void drop(Flow *f) {
    flows_dropped++;
    pthread_mutex_lock(&ai_lock);
    f->dropped++;
    pthread_mutex_unlock(&ai_lock);
}

static FlowItem *event_item(FlowItemKind kind, Flow *f, Slice key, const char *event) {
    FlowItem *item = flow_item(kind, f, NULL);
    item->db = f->db;
    item->key = arena_copy(&item->arena, key);
    item->event = arena_copy(&item->arena, (Slice){ event, strlen(event) });
    return item;
}

static void tell(Flow *f, Slice key, const char *event) {
    if (f->reader == READER_KEYS) {
        if (flow_queue_full()) drop(f);
        else flow_send(event_item(ITEM_EVENT, f, key, event));
        return;
    }
    pthread_mutex_lock(&ai_lock);
    bool waits = flow_stream_waits(f, key);
    pthread_mutex_unlock(&ai_lock);
    if (waits) return; /* whoever takes that notice has yet to read the stream */
    FlowItem *item = event_item(ITEM_STREAM, f, key, event);
    pthread_mutex_lock(&ai_lock);
    flow_stream_enter(item);
    pthread_mutex_unlock(&ai_lock);
    flow_send(item);
}

/* Holder: on the main thread, or on one of ours inside a command. */
static int on_event(RedisModuleCtx *ctx, int type, const char *event, RedisModuleString *keyname) {
    const Slice key = slice_of(keyname);
    const int db = RedisModule_GetSelectedDb(ctx);
    for (FlowSource *s = flows_first(); s; s = s->next)
        for (Flow *f = s->flows; f; f = f->next)
            if (wants(f, db, key, type, event)) tell(f, key, event);
    return REDISMODULE_OK;
}

void flow_events_want(RedisModuleCtx *ctx) {
    static bool subscribed;
    if (subscribed) return;
    subscribed = RedisModule_SubscribeToKeyspaceEvents(ctx, NOTIFY_CHANGES, on_event) == REDISMODULE_OK;
    if (!subscribed) ai_log("warning", "could not subscribe to keyspace events: flows hear of none");
}
