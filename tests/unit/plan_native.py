"""Builds the planner and what it stands on into an extension module of the tests' own, and imports it. See plan_driver.c."""

from __future__ import annotations

from compiled import compiled

DECLARATIONS = """
typedef struct { const char *p; size_t n; } Slice;
typedef struct { uint8_t dtype, ndim; int64_t length; size_t nbytes; ...; } Tensor;
typedef struct { ...; } Program;
typedef struct Op { uint8_t kind; int nin, nout; int *in, *out; Program *program; Slice function; int nkeys, nargs; Slice *keys, *args;
                    int show; struct Op *after; ...; } Op;
typedef struct { int slot, arg; } Output;
typedef struct { Op *next; ...; } Track;
typedef struct { uint8_t form; bool has_script; int nops, nslots, noutputs, ntracks; Op *ops; Track *tracks; Tensor **slots;
                 Output *outputs; bool *resident; int64_t timeout_ms; } Plan;
typedef struct { Plan plan; const char *error; ...; } UnitPlan;

enum { OP_MODEL, OP_SCRIPT, OP_TENSORSET, OP_TENSORGET, ... };
enum { CMD_MODELEXECUTE, CMD_MODELRUN, CMD_SCRIPTEXECUTE, CMD_SCRIPTRUN, CMD_DAGEXECUTE, CMD_DAGEXECUTE_RO, CMD_DAGRUN,
       CMD_DAGRUN_RO, ... };
enum { KEY_RO, KEY_RW, KEY_OW, KEY_ACCESS, KEY_UPDATE, KEY_NOT_KEY, ... };
enum { TENSORGET_META, TENSORGET_BLOB, TENSORGET_VALUES, ... };

void unit_start(int64_t max_tensor_bytes);
int64_t unit_live(void);
Program *unit_program(int queue, int inputs, int outputs);
int unit_program_refs(const Program *p);
int unit_tensor_refs(const Tensor *t);
int unit_queue_of(const Program *p);
int unit_track_queue(const Track *t);
Slice *unit_argv(const char *bytes, const size_t *lengths, int n);
void unit_argv_free(Slice *argv, int n);
enum { RUN, RUN_ON_ENTERPRISE, WALK, WALK_SILENTLY, ... };
UnitPlan *unit_plan(int command, const Slice *argv, int argc, int how);
void unit_plan_free(UnitPlan *p);

Program *program_ref(Program *p);
void program_unref(Program *p);
Tensor *tensor_parse(const Slice *argv, int argc, void *strings, const char **error);
Tensor *tensor_ref(Tensor *t);
void tensor_unref(Tensor *t);
bool slice_to_int(Slice s, int64_t *out);
bool slice_is(Slice s, const char *upper);

extern "Python" Program *ask_program(int arg, int kind, const char **error);
extern "Python" Tensor *ask_tensor(int arg, const char **error);
extern "Python" void ask_key(int arg, int access);
"""

_module = compiled("plan_unit", DECLARATIONS, "plan_driver.c", ["plan.c", "mem.c", "tensor.c", "redis_api.c"])
ffi = _module.ffi
lib = _module.lib

#: Large enough for every tensor of the tests, small enough that no test fills the memory.
lib.unit_start(1 << 24)
