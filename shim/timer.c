/* timer.c -- the thread that watches deadlines, and what the watchdog asks.
 *
 * A queued request is released at its TIMEOUT although every worker is busy, so neither workers nor the main thread can be the ones to
 * notice. Deadlines sit in a binary heap; the thread sleeps until the earliest, or until an earlier one arrives. Clients that always send a
 * TIMEOUT of days cost one heap entry each and never wake it.
 *
 * The watchdog is another thread, a Python one, because ending a run of ONNX Runtime means a call into its library. It waits here
 * without the GIL. All runs have the same limit, so the earliest start is the earliest end: a new run needs to wake it only when it
 * sleeps without any due time. */
#include "ai.h"

#include <time.h>

static Job **heap;
static int heap_count, heap_room;
static pthread_cond_t timer_cond, watch_cond;
static int64_t timer_sleeps_until;
static _Atomic bool watch_sleeps; /* without a due time */

/* ---- the heap, under ai_lock ------------------------------------------------------------------------------------------------ */

static void heap_put(int at, Job *job) {
    heap[at] = job;
    job->heap_at = at;
}

static void heap_up(int at) {
    Job *job = heap[at];
    while (at && heap[(at - 1) / 2]->deadline_us > job->deadline_us) {
        heap_put(at, heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    heap_put(at, job);
}

static void heap_down(int at) {
    Job *job = heap[at];
    for (int child; (child = 2 * at + 1) < heap_count; at = child) {
        if (child + 1 < heap_count && heap[child + 1]->deadline_us < heap[child]->deadline_us) child++;
        if (heap[child]->deadline_us >= job->deadline_us) break;
        heap_put(at, heap[child]);
    }
    heap_put(at, job);
}

void heap_push(Job *job) {
    if (heap_count == heap_room) {
        heap_room = heap_room ? heap_room * 2 : 64;
        heap = RedisModule_Realloc(heap, (size_t)heap_room * sizeof(*heap));
    }
    heap_put(heap_count++, job);
    heap_up(job->heap_at);
    timer_wake(job->deadline_us + 1);
}

void heap_remove(Job *job) {
    int at = job->heap_at;
    if (at < 0) return;
    job->heap_at = -1;
    Job *last = heap[--heap_count];
    if (last == job) return;
    heap_put(at, last);
    heap_up(at);
    heap_down(last->heap_at);
}

Job *heap_first(void) { return heap_count ? heap[0] : NULL; }

/* ---- the timer thread --------------------------------------------------------------------------------------------------------- */

void timer_wake(int64_t due) {
    if (due < timer_sleeps_until) pthread_cond_signal(&timer_cond);
}

static void sleep_until(pthread_cond_t *cond, int64_t due) {
    if (due == INT64_MAX) {
        pthread_cond_wait(cond, &ai_lock);
        return;
    }
    struct timespec t = { due / 1000000, due % 1000000 * 1000 };
    pthread_cond_timedwait(cond, &ai_lock, &t);
}

static void *timer_main(void *unused) {
    while (!ai_closing) {
        int64_t due;
        jobs_expire(now_us(), &due);
        pthread_mutex_lock(&ai_lock);
        Job *first = heap_first(); /* it may have changed while the lock was free */
        timer_sleeps_until = first ? first->deadline_us + 1 : INT64_MAX;
        if (!ai_closing && now_us() < timer_sleeps_until) sleep_until(&timer_cond, timer_sleeps_until);
        timer_sleeps_until = 0;
        pthread_mutex_unlock(&ai_lock);
    }
    return NULL;
}

static void cond_init_monotonic(pthread_cond_t *cond) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
}

static void make_conditions(void) {
    cond_init_monotonic(&timer_cond);
    cond_init_monotonic(&watch_cond);
}

void timer_prepare(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_conditions);
}

int timer_start(void) {
    return thread_start("ai-timer", 0, timer_main, NULL);
}

/* ---- the watchdog ------------------------------------------------------------------------------------------------------------- */

/* A run past the limit that the watchdog has not seen; else NULL and when the next one would be. */
static Worker *overdue_worker(int64_t now, int64_t *next_due) {
    int64_t limit = config.model_execution_timeout * 1000;
    *next_due = INT64_MAX;
    for (RunQueue *q = runqueues; q; q = q->next)
        for (Worker *w = q->workers; w; w = w->next) {
            if (!w->run_started_us || w->overdue_seen) continue;
            int64_t due = w->run_started_us + limit;
            if (now > due) return w;
            if (due + 1 < *next_due) *next_due = due + 1;
        }
    return NULL;
}

void watch_started(void) {
    if (!watch_sleeps) return;
    pthread_mutex_lock(&ai_lock);
    pthread_cond_signal(&watch_cond);
    pthread_mutex_unlock(&ai_lock);
}

void watch_limit_changed(void) {
    timer_prepare();
    pthread_mutex_lock(&ai_lock);
    pthread_cond_signal(&watch_cond);
    pthread_mutex_unlock(&ai_lock);
}

bool watch_overdue(Overdue *run) {
    Worker *w = NULL;
    pthread_mutex_lock(&ai_lock);
    while (!ai_closing) {
        int64_t due;
        if ((w = overdue_worker(now_us(), &due))) break;
        watch_sleeps = due == INT64_MAX;
        sleep_until(&watch_cond, due);
        watch_sleeps = false;
    }
    if (w) {
        w->overdue_seen = true;
        const char *name = w->running->key;
        *run = (Overdue){ w, w->run_started_us, w->thread, w->running->id, text("%s", name ? name : "") };
    }
    pthread_mutex_unlock(&ai_lock);
    return w != NULL;
}

bool watch_still_runs(const Overdue *run) {
    pthread_mutex_lock(&ai_lock);
    bool same = run->worker->run_started_us == run->started_us;
    pthread_mutex_unlock(&ai_lock);
    return same;
}
