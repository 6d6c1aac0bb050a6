/* ai.h -- every struct of the shim, who owns it, and which thread may touch it. Read this first.
 *
 * Threads. The HOLDER is whoever holds the Redis lock: the main thread, or a worker inside redis.execute. WORKERS are Python
 * threads that run models; the LOADER is the Python thread that opens and closes sessions; the TIMER is a C thread.
 *
 * Rules.
 * 1. The holder never takes the GIL and never waits. Nothing in this header knows that Python exists.
 * 2. Lock order: GIL (dropped first) -> Redis lock -> ai_lock. `ai_lock` is the one lock of the shim. It guards run queues,
 *    the state of jobs and their deadlines, programs' opening state and the inbox; it is held for some hundred nanoseconds,
 *    never across a Redis call that can call back, an allocation by a size from the wire, or a wait (but for a condition's).
 *    One lock per queue was the alternative: a DAG's ops live in several queues and a timeout must leave all of them at once,
 *    so every path would take two or more in an order; two cores do not contend for one short lock.
 * 3. Keyspace values (Tensor, Program) are reference counted by atomics and immutable once another thread can see them, but
 *    for what is marked atomic. The last reference may go anywhere: on the main thread, a worker, or Redis's lazy-free thread.
 * 4. RedisModuleStrings have plain counters: only the holder frees them. Elsewhere they go to the drop list (strings_drop). */
#ifndef AI_H
#define AI_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* pthread_setname_np, pthread_getcpuclockid, dladdr */
#endif

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "redis_api.h"

#define AI_VERSION 10207 /* the RedisAI release whose interface this is */
#define AI_VERSION_TEXT "1.2.7"
#define AI_ENCVER 4
#define AI_MAX_DIMS 64

typedef struct Slice {
    const char *p;
    size_t n;
} Slice;

/* ---- module.c ------------------------------------------------------------------------------------------------------- */

extern pthread_mutex_t ai_lock;
extern RedisModuleType *ai_tensor_type, *ai_model_type, *ai_script_type;
extern const char *ai_git_sha;    /* of the build, for INFO (interp.c) */
extern int ai_server_version;   /* 0x00MMmmpp; read at load */
extern bool ai_can_trim;        /* argument strings may be kept instead of copied (see tensor.c) */
extern _Atomic bool ai_closing; /* set by the Shutdown event; workers finish what they hold and take no more */
extern _Atomic bool ai_is_replica; /* follows the role; read by any thread */

extern RedisModuleCtx *ai_log_ctx; /* names the module in log lines; any thread */
#define ai_log(level, ...) RedisModule_Log(ai_log_ctx, level, __VA_ARGS__)
int64_t now_us(void); /* CLOCK_MONOTONIC, microseconds */
/* Starts a thread with a stack of that size (0: the default), named for `top`. It and the threads that it starts take no signals: those are
 * the server's. What a fault of its own raises is not blocked, or the server could not report the crash. Returns 0 or an errno. */
int thread_start(const char *name, size_t stack, void *(*run)(void *), void *argument);

/* Holder, after each write of ours (the module signals no key implicitly, so that a refused write touches no WATCH): those who WATCH or
 * cache the key hear of it, then who subscribed to keyspace events of class `d`. */
static inline void announce(RedisModuleCtx *ctx, RedisModuleString *key, const char *event) {
    RedisModule_SignalModifiedKey(ctx, key);
    RedisModule_NotifyKeyspaceEvent(ctx, NOTIFY_MODULE, event, key);
}

/* ---- commands.c ------------------------------------------------------------------------------------------------------ */

int commands_register(RedisModuleCtx *ctx); /* logs and returns ERR when it cannot */
int commands_register_flows(RedisModuleCtx *ctx); /* the same for RG.* */

/* ---- mem.c: memory and strings -------------------------------------------------------------------------------------- */

/* Sizes from the wire end here: NULL when `n` is beyond `limit` or memory is short; never aborts, never evicts. Any thread. */
void *mem_try(size_t n, size_t limit);
bool mul_overflow(size_t a, size_t b, size_t *out);
Slice slice_of(const RedisModuleString *s);
bool slice_is(Slice s, const char *upper); /* case-insensitive comparison with an upper-case word */
bool slice_to_int(Slice s, int64_t *out);  /* Redis's own strict integer grammar: no blanks, signs other than '-', leading zeros */
bool slice_to_double(Slice s, double *out); /* Redis's own grammar: decimal, hexadecimal, inf; no nan, no blanks, in range */
char *slice_dup(Slice s);                  /* NUL-terminated copy, RedisModule_Alloc'ed */
char *text(const char *format, ...) __attribute__((format(printf, 1, 2), nonnull(1))); /* formatted, RedisModule_Alloc'ed */

/* Holder: takes a reference that outlives the command. The result may be another string than `s`. */
RedisModuleString *strings_keep(RedisModuleString *s);
/* Any thread: gives up such a reference; the holder's next strings_drain() frees it. */
void strings_drop(RedisModuleString *s);
void strings_drain(void); /* holder only */

/* A bump allocator that lives as long as its job: names, lists and plans, freed together. Not thread-safe. */
typedef struct Arena {
    struct ArenaBlock *blocks;
    char *next, *end;
} Arena;
void *arena_alloc(Arena *a, size_t n); /* zeroed, 8-aligned; n is bounded by the command's own length, never by a number in it */
Slice arena_copy(Arena *a, Slice s);
void arena_free(Arena *a);

/* Bytes shared between copies of a value and the sessions opened from it. */
typedef struct Blob {
    atomic_int refs;
    size_t len;
    char data[];
} Blob;
Blob *blob_new(size_t len); /* NULL when memory is short; refs 1; contents undefined */
Blob *blob_ref(Blob *b);
void blob_unref(Blob *b); /* any thread, NULL is fine */

/* A list of names, in one allocation. */
typedef struct Names {
    int n;
    Slice *item; /* each NUL-terminated as well */
} Names;
Names names_new(int n, const Slice *items); /* copies; n = 0 gives {0, NULL} */
void names_free(Names *n);

/* ---- tensor.c ------------------------------------------------------------------------------------------------------- */

typedef enum { T_FLOAT, T_DOUBLE, T_INT8, T_INT16, T_INT32, T_INT64, T_UINT8, T_UINT16, T_BOOL, T_STRING, T_COUNT } Dtype;

typedef struct DtypeRow {
    const char *name;   /* on the wire, upper case */
    uint8_t code, bits; /* in RDB: kind (0 int, 1 unsigned, 2 float, 6 bool, 7 string) and width */
    uint8_t size;       /* bytes per element; STRING 1 */
    const char *format; /* struct module's letter, for the buffer protocol; NULL for STRING */
} DtypeRow;
extern const DtypeRow dtypes[T_COUNT];

/* A tensor: shape and C-contiguous data, immutable once shared. Header, dims, offsets and data are one allocation, with data
 * aligned to 64 bytes, unless `source` holds the bytes: a big blob is kept as the client's own string (no copy on the main
 * thread); the first worker that needs it aligned makes a copy and publishes it in `aligned`. */
typedef struct Tensor {
    atomic_int refs;
    uint8_t dtype;             /* Dtype */
    uint8_t ndim;              /* <= AI_MAX_DIMS; 0 = scalar */
    int64_t length;            /* elements */
    size_t nbytes;             /* bytes of data; STRING: all elements with their NULs */
    const char *bytes;         /* data for reading; may be unaligned while `source` is set. NULL only when nbytes == 0 */
    uint64_t *offsets;         /* STRING: where each element begins; else NULL */
    RedisModuleString *source; /* the retained argument, or NULL */
    uint64_t resident;         /* not 0: the data is in a device's memory, under this number on the Python side; no bytes here. Only between
                                * the ops of a DAG, never in a key */
    char *_Atomic aligned;     /* 64-byte aligned bytes (== bytes when source is NULL); NULL until made */
    int64_t dims[];            /* ndim */
} Tensor;

/* Uninitialised data (STRING: offsets too). NULL and *error (static text) when the shape overflows or is beyond MAX_TENSOR_BYTES, or memory is
 * short. `nbytes` is given for STRING and ignored otherwise. Any thread. */
Tensor *tensor_new(Dtype dtype, int ndim, const int64_t *dims, size_t nbytes, const char **error);
/* The same without MAX_TENSOR_BYTES, for what was accepted once: a server's own file, what its master holds. */
Tensor *tensor_load(Dtype dtype, int ndim, const int64_t *dims, size_t nbytes, const char **error);
/* A tensor whose data stays where the backend has it. Its last reference gives `id` back through resident_released(). */
Tensor *tensor_resident(Dtype dtype, int ndim, const int64_t *dims, uint64_t id, const char **error);
int resident_released(uint64_t *ids, int room); /* any thread: numbers that nobody refers to any more; returns how many */
/* Product of dims in *length; false when it or its bytes overflow. Dims must be >= 0. */
bool tensor_length(Dtype dtype, int ndim, const int64_t *dims, int64_t *length);
/* Fills offsets from the data of a STRING tensor; false when it does not hold exactly `length` NUL-terminated items. */
bool tensor_index_strings(Tensor *t);
Tensor *tensor_ref(Tensor *t);
void tensor_unref(Tensor *t);        /* any thread, NULL is fine */
char *tensor_aligned(Tensor *t);     /* worker: 64-byte aligned data; may copy; NULL when memory is short (or no bytes) */
bool dtype_parse(Slice name, Dtype *out);
/* Rows [from, from + count) of dim 0, and the concatenation along dim 0. Worker. NULL + *error on overflow or short memory. */
Tensor *tensor_rows(Tensor *t, int64_t from, int64_t count, const char **error);
Tensor *tensor_concat(Tensor *const *parts, int n, const char **error);

/* The one parser of AI.TENSORSET: argv[0] is the dtype, then dims and data. Returns a tensor with one reference, or NULL and a static
 * text. `strings`, when not NULL, are the same arguments as Redis strings, of which a big blob may be kept. Holder only. */
bool is_replay(RedisModuleCtx *ctx); /* the command comes from the AOF or from the master, where it was accepted once */
Tensor *tensor_parse(const Slice *argv, int argc, RedisModuleString **strings, const char **error);
/* The one parser of AI.TENSORGET's options (after the key): what to show, a TENSORGET_* mask. NULL, or a static error text. */
enum { TENSORGET_META = 1, TENSORGET_BLOB = 2, TENSORGET_VALUES = 4 };
const char *tensor_get_options(const Slice *argv, int argc, int *show);
void tensor_reply(RedisModuleCtx *ctx, Tensor *t, int show);
/* Writes `t` (takes a reference of its own) under an opened, type-checked key: drops a TTL. Holder only. */
int tensor_store(RedisModuleKey *key, Tensor *t);
void tensor_replicate(RedisModuleCtx *ctx, RedisModuleString *key, Tensor *t);
int cmd_tensorset(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_tensorget(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
/* Opens a key and returns its tensor (borrowed), or NULL and the error text (static). Holder only. */
Tensor *tensor_lookup(RedisModuleCtx *ctx, RedisModuleString *key, const char **error);

/* ---- program.c: models and scripts ---------------------------------------------------------------------------------- */

typedef enum { BACKEND_TF, BACKEND_TFLITE, BACKEND_TORCH, BACKEND_ONNX, BACKEND_COUNT } Backend; /* numbers are those of the RDB format */
extern const char *const backend_names[BACKEND_COUNT];

typedef enum { PROGRAM_MODEL, PROGRAM_SCRIPT } ProgramKind;
typedef enum { PROGRAM_UNOPENED, PROGRAM_OPENING, PROGRAM_OPEN, PROGRAM_FAILED } ProgramState;

typedef struct LaneList {
    struct Lane *first, *last;
} LaneList;

typedef struct Stats { /* AI.INFO; each written by workers, reset by the holder */
    _Atomic int64_t duration_us, samples, calls, errors;
    _Atomic int64_t batches, batched_rows, wait_us; /* our own: batches run, requests in them, time spent in the run queue */
    _Atomic int64_t batch_sizes[16];                /* batches by log2 of the number of requests in them */
} Stats;

extern Stats all_runs; /* the same over all models and scripts since the start (runqueue.c) */

/* What a key of type AI__MODEL or AI_SCRIPT holds. Fields are fixed before the program is published, but for those marked. */
typedef struct Program {
    atomic_int refs;
    uint8_t kind;                      /* ProgramKind */
    uint8_t backend;                   /* Backend; scripts: BACKEND_TORCH */
    uint64_t id;                       /* never reused; names the session on the Python side */
    char *device;                      /* as given by the client */
    Slice tag;                         /* NUL-terminated as well */
    int64_t batchsize, minbatchsize;   /* rows */
    int64_t minbatchtimeout;           /* milliseconds */
    Blob *blob;                        /* model bytes or script source */
    Names entry_points;                /* scripts */
    Names inputs, outputs;             /* models: declared (TF), stored (RDB) or found when opened: written once under ai_lock */
    _Atomic bool names_known;          /* inputs and outputs may be read */
    struct RunQueue *queue;            /* of the device; set at creation, never freed */
    Stats stats;
    char *_Atomic key;                 /* its name, for the scans and log lines; NULL = not known. Written by the holder under ai_lock,
                                          after a RENAME as well: who is not the holder copies it under ai_lock */
    size_t key_len;                    /* as key */
    int db;
    /* under ai_lock */
    uint8_t state;                     /* ProgramState */
    char *open_error;                  /* state FAILED: what a client reads */
    struct Job *waiting, **waiting_tail; /* jobs that wait for the opening */
    LaneList ripe, unripe;             /* its lanes in `queue`: those that may run, next in turn first; those that wait for company, longest first */
    struct Program *turn_prev, *turn_next; /* ring of the programs with ops in `queue`; NULL = not in it */
    struct Program *prev, *next;       /* list of programs in the keyspace, newest first (programs_lock) */
    bool listed;
    bool dropped;                      /* its key is gone: requests that wait for a fuller batch run as they are. Under ai_lock */
} Program;

Program *program_new(ProgramKind kind, Backend backend, Slice device); /* refs 1; NULL when device is too long */
Program *program_ref(Program *p);
void program_unref(Program *p); /* any thread, not under ai_lock: the last one tells the loader to close the session */
void program_list(Program *p, RedisModuleString *key, int db); /* now in the keyspace; holder */
void program_unlist(Program *p);                              /* no longer; any thread */
/* A copy of the name of its key, for the caller to free; NULL = not known. Any thread, not under ai_lock. */
char *program_key(Program *p);
/* Every listed program, newest first. `fn` runs under the list's lock: it takes references and nothing else. Any thread. */
void programs_each(void (*fn)(Program *p, void *u), void *u);
Program *program_lookup(RedisModuleCtx *ctx, RedisModuleString *key, ProgramKind kind, const char **error); /* borrowed; holder */
/* Writes under a type-checked key (takes over the caller's reference), lists it, drops a TTL. Holder only. */
int program_store(RedisModuleCtx *ctx, RedisModuleString *keyname, RedisModuleKey *key, Program *p);
void program_announce(RedisModuleCtx *ctx, RedisModuleString *keyname, ProgramKind kind); /* after the key was closed */
int cmd_modelstore(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_modelset(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_modelget(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_modeldel(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_modelscan(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_scriptstore(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_scriptset(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_scriptget(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_scriptdel(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_scriptscan(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
void program_reply(RedisModuleCtx *ctx, Program *p, bool meta, bool blob); /* AI.MODELGET / AI.SCRIPTGET */

/* ---- plan.c: argv -> plan, a pure function -------------------------------------------------------------------------- */

typedef enum { OP_MODEL, OP_SCRIPT, OP_TENSORSET, OP_TENSORGET } OpKind;
typedef enum { OP_WAITING, OP_QUEUED, OP_RUNNING, OP_DONE, OP_FAILED } OpState; /* WAITING at the end = never run: replies NA */

/* One operation. The plan part is fixed; the run part belongs to ai_lock. */
typedef struct Op {
    uint8_t kind;          /* OpKind */
    uint8_t state;         /* OpState */
    int nin, nout;
    int *in, *out;         /* slots */
    Program *program;      /* MODEL, SCRIPT: a reference */
    Slice function;        /* SCRIPT, in the arena, as are keys and args */
    int nkeys, nargs;
    Slice *keys, *args;
    int show;              /* TENSORGET: TENSORGET_* mask */
    struct Op *after;      /* the next op on the same device; starts only when this one has finished. NULL = last */
    struct Job *job;
    struct Lane *lane;     /* while QUEUED */
    struct Op *prev, *next; /* neighbours in the lane */
    int64_t rows;          /* dim 0 that its inputs agree on; 0 = cannot be batched */
    int64_t queued_us;     /* when it was queued; written at push */
    char *error;           /* FAILED: what the client reads; RedisModule_Alloc'ed */
} Op;

typedef struct Output { /* a key to write when all went well */
    int slot;
    int arg; /* index in argv of its name */
} Output;

/* The ops of one device, in text order: they run one after the other, so that what ran before a failure does not depend on luck. */
typedef struct Track {
    struct RunQueue *queue;
    Op *next; /* first op not started; NULL = all were. Under ai_lock */
    Op *last; /* used while planning */
} Track;

typedef enum { REPLY_ONE, REPLY_PER_OP } ReplyForm;

typedef struct Plan {
    uint8_t form;         /* ReplyForm: a single status, or an array with one element per op */
    bool has_script;
    int nops, nslots, noutputs, ntracks;
    Op *ops;
    Track *tracks;
    Tensor **slots;       /* nslots; filled ones hold a reference */
    Output *outputs;
    bool *resident;       /* nslots: read by ops of one GPU's queue alone, so that the data may stay there; NULL = none */
    int64_t timeout_ms;   /* 0 = none */
} Plan;

/* What the planner may ask of the world; `u` is the caller's. A NULL function means "not known": the key walk passes none. */
typedef struct PlanWorld {
    void *u;
    Program *(*program)(void *u, int arg, ProgramKind kind, const char **error); /* a reference, or NULL and the error */
    Tensor *(*tensor)(void *u, int arg, const char **error);                     /* a reference, or NULL and the error */
    Tensor *(*tensorset)(void *u, int arg, int n, const char **error);           /* parses argv[arg .. arg + n): dtype, dims, data */
    void (*key)(void *u, int arg, int access);                                   /* each key, with KEY_* access flags; may be NULL */
    bool enterprise;                                                             /* deprecated commands are refused there */
} PlanWorld;

typedef enum { CMD_MODELEXECUTE, CMD_MODELRUN, CMD_SCRIPTEXECUTE, CMD_SCRIPTRUN, CMD_DAGEXECUTE, CMD_DAGEXECUTE_RO, CMD_DAGRUN,
               CMD_DAGRUN_RO, CMD_COUNT } RunCommand;

/* Plans a command. Returns NULL when it did, else the error text to reply with (in the arena or static). The plan's references belong to
 * the caller either way (plan_release). Reads no clock, blocks on nothing, calls Redis only through `world`. */
const char *plan_make(RunCommand command, const Slice *argv, int argc, const PlanWorld *world, Arena *arena, Plan *plan);
void plan_release(Plan *plan);

/* ---- job.c: one command in flight ----------------------------------------------------------------------------------- */

typedef enum { JOB_RUN, JOB_STORE, JOB_LOADBACKEND, JOB_GET, JOB_FLOW } JobKind;

typedef struct Job {
    uint8_t kind;                 /* JobKind */
    RedisModuleBlockedClient *bc; /* NULL: nobody waits (a store inside MULTI ...), or, for a JOB_RUN, a flow does: `item` */
    int db;                       /* the client's selected database */
    Arena arena;                  /* everything below that is a list or a name */
    Plan plan;                    /* JOB_RUN */
    Program *program;             /* JOB_STORE, JOB_GET: a reference */
    RedisModuleString **held;     /* JOB_STORE: the blob's argument strings, retained */
    int nheld;
    int meta, blob;               /* JOB_GET: what to show */
    struct User *user;            /* plans with scripts: a reference on the caller's ACL user, NULL = not known */
    const char *origin;           /* the id of the flow on whose behalf it runs, in the arena; NULL = none */
    struct FlowItem *item;        /* a run that a flow started: what to put into the flow queue when it has ended; else NULL */
    struct ReplyNode *answer;     /* JOB_FLOW: what the client reads, in the arena */
    char *_Atomic error;          /* JOB_STORE, JOB_LOADBACKEND: what went wrong */
    /* under ai_lock */
    int running;                  /* ops in the hands of workers */
    int queued;                   /* ops in run queues */
    bool failed;                  /* an op failed: no other is started, nothing is written */
    bool timed_out, finished, started;
    bool programs_open;           /* every program of the plan was opened or given up */
    Program *waits_for;           /* whose opening it waits for; borrowed from its plan */
    int64_t deadline_us;          /* 0 = none */
    int heap_at;                  /* place in the deadline heap, -1 = not in it */
    struct Job *next;             /* waiting list, parked list */
    struct Job *older, *newer;    /* neighbours among jobs that block a client (job.c; holder only) */
    bool gone;                    /* the client disconnected: what is queued is dropped, nothing is written */
} Job;

/* True when this context may wait for another thread. The only caller of RM_BlockClient is job_block. */
bool may_block(RedisModuleCtx *ctx);
int cmd_run(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, RunCommand command);
Job *job_new(JobKind kind);
void job_block(RedisModuleCtx *ctx, Job *job); /* holder; after it the job reaches job_finish exactly once */
void job_free(Job *job);                       /* holder; a run that a flow started: any thread */
void job_start(Job *job);                      /* JOB_RUN, holder: queues what is ready, or waits for programs to open */
/* Under ai_lock: an op left a worker. Takes over `error` (NULL = it went well). True when the job has ended: then call job_finish unlocked. */
bool job_op_done(Job *job, Op *op, char *error);
void job_finish(Job *job); /* any thread, no lock held: hands the job to the reply phase, now or when writes are no longer paused */
void jobs_expire(int64_t now, int64_t *next_due); /* timer */
/* Holder: parks or releases finished jobs as writes are paused or not (see reply.c). */
void jobs_pause_check(void);
void job_wait_open(RedisModuleCtx *ctx, Job *job); /* JOB_GET, holder: blocks until job->program is open or failed */
void program_opened_locked(Program *p, Job **ended); /* under ai_lock: sends off what waited for it; those that ended go before *ended */
void jobs_finish(Job *ended);                        /* job_finish for a list, no lock held */

/* ---- reply.c: the reply phase, on the main thread ------------------------------------------------------------------- */

int reply_job(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);  /* Reply callback */
/* Writes a job's outputs, replicates them and replies; also used by commands that never had to wait. */
void reply_run(RedisModuleCtx *ctx, RedisModuleString **argv, Job *job);
void reply_error_line(RedisModuleCtx *ctx, const char *text); /* newlines become spaces */

/* ---- runqueue.c: run queues and batches ----------------------------------------------------------------------------- */

/* FIFO of the ops that may share a batch: one program, same dtypes, same shapes past dim 0. Lives while it holds ops. */
typedef struct Lane {
    Program *program; /* borrowed: each op holds a reference */
    bool batchable;
    bool ripe;                    /* which of the program's lists it is in */
    Op *head, *tail;
    int count;
    int64_t rows;                 /* sum of its ops' rows */
    struct Lane *prev, *next;     /* neighbours in that list */
    uint64_t hash;                /* of what its ops have in common */
    struct Lane *same_bucket;
} Lane;

typedef struct Worker { /* one thread that serves a queue; written by itself */
    clockid_t cpu_clock;
    unsigned long thread;              /* Python's thread ident */
    int64_t run_started_us;            /* under ai_lock; 0 = not running */
    bool overdue_seen;                 /* the watchdog was told of this run */
    Program *running;                  /* borrowed from the batch */
    struct Worker *next;
} Worker;

enum { LANE_BUCKETS = 256 };

typedef struct RunQueue {
    char *device;                      /* upper case; the queue's name */
    pthread_cond_t ready;
    int idle;                          /* workers asleep in runqueue_wait */
    Program *turn;                     /* round robin: the program to look at first; NULL = empty */
    Lane *buckets[LANE_BUCKETS];       /* its lanes by hash */
    _Atomic int length;                /* ops queued; the holder glances at it without the lock */
    _Atomic int waiting;               /* jobs that wait until a program of this device is open; likewise */
    Worker *workers;
    int nworkers;
    struct RunQueue *_Atomic next;     /* list of all queues, oldest first; the holder adds at its end while others walk it */
} RunQueue;
extern RunQueue *_Atomic runqueues;

/* What a worker takes away: ops that run together. */
typedef struct Batch {
    RunQueue *queue;
    Worker *worker;
    Program *program;     /* a reference */
    int n;
    Op **ops;
    int64_t rows;         /* 0 when n == 1 and rows are not known */
    int64_t started_us;
    bool retry;           /* one op of a batch that failed as a whole */
} Batch;

typedef struct BatchLimits {
    int64_t batchsize, minbatchsize, minbatchtimeout_us;
} BatchLimits;
/* The rule that says when a lane's oldest ops may run. Pure. Returns true when due; else *next_due is when to look again (INT64_MAX: never). */
bool batch_due(BatchLimits limits, int64_t rows, int64_t oldest_us, int64_t now, int64_t *next_due);

RunQueue *runqueue_of(Slice device);        /* finds or makes the queue; holder */
bool runqueue_full(const RunQueue *q);      /* MAX_QUEUE reached; holder, no lock: a glance */
void runqueue_push(RunQueue *q, Op *op, int64_t now); /* under ai_lock */
void runqueue_remove(Op *op);               /* under ai_lock */
void runqueue_release(Program *p);          /* under ai_lock: `p` was dropped, so what waits for company is due */
Worker *runqueue_attach(RunQueue *q, unsigned long thread); /* worker thread, once */
/* Under ai_lock, never waits: takes what is due at `now`, else NULL and when to look again (INT64_MAX: when something comes). */
Batch *runqueue_take(RunQueue *q, Worker *w, int64_t now, int64_t *look_again);
/* Worker, without the GIL: waits until ops are due. False when the module is closing. */
bool runqueue_wait(RunQueue *q);
/* Worker, with the GIL or without: takes what is due now; NULL when there is nothing, or another worker was first. Waits for ai_lock only. */
Batch *runqueue_try(RunQueue *q, Worker *w);
/* The batch's op inputs: one tensor per input, gathered along dim 0 when n > 1. References go to `into`. NULL, or an error text. */
const char *batch_gather(Batch *b, int input, Tensor **into);
/* Gives every op its rows of the outputs (NULL entries: not produced) and ends the batch. Takes over references. */
/* AI.INFO: one call. */
void program_count(Program *p, int64_t duration_us, int64_t samples, bool failed);
void batch_finish(Batch *b, Tensor **outputs, int n, int64_t duration_us);
void batch_fail(Batch *b, const char *error);
/* Splits a failed batch into batches of one op each, for a retry; `into` has room for b->n. The batch itself is freed. */
void batch_split(Batch *b, Batch **into);
void batch_restart(Batch *b); /* a retry begins now: the watchdog counts from here */
void runqueues_close(void);

/* ---- loader.c: the inbox of the Python loader thread ----------------------------------------------------------------- */

typedef enum { MSG_OPEN, MSG_CLOSE, MSG_BACKEND } MessageKind;
typedef struct Message {
    uint8_t kind;
    uint8_t backend;      /* BACKEND */
    Program *program;     /* OPEN: a reference */
    uint64_t id;          /* CLOSE */
    Job *job;             /* BACKEND, OPEN for a store: the job that waits; NULL = nobody */
    struct Message *next;
} Message;
void inbox_post(Message m);                   /* any thread; takes ai_lock */
void inbox_post_locked(Message m);            /* the same, under ai_lock */
Message *inbox_pop(void);                     /* loader, without the GIL: waits */
/* Under ai_lock: takes back the message of a store that the loader has not begun; the caller's then, with its reference. NULL: it has begun. */
Message *inbox_withdraw(const Job *store);
int inbox_length(void); /* for tests of the queues */
void loader_want(Program *p); /* under ai_lock: asks for the opening once */
void loader_opened(Program *p, Job *store, Names inputs, Names outputs); /* loader thread; takes over the names */
void loader_failed(Program *p, Job *store, const char *error);
void loader_join_blob(Job *job);              /* loader: argument strings -> program->blob; sets job->error when it cannot */
/* Any thread that holds neither the GIL nor a lock: waits until `p` is open. NULL, or why it cannot be opened (text that lives as long as p). */
const char *program_wait_open(Program *p);
/* BACKEND done: version text for INFO, or NULL = could not be loaded. `job` may be NULL. */
void loader_backend_done(Backend b, const char *version, Job *job);
bool loader_backend_loaded(Backend b);
/* Open sessions of each backend, and of scripts in the last place, and the bytes of the models and sources they were opened from: the least
 * that their libraries hold beside them. */
enum { SESSION_KINDS = BACKEND_COUNT + 1 };
extern _Atomic int64_t sessions_open[SESSION_KINDS], session_bytes[SESSION_KINDS];
void session_count(const Program *p, int by); /* one more (1) or one fewer (-1); any thread */
const char *loader_backend_version(Backend b); /* NULL when it is not loaded */

/* ---- trap.c ---------------------------------------------------------------------------------------------------------- */

void trap_install(void); /* once, after the server has set its signal handlers */

/* ---- timer.c --------------------------------------------------------------------------------------------------------- */

void timer_prepare(void); /* before any thread of ours */
int timer_start(void);    /* 0, or an errno */
void timer_wake(int64_t due); /* under ai_lock: something is due earlier than the timer knows */
void heap_push(Job *job);     /* under ai_lock */
void heap_remove(Job *job);   /* under ai_lock; also when it is not in the heap */
Job *heap_first(void);        /* under ai_lock; NULL when empty */

typedef struct Overdue { /* a run past MODEL_EXECUTION_TIMEOUT */
    Worker *worker;
    int64_t started_us;
    unsigned long thread;
    uint64_t program;
    char *key;            /* for the reader to free */
} Overdue;
/* Watchdog, a Python thread without the GIL: waits until a run is overdue. False when closing. Each run is told of once. */
bool watch_overdue(Overdue *run);
/* The watchdog has the GIL again, without which no worker begins a run: is it still that run, or would the next one be ended in its place? */
bool watch_still_runs(const Overdue *run);
void watch_limit_changed(void); /* any thread: the watchdog looks again */
void watch_started(void); /* worker, no lock held: a run began; wakes the watchdog when it sleeps without a due time */

/* ---- redis_call.c: redis.execute ------------------------------------------------------------------------------------- */

/* An ACL user by name: rights are looked up at each use, so that who is changed or deleted gains nothing. */
typedef struct User {
    atomic_int refs;
    Slice name;
} User;
User *user_new(Slice name);
User *user_ref(User *u);   /* NULL is fine */
void user_unref(User *u);  /* any thread, NULL is fine */

typedef struct Caller { /* for whom a command runs */
    const User *user;   /* NULL = not known: everything is refused */
    int db;
    const char *origin; /* id of a flow, which is told of no event that the command causes; NULL = none */
} Caller;

typedef enum { NODE_NULL, NODE_INTEGER, NODE_DOUBLE, NODE_BOOL, NODE_BULK, NODE_STATUS, NODE_ERROR, NODE_ARRAY } NodeKind;
typedef struct ReplyNode { /* a reply copied out of Redis, so that Python objects can be made after the lock is gone */
    uint8_t kind;
    int64_t integer;
    double real;
    Slice bytes;
    int n;
    struct ReplyNode *items;
} ReplyNode;
/* Worker, without the GIL and without ai_lock: runs a command for `caller`. The tree lives in `arena`. */
void redis_execute(const Caller *caller, const Slice *argv, int argc, Arena *arena, ReplyNode *reply);
typedef struct CommandLine {
    const Slice *argv;
    int argc;
} CommandLine;
/* The same for several commands in one hold of the Redis lock, which go to replicas and to the AOF as one transaction (7.0 and later). All are
 * checked first: when one is refused none runs. `replies` has room for `n`. */
void redis_transaction(const Caller *caller, const CommandLine *commands, int n, Arena *arena, ReplyNode *replies);
/* The user who sent the command that runs now; a reference for the caller, NULL when unknown. Holder, in a command handler that may
 * block: elsewhere the server crashes on the question. */
User *redis_caller(RedisModuleCtx *ctx);
/* Why the caller may not run that command; NULL: they may. Holder. */
const char *redis_may_run(RedisModuleCtx *ctx, const Caller *caller, CommandLine line);
/* Why the caller may not read that key; NULL: they may. Holder. */
const char *redis_may_read(RedisModuleCtx *ctx, const Caller *caller, RedisModuleString *key);
/* Those of whom each must be allowed to read a key before a listing shows it: the user who asks; in a Lua script, where a module is not told
 * who that is, every user of the server. `everything`: there is nobody to hide anything from, or (6.2) no way to ask. Holder. */
typedef struct Readers {
    bool everything;
    int n;
    RedisModuleUser **user; /* NULL entries: a user who is gone */
} Readers;
Readers readers_of(RedisModuleCtx *ctx);
bool readers_may_read(const Readers *r, Slice key);
void readers_free(Readers *r);
extern bool ai_nested_call; /* under the Redis lock: the command that runs now was called by redis.execute */
extern const char *ai_nested_origin; /* likewise: the Caller's */
/* Takes a reference on the model `key` of the caller's database; NULL and a static error. Worker, takes the Redis lock. */
Program *redis_model(const Caller *caller, Slice key, const char **error);

/* ---- flows*.c: AI flows, Python that clients register ----------------------------------------------------------------- */

typedef enum { READER_COMMAND, READER_KEYS, READER_STREAM, READER_COUNT } FlowReader;
typedef enum {
    FLOW_ASLEEP, /* known, not run: this is a replica, FLOWS is no, or its source failed when it was executed again */
    FLOW_WAKING, /* its source is being executed again: what comes for it waits */
    FLOW_LIVE,
    FLOW_GONE,   /* unregistered */
} FlowState;

/* One registration. Fields are fixed before it is listed, but for those marked. */
typedef struct Flow {
    atomic_int refs;
    uint8_t reader;               /* FlowReader */
    _Atomic uint8_t state;        /* FlowState; written under ai_lock */
    bool exact;                   /* `prefix` is a whole key */
    int ordinal;                  /* which register() of its source made it, from 0 */
    char *id;
    User *user;                   /* a reference: with whose rights it runs */
    int db;                       /* of its events */
    Names args;                   /* what it was registered with: name, value, name, value ...; a list repeats its name */
    Slice trigger, prefix;        /* in args; {NULL, 0} when not given */
    /* under ai_lock */
    int64_t triggered, succeeded, failed, dropped;
    char *last_error;
    struct FlowItem *waiting, **waiting_tail; /* state WAKING: what came for it meanwhile */
    bool seen;                    /* WAKING: its source has registered it again */
    struct Flow *next;            /* in its source */
} Flow;

/* One RG.PYEXECUTE that registered something: executed again after a restart and on promotion, because functions cannot be stored. */
typedef struct FlowSource {
    atomic_int refs;
    char *id;
    User *user;
    int db;
    Blob *text;
    Names requirements;
    /* changed by the holder under ai_lock, read under either */
    Flow *flows;
    struct FlowSource *next;      /* in the table */
    bool listed;
    unsigned epoch;               /* counts sleeps and wakes: who answers for an earlier one is ignored. Under ai_lock */
} FlowSource;

typedef enum { ITEM_SOURCE, ITEM_TRIGGER, ITEM_EVENT, ITEM_STREAM, ITEM_DROP, ITEM_RUN } FlowItemKind;

/* What the flow queue holds. Whoever took it owns it until it is answered. */
typedef struct FlowItem {
    uint8_t kind;                 /* FlowItemKind */
    bool restoring, unblocking;   /* SOURCE */
    bool counted;                 /* has a place in the bounded queue */
    unsigned epoch;               /* SOURCE, restoring: of the source when it was posted */
    int registered;               /* SOURCE: calls of flow_register so far */
    FlowSource *source;           /* SOURCE: a reference */
    Flow *flow;                   /* TRIGGER, EVENT, STREAM, DROP: a reference */
    Flow *fresh;                  /* SOURCE: registered and not committed yet; references */
    Job *job;                     /* SOURCE, TRIGGER: whose client waits, NULL = nobody. RUN: the job that ended */
    uint64_t token;               /* RUN: what flow_start returned */
    int db;
    int nargs;
    Slice *args;                  /* TRIGGER: the command's words after its name. In the arena, as what follows */
    Slice key, event;             /* EVENT, STREAM */
    Arena arena;
    struct FlowItem *next, *same_bucket; /* under ai_lock */
} FlowItem;

extern RedisModuleType *ai_flows_type;
extern _Atomic int64_t flows_triggered, flows_failed, flows_dropped, flows_outstanding;

/* flows.c: registrations. Their table is changed by the holder under ai_lock, and read under either. */
int flows_register(RedisModuleCtx *ctx); /* commands and type, after the configuration is known; logs and returns ERR when it cannot */
void flows_wake(void);  /* holder: a master executes its sources again */
void flows_sleep(void); /* holder: a replica runs nothing */
void flows_loading(uint64_t subevent); /* holder */
int flows_number(void); /* registrations; holder */
FlowSource *flows_first(void);         /* holder, or a child that saves */
FlowSource *flow_source_new(Slice id, const User *user, int db, Blob *text, Names requirements); /* takes over blob and names */
void flow_source_unref(FlowSource *s);
/* Takes over `args`. NULL and a static error when they are not those of a flow. */
Flow *flow_new(Slice id, Slice reader, int ordinal, const FlowSource *source, Names args, const char **error);
void flow_unref(Flow *f); /* any thread, NULL is fine */
void flow_source_list(FlowSource *s); /* holder: into the table, its flows asleep; replaces one of the same id; takes over the reference */
bool flow_remove(Slice id);           /* holder: false when nothing has that id */
extern const char *const flow_readers[READER_COUNT];
int cmd_rg_pyexecute(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_rg_trigger(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_rg_dumpregistrations(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_rg_unregister(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
/* Python, without the GIL. Commits what a source registered before it answers; false when the commit was refused, of which the client is
 * told. Takes over the item and the arena, in which the answer lies. */
bool flow_reply(FlowItem *item, Arena arena, ReplyNode *answer);
void flow_fail(FlowItem *item, const char *error); /* takes over the item */
void flow_done(FlowItem *item, const char *error); /* EVENT, STREAM, DROP: the same; NULL = it went well */
/* During a source: its id, RedisModule_Alloc'ed, or NULL and a static error. Takes over `args`. */
char *flow_register(FlowItem *item, Slice reader, Names args, const char **error);
const char *flow_unregister(const Caller *caller, Slice id); /* takes the Redis lock; NULL or a static error */
void flow_count(Slice id, const char *error); /* a trigger ended; NULL = well */

/* flow_queue.c */
FlowItem *flow_item(FlowItemKind kind, Flow *flow, Job *job); /* takes over the job; a reference on the flow */
void flow_item_free(FlowItem *item);
bool flow_queue_full(void);
void flow_post(FlowItem *item);        /* any thread; takes ai_lock */
void flow_post_locked(FlowItem *item);
/* Under ai_lock: of each stream one notice waits at most. Who makes one asks and enters it; who throws one away unposted takes it out. */
bool flow_stream_waits(const Flow *flow, Slice key);
void flow_stream_enter(FlowItem *item);
void flow_stream_leave(FlowItem *item);
void flow_send(FlowItem *item);        /* holder: to its flow: into the queue, or to what waits until it has woken (flows.c) */
FlowItem *flow_next(void);             /* Python, without the GIL: waits. NULL: the server stops */
void flow_queue_close(void);

/* flow_events.c */
void flow_events_want(RedisModuleCtx *ctx); /* holder: from now on keyspace events are looked at */

/* flow_run.c: runs that flows start, on the same run queues as those of clients. */
/* Without the GIL, takes the Redis lock. A token, or 0 and an error text (in the arena or static). The end arrives as ITEM_RUN. */
uint64_t flow_start(const Caller *caller, const Slice *argv, int argc, Tensor *const *tensors, int ntensors, Arena *arena, const char **error);
void flow_run_ended(Job *job);         /* any thread, no lock held: job_finish for a job without a client */

/* flow_persist.c: RDB, AOF, replication. */
int flow_persist_register(RedisModuleCtx *ctx);
void flow_replicate_add(RedisModuleCtx *ctx, const FlowSource *s);
void flow_replicate_remove(RedisModuleCtx *ctx, Slice id);
void flow_persist_subscribe(RedisModuleCtx *ctx);
void flow_persist_turn(RedisModuleCtx *ctx); /* holder, in each turn of the server's loop */
int cmd_config_flow(RedisModuleCtx *ctx, RedisModuleString **argv, int argc); /* AI.CONFIG _FLOW: from a master and from an AOF only */

/* ---- persist.c: RDB, AOF and the other callbacks of the three data types -------------------------------------------- */

int persist_register(RedisModuleCtx *ctx); /* types, their callbacks and the module's options; logs and returns ERR when it cannot */
void persist_subscribe(RedisModuleCtx *ctx); /* to what changes which programs are in the keyspace */
/* Asks the loader for every program in the keyspace that is not open yet: after loading has ended on a master, and on promotion. Holder. */
void persist_open_all(void);

/* ---- config.c, stats.c ----------------------------------------------------------------------------------------------- */

typedef enum { ISOLATION_NONE, ISOLATION_PROCESS } Isolation; /* where sessions live: in this process, in helper processes */
typedef enum { SANDBOX_NO, SANDBOX_YES, SANDBOX_AUTO } Sandbox; /* auto: yes where the kernel can, and file operations are not allowed */
extern const char *const isolation_names[], *const sandbox_names[]; /* lower case; NULL-terminated */
typedef struct Config {
    _Atomic int64_t threads_per_queue, intra_op, inter_op; /* 0 = default, for the last two */
    _Atomic int64_t model_execution_timeout;               /* ms */
    _Atomic int64_t backend_memory_limit;                  /* MB of 10^6 bytes, 0 = none */
    _Atomic int64_t model_chunk_size;                      /* bytes */
    _Atomic int64_t max_tensor_bytes, max_model_bytes, max_script_bytes, max_queue; /* INT64_MAX = no limit */
    bool allow_file_ops;
    bool flows;                                    /* RG.*: clients may send Python */
    _Atomic int64_t flows_timeout;                 /* ms until a flow is ended and its client answered with an error, 0 = none */
    _Atomic int64_t isolation, sandbox;            /* Isolation, Sandbox */
    char *backends_path;                           /* shown, never opened */
    char *python;                                  /* load argument PYTHON, or NULL */
    bool eager[BACKEND_COUNT];                     /* named as load arguments */
    char *_Atomic backend_path[BACKEND_COUNT];     /* what the client or the load argument first called it: for the log line, never opened */
} Config;
extern Config config;
int config_load(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_config(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
int cmd_info(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
void stats_info(RedisModuleInfoCtx *ctx, int for_crash_report);
extern _Atomic int64_t onnx_memory, onnx_memory_accesses; /* counted by the ONNX backend */
extern _Atomic int64_t helpers_live, helpers_started, helpers_ended; /* helper processes: running, ever started, ended by themselves or for cause */
extern char *_Atomic sandbox_state; /* what is in force, and why not; NULL = nothing asked. Replaced, never freed: the reader takes no lock */
extern _Atomic int64_t jobs_in_flight, loads_wanted, loads_failed, loads_done, jobs_timed_out, jobs_gone;
extern char python_version[64];
extern bool ai_enterprise, ai_valkey;

/* ---- interp.c: the interpreter --------------------------------------------------------------------------------------- */

/* Finds and starts Python on a thread of its own and waits until the package is imported. NULL, or what went wrong and how to mend it. */
char *interp_start(RedisModuleCtx *ctx);

/* ---- the table of functions that the extension module `_redisai` gets from interp.c in a capsule --------------------- */

typedef struct Shim {
    int size; /* sizeof(Shim): both halves were built together */
    const DtypeRow *dtypes;
    Tensor *(*tensor_new)(Dtype, int, const int64_t *, size_t, const char **);
    bool (*tensor_index_strings)(Tensor *);
    Tensor *(*tensor_ref)(Tensor *);
    void (*tensor_unref)(Tensor *);
    Tensor *(*tensor_resident)(Dtype, int, const int64_t *, uint64_t, const char **);
    int (*resident_released)(uint64_t *, int);
    char *(*tensor_aligned)(Tensor *);
    Message *(*inbox_pop)(void);
    void (*message_free)(Message *);
    void (*loader_join_blob)(Job *);
    void (*loader_opened)(Program *, Job *, Names, Names);
    void (*loader_failed)(Program *, Job *, const char *);
    void (*loader_backend_done)(Backend, const char *, Job *);
    Names (*names_new)(int, const Slice *);
    void (*program_unref)(Program *);
    Worker *(*runqueue_attach)(RunQueue *, unsigned long);
    bool (*runqueue_wait)(RunQueue *);
    Batch *(*runqueue_try)(RunQueue *, Worker *);
    const char *(*batch_gather)(Batch *, int, Tensor **);
    void (*batch_finish)(Batch *, Tensor **, int, int64_t);
    void (*batch_fail)(Batch *, const char *);
    void (*batch_split)(Batch *, Batch **);
    bool (*watch_overdue)(Overdue *);
    bool (*watch_still_runs)(const Overdue *);
    void (*redis_execute)(const Caller *, const Slice *, int, Arena *, ReplyNode *);
    void (*redis_transaction)(const Caller *, const CommandLine *, int, Arena *, ReplyNode *);
    Program *(*redis_model)(const Caller *, Slice, const char **);
    User *(*user_ref)(User *);
    void (*user_unref)(User *);
    FlowItem *(*flow_next)(void);
    bool (*flow_reply)(FlowItem *, Arena, ReplyNode *);
    void (*flow_fail)(FlowItem *, const char *);
    void (*flow_done)(FlowItem *, const char *);
    char *(*flow_register)(FlowItem *, Slice, Names, const char **);
    const char *(*flow_unregister)(const Caller *, Slice);
    void (*flow_count)(Slice, const char *);
    uint64_t (*flow_start)(const Caller *, const Slice *, int, Tensor *const *, int, Arena *, const char **);
    void (*flow_item_free)(FlowItem *);
    void (*names_free)(Names *);
    void (*job_free)(Job *);
    void *(*arena_alloc)(Arena *, size_t);
    Slice (*arena_copy)(Arena *, Slice);
    void (*arena_free)(Arena *);
    void *(*alloc)(size_t);
    void (*free)(void *);
    void (*log)(const char *level, const char *line);
    void (*meter)(int64_t delta, int64_t accesses);
    Blob *(*blob_ref)(Blob *);
    void (*blob_unref)(Blob *);
    void (*helpers)(int64_t live, int64_t started, int64_t ended);
    void (*sandbox)(const char *state);
    const char *const *isolation_names, *const *sandbox_names;
    const Config *config;
    const char *const *backend_names;
    int64_t (*now_us)(void);
    RunQueue *(*runqueue_first)(void);
    const char *(*program_wait_open)(Program *);
    void (*batch_restart)(Batch *);
    void (*program_count)(Program *, int64_t, int64_t, bool);
    char *(*program_key)(Program *);
} Shim;
extern const Shim shim_table;

#endif
