/* loader.c -- the inbox of the loader: the Python thread that imports backends and opens and closes what runs on them.
 *
 * Opening is slow (an import takes seconds, torch.jit.load holds the GIL), so it happens on one thread of its own, in order of
 * arrival, never on a worker and never on the main thread. Jobs that need a program not yet open wait in the program's list, each with its
 * own deadline. A program is opened at most once: who asks again finds it opening. */
#include "ai.h"

static Message *inbox, **inbox_tail = &inbox;
static int inbox_count;
static pthread_cond_t inbox_ready = PTHREAD_COND_INITIALIZER, opening_done = PTHREAD_COND_INITIALIZER;
static char *_Atomic versions[BACKEND_COUNT]; /* of loaded backends; set once */

_Atomic int64_t loads_wanted, loads_done, loads_failed;
_Atomic int64_t sessions_open[SESSION_KINDS], session_bytes[SESSION_KINDS];

/* ---- inbox ------------------------------------------------------------------------------------------------------------------- */

void inbox_post_locked(Message m) {
    Message *copy = RedisModule_Alloc(sizeof(*copy));
    *copy = m;
    copy->next = NULL;
    *inbox_tail = copy;
    inbox_tail = &copy->next;
    inbox_count++;
    loads_wanted += m.kind == MSG_OPEN;
    pthread_cond_signal(&inbox_ready);
}

void inbox_post(Message m) {
    pthread_mutex_lock(&ai_lock);
    inbox_post_locked(m);
    pthread_mutex_unlock(&ai_lock);
}

Message *inbox_pop(void) {
    pthread_mutex_lock(&ai_lock);
    while (!inbox) pthread_cond_wait(&inbox_ready, &ai_lock);
    Message *m = inbox;
    inbox = m->next;
    if (!inbox) inbox_tail = &inbox;
    inbox_count--;
    pthread_mutex_unlock(&ai_lock);
    return m;
}

Message *inbox_withdraw(const Job *store) {
    Message **at = &inbox;
    while (*at && (*at)->job != store) at = &(*at)->next;
    Message *m = *at;
    if (!m) return NULL;
    *at = m->next;
    if (!*at) inbox_tail = at;
    inbox_count--;
    loads_wanted--;
    return m;
}

int inbox_length(void) { return inbox_count; }

/* ---- opening ------------------------------------------------------------------------------------------------------------------ */

void loader_want(Program *p) {
    if (p->state != PROGRAM_UNOPENED) return;
    p->state = PROGRAM_OPENING;
    inbox_post_locked((Message){ .kind = MSG_OPEN, .program = program_ref(p) });
}

void loader_join_blob(Job *job) {
    Program *p = job->program;
    if (p->blob || job->error) return;
    size_t total = 0, at = 0;
    for (int i = 0; i < job->nheld; i++) total += slice_of(job->held[i]).n; /* bounded: they are all in memory */
    Blob *blob = blob_new(total);
    if (!blob) {
        job->error = text("ERR not enough memory for the model");
        return;
    }
    for (int i = 0; i < job->nheld; i++) {
        Slice part = slice_of(job->held[i]);
        memcpy(blob->data + at, part.p, part.n);
        at += part.n;
    }
    p->blob = blob;
}

/* Publishes the outcome, then sends off whoever waited for it. */
static void opening_ended(Program *p, Job *store) {
    Job *ended = NULL;
    pthread_mutex_lock(&ai_lock);
    program_opened_locked(p, &ended);
    pthread_cond_broadcast(&opening_done);
    pthread_mutex_unlock(&ai_lock);
    jobs_finish(ended);
    if (store) job_finish(store);
}

void session_count(const Program *p, int by) {
    int kind = p->kind == PROGRAM_SCRIPT ? BACKEND_COUNT : p->backend;
    sessions_open[kind] += by;
    if (p->blob) session_bytes[kind] += by * (int64_t)p->blob->len;
}

void loader_opened(Program *p, Job *store, Names inputs, Names outputs) {
    loads_done++;
    session_count(p, 1);
    pthread_mutex_lock(&ai_lock);
    if (!p->names_known) {
        p->inputs = inputs;
        p->outputs = outputs;
        inputs = outputs = (Names){ 0, NULL };
        p->names_known = true;
    }
    p->state = PROGRAM_OPEN;
    pthread_mutex_unlock(&ai_lock);
    names_free(&inputs);
    names_free(&outputs);
    opening_ended(p, store);
}

void loader_failed(Program *p, Job *store, const char *error) {
    loads_failed++;
    pthread_mutex_lock(&ai_lock);
    p->open_error = text("%s", error);
    p->state = PROGRAM_FAILED;
    pthread_mutex_unlock(&ai_lock);
    if (store && !store->error) store->error = text("%s", error);
    opening_ended(p, store);
}

const char *program_wait_open(Program *p) {
    pthread_mutex_lock(&ai_lock);
    loader_want(p);
    while (p->state == PROGRAM_OPENING) pthread_cond_wait(&opening_done, &ai_lock);
    const char *error = p->state == PROGRAM_FAILED ? p->open_error : NULL;
    pthread_mutex_unlock(&ai_lock);
    return error;
}

/* ---- backends ------------------------------------------------------------------------------------------------------------------ */

void loader_backend_done(Backend b, const char *version, Job *job) {
    if (version) {
        const char *path = config.backend_path[b];
        versions[b] = text("%s", version);
        if (path) ai_log("notice", "%s backend loaded from %s", backend_names[b], path); /* the package's own line follows */
    } else if (job) {
        job->error = text("ERR error loading backend");
    }
    if (job) job_finish(job);
}

bool loader_backend_loaded(Backend b) { return versions[b] != NULL; }
const char *loader_backend_version(Backend b) { return versions[b]; }
