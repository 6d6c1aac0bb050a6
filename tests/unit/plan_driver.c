/* plan_driver.c -- what the planner needs from the server and the rest of the shim, so that a test can run it in its own process.
 *
 * Allocations are counted, so that a test can see that everything was given back. Arguments are allocations of exactly their length: a
 * byte read past the end is one that the address sanitizer sees. The planner asks the test (ask_*, written in Python) about keys. */
#include "ai.h"

#include <stdlib.h>

pthread_mutex_t ai_lock = PTHREAD_MUTEX_INITIALIZER;
RedisModuleType *ai_tensor_type, *ai_model_type, *ai_script_type;
bool ai_can_trim;
_Atomic bool ai_closing;
Config config;

static int64_t live;

static void *counted(void *p) {
    if (p) live++;
    return p;
}
static void *unit_alloc(size_t n) { return counted(malloc(n)); }
static void *unit_calloc(size_t n, size_t size) { return counted(calloc(n, size)); }
static void unit_free(void *p) {
    if (p) live--;
    free(p);
}

static void unit_start(int64_t max_tensor_bytes) {
    RedisModule_Alloc = RedisModule_TryAlloc = unit_alloc;
    RedisModule_Calloc = unit_calloc;
    RedisModule_Free = unit_free;
    config.max_tensor_bytes = max_tensor_bytes;
}

static int64_t unit_live(void) { return live; }

/* What the other files of the shim would bring along. */
Program *program_ref(Program *p) {
    p->refs++;
    return p;
}
void program_unref(Program *p) {
    if (--p->refs == 0) {
        RedisModule_Free(p->inputs.item);
        RedisModule_Free(p->outputs.item);
        RedisModule_Free(p);
    }
}

/* ---- values ----------------------------------------------------------------------------------------------------------------- */

static RunQueue queues[2];

/* `inputs` < 0: how many the model has is not known yet. */
static Program *unit_program(int queue, int inputs, int outputs) {
    static const Slice empty = { "", 0 };
    Program *p = RedisModule_Calloc(1, sizeof(*p));
    p->refs = 1;
    p->queue = &queues[queue];
    p->names_known = inputs >= 0;
    Slice *names = RedisModule_Calloc(64, sizeof(*names));
    for (int i = 0; i < 64; i++) names[i] = empty;
    if (inputs >= 0) {
        p->inputs = names_new(inputs, names);
        p->outputs = names_new(outputs, names);
    }
    RedisModule_Free(names);
    return p;
}

static int unit_program_refs(const Program *p) { return p->refs; }
static int unit_tensor_refs(const Tensor *t) { return t->refs; }
static int unit_queue_of(const Program *p) { return (int)(p->queue - queues); }
static int unit_track_queue(const Track *t) { return (int)(t->queue - queues); }

/* Arguments laid end to end -> slices of an allocation each. */
static Slice *unit_argv(const char *bytes, const size_t *lengths, int n) {
    Slice *argv = RedisModule_Calloc((size_t)n + 1, sizeof(*argv));
    for (int i = 0; i < n; i++) {
        char *p = RedisModule_Alloc(lengths[i]);
        memcpy(p, bytes, lengths[i]);
        argv[i] = (Slice){ p, lengths[i] };
        bytes += lengths[i];
    }
    return argv;
}

static void unit_argv_free(Slice *argv, int n) {
    for (int i = 0; i < n; i++) RedisModule_Free((char *)argv[i].p);
    RedisModule_Free(argv);
}

/* ---- planning ----------------------------------------------------------------------------------------------------------------- */

static Program *ask_program(int arg, int kind, const char **error);
static Tensor *ask_tensor(int arg, const char **error);
static void ask_key(int arg, int access);

typedef struct UnitPlan {
    Arena arena;
    Plan plan;
    const char *error;
} UnitPlan;

static Program *world_program(void *u, int arg, ProgramKind kind, const char **error) { return ask_program(arg, (int)kind, error); }
static Tensor *world_tensor(void *u, int arg, const char **error) { return ask_tensor(arg, error); }
static Tensor *world_tensorset(void *u, int arg, int n, const char **error) { return tensor_parse((const Slice *)u + arg, n, NULL, error); }
static void world_key(void *u, int arg, int access) { ask_key(arg, access); }

enum { RUN, RUN_ON_ENTERPRISE, WALK, WALK_SILENTLY };

/* As the command runs, or as its keys are asked for; silently: without telling them to Python, which takes longer than planning. */
static UnitPlan *unit_plan(int command, const Slice *argv, int argc, int how) {
    UnitPlan *p = RedisModule_Calloc(1, sizeof(*p));
    PlanWorld asked = { .u = (void *)argv, .program = world_program, .tensor = world_tensor, .tensorset = world_tensorset,
                        .enterprise = how == RUN_ON_ENTERPRISE };
    PlanWorld walked = { .key = how == WALK ? world_key : NULL };
    p->error = plan_make((RunCommand)command, argv, argc, how >= WALK ? &walked : &asked, &p->arena, &p->plan);
    return p;
}

static void unit_plan_free(UnitPlan *p) {
    plan_release(&p->plan);
    arena_free(&p->arena);
    RedisModule_Free(p);
}
