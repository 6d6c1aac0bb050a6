"""Builds jobs, run queues and the timer into an extension module of the tests' own, and imports it. See queues_driver.c."""

from __future__ import annotations

from compiled import compiled

DECLARATIONS = """
typedef struct { uint8_t dtype, ndim; int64_t length; size_t nbytes; const char *bytes; ...; } Tensor;
typedef struct { uint64_t id; ...; } Program;
typedef struct { ...; } Job;
typedef struct { ...; } Worker;
typedef struct { Program *program; int n; int64_t rows; bool retry; ...; } Batch;
typedef struct { int64_t started_us; ...; } Overdue;
typedef struct { int64_t batchsize, minbatchsize, minbatchtimeout_us; } BatchLimits;

enum { PROGRAM_MODEL, PROGRAM_SCRIPT, ... };
enum { PROGRAM_UNOPENED, PROGRAM_OPENING, PROGRAM_OPEN, PROGRAM_FAILED, ... };
enum { OP_WAITING, OP_QUEUED, OP_RUNNING, OP_DONE, OP_FAILED, ... };
enum { T_COUNT, ... };

void unit_start(void);
int64_t unit_live(void);
void unit_clock(int64_t now);
void unit_max_queue(int64_t n);
void unit_pause(bool paused);

Program *unit_program(const char *device, int kind, int state, int64_t batchsize, int64_t minbatchsize, int64_t minbatchtimeout);
void unit_drop(Program *p, bool dropped);
int unit_refs(const Program *p);
int unit_queue_length(const Program *p);
int unit_queue_waiting(const Program *p);
bool unit_queue_full(const Program *p);
int64_t unit_stat(const Program *p, int which);
void unit_opened(Program *p, const char *error);
int unit_inbox(void);
void unit_inbox_pop(void);
void program_unref(Program *p);

Tensor *unit_tensor(int dtype, int ndim, const int64_t *dims, const char *data, size_t n);
int64_t unit_dim(const Tensor *t, int i);
Tensor *tensor_ref(Tensor *t);
void tensor_unref(Tensor *t);

Job *unit_job(int nops, int nslots);
void unit_op(Job *job, int i, Program *p, int nin, const int *in, int nout, const int *out);
void unit_slot(Job *job, int slot, Tensor *t);
void unit_run(Job *job, int64_t timeout_ms, bool writes);
void unit_disconnect(Job *job);
Job *unit_ended(void);
void unit_free(Job *job);
Tensor *unit_slot_of(const Job *job, int slot);
int unit_op_state(const Job *job, int i);
uint64_t unit_lane_hash(const Job *job);
const char *unit_op_error(const Job *job, int i);
bool unit_flag(const Job *job, int which);
int64_t unit_in_flight(void);
void jobs_expire(int64_t now, int64_t *next_due);

Worker *unit_worker(Program *p);
Batch *unit_take(Program *p, Worker *w, int64_t *look_again);
Batch *unit_try(Program *p, Worker *w);
Batch *unit_pop(Program *p, Worker *w);
uint64_t unit_overdue(Overdue *run);
bool watch_still_runs(const Overdue *run);
void batch_restart(Batch *b);
const Job *unit_batch_job(const Batch *b, int i);
int unit_batch_op(const Batch *b, int i);
const char *batch_gather(Batch *b, int input, Tensor **into);
void batch_finish(Batch *b, Tensor **outputs, int n, int64_t duration_us);
void batch_fail(Batch *b, const char *error);
void batch_split(Batch *b, Batch **into);
bool batch_due(BatchLimits limits, int64_t rows, int64_t oldest_us, int64_t now, int64_t *next_due);

Job *unit_timed(int64_t deadline_us);
int64_t unit_deadline(const Job *job);
int unit_heap_at(const Job *job);
void job_free(Job *job);
void heap_push(Job *job);
void heap_remove(Job *job);
Job *heap_first(void);
"""

_module = compiled(
    "shim_queues",
    DECLARATIONS,
    "queues_driver.c",
    ["plan.c", "mem.c", "tensor.c", "runqueue.c", "timer.c", "job.c", "loader.c", "redis_api.c"],
)
ffi = _module.ffi
lib = _module.lib
lib.unit_start()
