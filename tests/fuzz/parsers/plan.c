/* plan.c -- arguments of a run command -> plan, and the walk that finds its keys: both must say the same.
 *
 * Input: a command line, a blank between its words; the first word names the command. What a key holds follows from its name: one that
 * begins with "-" is missing, a program called "m12" has one input and two outputs, one called "m" does not know yet. */
#include "server.h"

static const char *const names[CMD_COUNT] = {
    [CMD_MODELEXECUTE] = "AI.MODELEXECUTE", [CMD_MODELRUN] = "AI.MODELRUN", [CMD_SCRIPTEXECUTE] = "AI.SCRIPTEXECUTE",
    [CMD_SCRIPTRUN] = "AI.SCRIPTRUN", [CMD_DAGEXECUTE] = "AI.DAGEXECUTE", [CMD_DAGEXECUTE_RO] = "AI.DAGEXECUTE_RO",
    [CMD_DAGRUN] = "AI.DAGRUN", [CMD_DAGRUN_RO] = "AI.DAGRUN_RO",
};

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    server_start();
    return 0;
}

/* ---- the words ---------------------------------------------------------------------------------------------------------------------- */

static Slice argv[MAX_WORDS];
static int argc;

static void split(const char *p, const char *end) {
    for (argc = 0; p <= end && argc < MAX_WORDS; argc++) {
        const char *blank = p < end ? memchr(p, ' ', (size_t)(end - p)) : NULL;
        size_t n = (size_t)((blank ? blank : end) - p);
        char *copy = fake_alloc(n);
        if (n) memcpy(copy, p, n);
        argv[argc] = (Slice){copy, n};
        p += n + 1;
    }
}

static void split_free(void) {
    for (int i = 0; i < argc; i++) fake_free((char *)argv[i].p);
}

static RunCommand command_of(Slice first) {
    for (int i = 0; i < CMD_COUNT; i++)
        if (slice_is(first, names[i])) return (RunCommand)i;
    return first.n ? (RunCommand)((uint8_t)first.p[0] % CMD_COUNT) : CMD_DAGEXECUTE;
}

/* ---- the world ---------------------------------------------------------------------------------------------------------------------- */

typedef struct Access {
    int arg, access;
} Access;
typedef struct Keys {
    int n;
    Access item[4 * MAX_WORDS];
} Keys;
static Keys walked, used;
static RunQueue queues[2];

static void note_key(void *u, int arg, int access) {
    Keys *k = u;
    must(arg >= 1 && arg < argc && access && k->n < 4 * MAX_WORDS);
    k->item[k->n++] = (Access){arg, access};
}

/* Whatever is asked about was named as a key first, with a right to read it: access control sees the keys that are named. */
static void must_be_named(int arg) {
    for (int i = used.n; i--;)
        if (used.item[i].arg == arg && used.item[i].access & KEY_ACCESS) return;
    must(!"a key is read that was not named");
}

static Names names_of(int n) {
    Slice items[10] = {{0}};
    for (int i = 0; i < n; i++) items[i] = (Slice){"", 0};
    return names_new(n, items);
}

static int digit(Slice s, size_t at) { return s.n > at && s.p[at] >= '0' && s.p[at] <= '9' ? s.p[at] - '0' : -1; }

static Program *ask_program(void *u, int arg, ProgramKind kind, const char **error) {
    must_be_named(arg);
    Slice name = argv[arg];
    *error = "ERR model key is empty";
    if (name.n && name.p[0] == '-') return NULL;
    Program *p = program_new(kind, BACKEND_TORCH, (Slice){"GPU", name.n % 2 ? 3 : 0});
    p->queue = &queues[name.n % 2];
    int in = digit(name, 1), out = digit(name, 2);
    if (kind == PROGRAM_MODEL && in >= 0 && out >= 0) p->inputs = names_of(in), p->outputs = names_of(out), p->names_known = true;
    return p;
}

static Tensor *ask_tensor(void *u, int arg, const char **error) {
    must_be_named(arg);
    static const int64_t no_dims[1];
    *error = "ERR tensor key is empty";
    return argv[arg].n && argv[arg].p[0] == '-' ? NULL : tensor_new(T_INT8, 0, no_dims, 1, error);
}

static Tensor *ask_tensorset(void *u, int arg, int n, const char **error) {
    must(arg >= 1 && n >= 1 && arg + n <= argc);
    return tensor_parse(argv + arg, n, NULL, error);
}

/* ---- what a plan must be -------------------------------------------------------------------------------------------------------------- */

static void check_slots(const Plan *p, const int *slots, int n) {
    for (int i = 0; i < n; i++) must(slots[i] >= 0 && slots[i] < p->nslots);
}

static void check_op(const Plan *p, const Op *op) {
    bool runs = op->kind == OP_MODEL || op->kind == OP_SCRIPT;
    must(runs == (op->program != NULL));
    check_slots(p, op->in, op->nin);
    check_slots(p, op->out, op->nout);
    if (op->kind == OP_MODEL && op->program->names_known) must(op->nin == op->program->inputs.n && op->nout == op->program->outputs.n);
    for (int i = 0; i < op->nkeys; i++) must(op->keys[i].p[op->keys[i].n] == '\0');
    for (int i = 0; i < op->nargs; i++) must(op->args[i].p[op->args[i].n] == '\0');
}

/* Every op that runs is in one track, that of its queue, and after those of its queue that stand before it. */
static void check_tracks(const Plan *p) {
    int runs = 0, tracked = 0;
    for (int i = 0; i < p->nops; i++) runs += p->ops[i].program != NULL;
    for (int t = 0; t < p->ntracks; t++)
        for (const Op *op = p->tracks[t].next; op; op = op->after, tracked++) {
            must(op->program->queue == p->tracks[t].queue);
            must(!op->after || op->after > op);
        }
    must(runs == tracked);
}

/* Who writes a key has named it as one to be written. */
static void check_outputs(const Plan *p) {
    for (int i = 0; i < p->noutputs; i++) {
        bool named = false;
        must(p->outputs[i].slot >= 0 && p->outputs[i].slot < p->nslots);
        for (int k = 0; k < used.n; k++) named |= used.item[k].arg == p->outputs[i].arg && used.item[k].access & KEY_UPDATE;
        must(named);
    }
}

static void check_plan(const Plan *p) {
    must(p->nops > 0 && p->timeout_ms >= 0);
    for (int i = 0; i < p->nops; i++) check_op(p, &p->ops[i]);
    check_tracks(p);
    check_outputs(p);
    for (int s = 0; p->resident && s < p->nslots; s++) must(!p->resident[s] || !p->slots[s]);
}

static const char *plan(RunCommand command, PlanWorld world, bool check) {
    Arena arena = {0};
    Plan p;
    const char *error = plan_make(command, argv, argc, &world, &arena, &p);
    must(!error || strlen(error) > 0);
    if (!error && check) check_plan(&p);
    plan_release(&p);
    arena_free(&arena);
    return error ? "refused" : NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    split((const char *)data, (const char *)data + size);
    RunCommand command = command_of(argv[0]);
    walked.n = used.n = 0;
    const char *walk = plan(command, (PlanWorld){.u = &walked, .key = note_key}, false);
    const char *ran = plan(command,
                           (PlanWorld){.u = &used, .key = note_key, .program = ask_program, .tensor = ask_tensor, .tensorset = ask_tensorset},
                           true);
    /* What refuses a walk refuses the run. A run may end before the walk does, at a key that is missing, having named the same keys. */
    must(!walk || ran);
    must(used.n <= walked.n && (ran || used.n == walked.n));
    must(memcmp(walked.item, used.item, (size_t)used.n * sizeof *used.item) == 0);
    split_free();
    server_rest();
    return 0;
}
