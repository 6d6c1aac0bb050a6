/* plan.c -- turns the arguments of a run command into a plan: which ops, on which tensors, writing which keys.
 *
 * 1. A pure function: it reads no clock, blocks on nothing and reaches Redis only through the PlanWorld it is given, so the tests drive
 *    it without a server.
 * 2. The same walk answers "which keys does this command name" (COMMAND GETKEYS, cluster routing, ACL) and "what does it do": called
 *    with a world that knows nothing but `key`, it reports every key and its kind of access. Two parsers that could disagree are an
 *    ACL hole: the original scans for keywords, and a tensor *named* LOAD hid the keys after it.
 * 3. A command with one op and a DAG are both plans; they differ in how names become slots and in the form of the reply.
 * 4. Names in a DAG are resolved in text order: every output opens a new slot and a reader sees the latest slot before it.
 *
 * Checks are in the order in which 1.2.7 makes them, because clients compare the first error. */
#include "ai.h"

#include <sys/auxv.h>

typedef struct Name { /* a local name of a DAG and its latest slot */
    Slice name;
    int slot;
} Name;

typedef struct Planner {
    const Slice *argv;
    int argc;
    const PlanWorld *world;
    Arena *arena;
    Plan *plan;
    bool dag, deprecated, read_only;
    Name *names; /* open addressing; a power of two, at least twice the names of the plan */
    int names_mask;
    int slots_room;
} Planner;

/* Arguments of one op: argv[first .. first + n); `at` counts from the op's own name. */
typedef struct Words {
    Planner *pl;
    int first, n;
} Words;

typedef struct List { /* arguments argv[first .. first + n) */
    int first, n;
} List;

static Slice word(Words w, int at) { return w.pl->argv[w.first + at]; }
static bool word_is(Words w, int at, const char *upper) { return slice_is(word(w, at), upper); }

static const char *with_word(Planner *pl, const char *text_before, Slice token) {
    size_t n = strlen(text_before);
    char *line = arena_alloc(pl->arena, n + token.n + 1);
    memcpy(line, text_before, n);
    memcpy(line + n, token.p, token.n);
    return line;
}

static void name_key(Planner *pl, int arg, int access) {
    if (pl->world->key) pl->world->key(pl->world->u, arg, access);
}

static void name_keys(Planner *pl, List l, int access) {
    for (int i = 0; i < l.n; i++) name_key(pl, l.first + i, access);
}

enum { READS = KEY_RO | KEY_ACCESS, WRITES = KEY_OW | KEY_UPDATE, READS_AND_WRITES = KEY_RW | KEY_ACCESS | KEY_UPDATE };

/* ---- ops: what the grammars of the four run commands have in common --------------------------------------------------- */

static const char *op_program(Planner *pl, Op *op, int arg, ProgramKind kind) {
    name_key(pl, arg, READS);
    op->kind = kind == PROGRAM_MODEL ? OP_MODEL : OP_SCRIPT;
    if (!pl->world->program) return NULL;
    const char *error = NULL;
    op->program = pl->world->program(pl->world->u, arg, kind, &error);
    return op->program ? NULL : error;
}

static const char WRONG_INPUTS[] = "Number of keys given as INPUTS here does not match model definition";
static const char WRONG_OUTPUTS[] = "Number of keys given as OUTPUTS here does not match model definition";

static const char *check_count(const Op *op, bool inputs, int64_t given) {
    if (!op->program || !op->program->names_known) return NULL;
    int wanted = inputs ? op->program->inputs.n : op->program->outputs.n;
    return given == wanted ? NULL : inputs ? WRONG_INPUTS : WRONG_OUTPUTS;
}

static const char *timeout_value(Planner *pl, Slice value) {
    int64_t ms;
    if (!slice_to_int(value, &ms) || ms <= 0) return "ERR Invalid value for TIMEOUT";
    if (pl->dag) return "ERR TIMEOUT not allowed within a DAG command";
    pl->plan->timeout_ms = ms;
    return NULL;
}

static int new_slot(Planner *pl) {
    Plan *plan = pl->plan;
    if (plan->nslots == pl->slots_room) { /* grows by doubling inside the arena; old copies die with it */
        int room = pl->slots_room ? pl->slots_room * 2 : 8;
        Tensor **grown = arena_alloc(pl->arena, (size_t)room * sizeof(*grown));
        if (plan->nslots) memcpy(grown, plan->slots, (size_t)plan->nslots * sizeof(*grown));
        plan->slots = grown;
        pl->slots_room = room;
    }
    return plan->nslots++;
}

static void op_lists(Planner *pl, Op *op, List in, List out) {
    op->nin = in.n;
    op->nout = out.n;
    op->in = arena_alloc(pl->arena, (size_t)in.n * sizeof(int));
    op->out = arena_alloc(pl->arena, (size_t)out.n * sizeof(int));
    /* Until names are resolved the lists hold argument numbers. */
    for (int i = 0; i < in.n; i++) op->in[i] = in.first + i;
    for (int i = 0; i < out.n; i++) op->out[i] = out.first + i;
    if (pl->dag) return;
    name_keys(pl, in, READS);
    name_keys(pl, out, WRITES);
}

static Slice *copy_words(Planner *pl, List l) {
    Slice *copies = arena_alloc(pl->arena, (size_t)l.n * sizeof(Slice));
    for (int i = 0; i < l.n; i++) copies[i] = arena_copy(pl->arena, pl->argv[l.first + i]);
    return copies;
}

/* ---- AI.MODELEXECUTE key INPUTS n k... OUTPUTS m k... [TIMEOUT ms] ------------------------------------------------------ */

typedef struct CountedList {
    const char *keyword, *missing, *not_a_number, *not_positive, *too_few;
} CountedList;
static const CountedList model_inputs = {
    "INPUTS", "ERR INPUTS not specified", "ERR Invalid argument for input_count", "ERR Input count must be a positive integer",
    "ERR number of input keys to AI.MODELEXECUTE command does not match the number of given arguments"
};
static const CountedList model_outputs = {
    "OUTPUTS", "ERR OUTPUTS not specified", "ERR Invalid argument for output_count", "ERR Output count must be a positive integer",
    "ERR number of output keys to AI.MODELEXECUTE command does not match the number of given arguments"
};

static const char *counted_list(Words w, int *at, const CountedList *form, const Op *op, List *list) {
    int64_t n;
    if (*at >= w.n || !word_is(w, *at, form->keyword)) return form->missing;
    if (*at + 1 >= w.n || !slice_to_int(word(w, *at + 1), &n)) return form->not_a_number;
    if (n <= 0) return form->not_positive;
    const char *error = check_count(op, form == &model_inputs, n);
    if (error) return error;
    if (n > w.n - *at - 2) return form->too_few;
    *list = (List){ w.first + *at + 2, (int)n };
    *at += 2 + (int)n;
    return NULL;
}

static const char *parse_modelexecute(Words w, Op *op) {
    Planner *pl = w.pl;
    if (w.n < 8) return "ERR wrong number of arguments for 'AI.MODELEXECUTE' command";
    const char *error = op_program(pl, op, w.first + 1, PROGRAM_MODEL);
    if (error) return error;
    List in = { 0, 0 }, out = { 0, 0 };
    int at = 2;
    if ((error = counted_list(w, &at, &model_inputs, op, &in))) return error;
    if ((error = counted_list(w, &at, &model_outputs, op, &out))) return error;
    op_lists(pl, op, in, out);
    if (at == w.n) return NULL;
    if (!word_is(w, at, "TIMEOUT")) return with_word(pl, "Invalid argument: ", word(w, at));
    if (at + 1 == w.n) return "ERR No value provided for TIMEOUT";
    if ((error = timeout_value(pl, word(w, at + 1)))) return error;
    return at + 2 < w.n ? with_word(pl, "Invalid argument: ", word(w, at + 2)) : NULL;
}

/* ---- AI.MODELRUN key [TIMEOUT ms] INPUTS k... OUTPUTS k... (deprecated) ------------------------------------------------- */

static const char *parse_modelrun(Words w, Op *op) {
    Planner *pl = w.pl;
    if (w.n < 6) return "ERR wrong number of arguments for 'AI.MODELRUN' command";
    const char *error = op_program(pl, op, w.first + 1, PROGRAM_MODEL);
    if (error) return error;
    int at = 2;
    if (word_is(w, at, "TIMEOUT")) {
        if ((error = timeout_value(pl, word(w, at + 1)))) return error;
        at += 2;
    }
    if (!word_is(w, at, "INPUTS")) return "ERR INPUTS not specified";
    int in_first = ++at;
    while (at < w.n && !word_is(w, at, "OUTPUTS")) at++;
    int out_first = at < w.n ? at + 1 : w.n;
    List in = { w.first + in_first, at - in_first }, out = { w.first + out_first, w.n - out_first };
    op_lists(pl, op, in, out);
    if ((error = check_count(op, true, in.n))) return error;
    return check_count(op, false, out.n);
}

/* ---- AI.SCRIPTEXECUTE key function [KEYS n k...] [INPUTS n k...] [ARGS n a...] [OUTPUTS n k...] [TIMEOUT ms] -------------- */

enum { SCOPE_KEYS, SCOPE_INPUTS, SCOPE_ARGS, SCOPE_OUTPUTS, SCOPES };
static const struct {
    const char *keyword, *repeated, *no_count, *not_a_number, *too_few;
    bool positive;
} scopes[SCOPES] = {
    { "KEYS", "ERR Already Encountered KEYS scope in AI.SCRIPTEXECUTE command", "ERR Missing arguments after KEYS keyword",
      "ERR Invalid or negative value found in number of KEYS",
      "ERR Number of pre declared KEYS to be used in the command does not match the number of given arguments", true },
    { "INPUTS", "ERR Already Encountered INPUTS scope in AI.SCRIPTEXECUTE command", "ERR Invalid arguments provided to AI.SCRIPTEXECUTE",
      "ERR Invalid argument for inputs count in AI.SCRIPTEXECUTE",
      "ERR number of inputs to AI.SCRIPTEXECUTE command does not match the number of given arguments", false },
    { "ARGS", "ERR Already Encountered ARGS scope in AI.SCRIPTEXECUTE command", "ERR Invalid arguments provided to AI.SCRIPTEXECUTE",
      "ERR Invalid argument for keys count in AI.SCRIPTEXECUTE",
      "ERR number of args to AI.SCRIPTEXECUTE command does not match the number of given arguments", false },
    { "OUTPUTS", "ERR Already Encountered OUTPUTS scope in AI.SCRIPTEXECUTE command", "ERR Invalid arguments provided to AI.SCRIPTEXECUTE",
      "ERR Invalid argument for outputs count in AI.SCRIPTEXECUTE",
      "ERR number of outputs to AI.SCRIPTEXECUTE command does not match the number of given arguments", false },
};

static int scope_of(Words w, int at) {
    for (int s = 0; s < SCOPES; s++)
        if (word_is(w, at, scopes[s].keyword)) return s;
    return -1;
}

static const char *scope_list(Words w, int *at, int s, List *list) {
    int64_t n;
    if (list->first) return scopes[s].repeated;
    if (w.n - *at - 1 < (scopes[s].positive ? 2 : 1)) return scopes[s].no_count;
    if (!slice_to_int(word(w, *at + 1), &n) || (scopes[s].positive && n <= 0)) return scopes[s].not_a_number;
    if (n < 0 || n > w.n - *at - 2) return scopes[s].too_few;
    *list = (List){ w.first + *at + 2, (int)n };
    *at += 2 + (int)n;
    return NULL;
}

static const char *parse_scriptexecute(Words w, Op *op) {
    Planner *pl = w.pl;
    if (w.n < 3) return "ERR wrong number of arguments for 'AI.SCRIPTEXECUTE' command";
    const char *error = op_program(pl, op, w.first + 1, PROGRAM_SCRIPT);
    if (error) return error;
    if (!pl->dag && (w.n == 3 || (!word_is(w, 3, "KEYS") && !word_is(w, 3, "INPUTS"))))
        return "ERR KEYS or INPUTS scope must be provided first for AI.SCRIPTEXECUTE command";
    List lists[SCOPES] = { { 0, 0 } };
    int at = 3;
    while (at < w.n) {
        int s = scope_of(w, at);
        if (s >= 0) {
            if ((error = scope_list(w, &at, s, &lists[s]))) return error;
            if (s == SCOPE_KEYS) name_keys(pl, lists[s], READS_AND_WRITES);
        } else if (word_is(w, at, "TIMEOUT")) {
            if (at + 1 == w.n) return "ERR No value provided for TIMEOUT in AI.SCRIPTEXECUTE";
            if ((error = timeout_value(pl, word(w, at + 1)))) return error;
            if (at + 2 < w.n) return "ERR Encountered problem parsing AI.SCRIPTEXECUTE";
            at += 2;
        } else {
            return with_word(pl, "ERR Invalid AI.SCRIPTEXECUTE command. Unexpected argument: ", word(w, at));
        }
    }
    op->function = arena_copy(pl->arena, word(w, 2));
    op->nkeys = lists[SCOPE_KEYS].n;
    op->keys = copy_words(pl, lists[SCOPE_KEYS]);
    op->nargs = lists[SCOPE_ARGS].n;
    op->args = copy_words(pl, lists[SCOPE_ARGS]);
    op_lists(pl, op, lists[SCOPE_INPUTS], lists[SCOPE_OUTPUTS]);
    return NULL;
}

/* ---- AI.SCRIPTRUN key function [TIMEOUT ms] INPUTS k... [$ k...] OUTPUTS k... (deprecated) -------------------------------- */

typedef struct ScriptRun {
    enum { NOWHERE, IN_INPUTS, IN_OUTPUTS } where;
    bool timeout, variadic;
    int *in, *out, nin, nout;
} ScriptRun;

/* One word of the loop; *at moves past it. */
static const char *scriptrun_word(Words w, int *at, ScriptRun *s) {
    int here = (*at)++;
    if (word_is(w, here, "TIMEOUT")) {
        if (s->timeout) return "ERR Already encountered an TIMEOUT section in SCRIPTRUN";
        s->timeout = true;
        if (*at == w.n) return "ERR Invalid value for TIMEOUT";
        return timeout_value(w.pl, word(w, (*at)++));
    }
    if (word_is(w, here, "INPUTS")) {
        if (s->where == IN_INPUTS) return "ERR Already encountered an INPUTS keyword in SCRIPTRUN";
        if (s->where == IN_OUTPUTS) return "ERR Already encountered an INPUTS section in SCRIPTRUN";
        s->where = IN_INPUTS;
        return NULL;
    }
    if (word_is(w, here, "OUTPUTS")) {
        if (s->where == IN_OUTPUTS) return "ERR Already encountered an OUTPUTS keyword in SCRIPTRUN";
        s->where = IN_OUTPUTS;
        return NULL;
    }
    if (word_is(w, here, "$")) { /* checked, then ignored: the function's own signature says what becomes a list */
        if (s->where != IN_INPUTS) return "ERR Encountered a variable size list of tensors outside of input section";
        if (s->variadic) return "ERR Already encountered a variable size list of tensors";
        s->variadic = true;
        return NULL;
    }
    if (s->where == NOWHERE) return "ERR Unrecongnized parameter to SCRIPTRUN"; /* spelt so in 1.2.7 */
    if (s->where == IN_INPUTS) s->in[s->nin++] = w.first + here;
    else s->out[s->nout++] = w.first + here;
    return NULL;
}

static const char *parse_scriptrun(Words w, Op *op) {
    Planner *pl = w.pl;
    if (w.n < 3) return "ERR wrong number of arguments for 'AI.SCRIPTRUN' command";
    const char *error = op_program(pl, op, w.first + 1, PROGRAM_SCRIPT);
    if (error) return error;
    ScriptRun s = { .in = arena_alloc(pl->arena, (size_t)w.n * sizeof(int)), .out = arena_alloc(pl->arena, (size_t)w.n * sizeof(int)) };
    for (int at = 3; at < w.n;)
        if ((error = scriptrun_word(w, &at, &s))) return error;
    op->function = arena_copy(pl->arena, word(w, 2));
    op->in = s.in;
    op->out = s.out;
    op->nin = s.nin;
    op->nout = s.nout;
    if (pl->dag) return NULL;
    for (int i = 0; i < s.nin; i++) name_key(pl, s.in[i], READS);
    for (int i = 0; i < s.nout; i++) name_key(pl, s.out[i], WRITES);
    return NULL;
}

/* ---- AI.TENSORSET and AI.TENSORGET inside a DAG ------------------------------------------------------------------------- */

static const char *parse_dag_tensorset(Words w, Op *op) {
    Planner *pl = w.pl;
    if (w.n < 4) return "wrong number of arguments for 'AI.TENSORSET' command";
    op->kind = OP_TENSORSET;
    op_lists(pl, op, (List){ 0, 0 }, (List){ w.first + 1, 1 });
    if (!pl->world->tensorset) return NULL;
    const char *error = NULL;
    Tensor *t = pl->world->tensorset(pl->world->u, w.first + 2, w.n - 2, &error);
    if (!t) return error;
    int slot = new_slot(pl); /* filled from the start: a later failure elsewhere does not unset it */
    pl->plan->slots[slot] = t;
    op->show = slot; /* where the value waits until the name is resolved */
    return NULL;
}

static const char *parse_dag_tensorget(Words w, Op *op) {
    if (w.n < 2 || w.n > 4) return "wrong number of arguments for 'AI.TENSORGET' command";
    op->kind = OP_TENSORGET;
    op_lists(w.pl, op, (List){ w.first + 1, 1 }, (List){ 0, 0 });
    return tensor_get_options(w.pl->argv + w.first + 2, w.n - 2, &op->show);
}

/* ---- the ops of a DAG --------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    const char *(*parse)(Words w, Op *op);
    const char *in_execute, *in_execute_ro, *in_run; /* why it is refused there; NULL = allowed */
} dag_ops[] = {
    { "AI.TENSORSET", parse_dag_tensorset, NULL, NULL, NULL },
    { "AI.TENSORGET", parse_dag_tensorget, NULL, NULL, NULL },
    { "AI.MODELEXECUTE", parse_modelexecute, NULL, NULL, "AI.MODELEXECUTE cannot be used in a deprecated AI.DAGRUN command" },
    { "AI.SCRIPTEXECUTE", parse_scriptexecute, NULL, "ERR AI.SCRIPTEXECUTE command cannot be specified in a read-only DAG",
      "AI.SCRIPTEXECUTE cannot be used in a deprecated AI.DAGRUN command" },
    { "AI.MODELRUN", parse_modelrun, "Deprecated AI.MODELRUN cannot be used in AI.DAGEXECUTE command",
      "Deprecated AI.MODELRUN cannot be used in AI.DAGEXECUTE command", NULL },
    { "AI.SCRIPTRUN", parse_scriptrun, "Deprecated AI.SCRIPTRUN cannot be used in AI.DAGEXECUTE command",
      "Deprecated AI.SCRIPTRUN cannot be used in AI.DAGEXECUTE command", NULL },
};

static const char *parse_op(Words w, Op *op) {
    for (size_t i = 0; w.n && i < sizeof(dag_ops) / sizeof(dag_ops[0]); i++) {
        if (!word_is(w, 0, dag_ops[i].name)) continue;
        const char *refused = w.pl->deprecated ? dag_ops[i].in_run
                            : w.pl->read_only  ? dag_ops[i].in_execute_ro
                                               : dag_ops[i].in_execute;
        return refused ? refused : dag_ops[i].parse(w, op);
    }
    return "Unsupported command within DAG";
}

/* ---- the head of a DAG: LOAD, PERSIST, ROUTING, TIMEOUT, and where its ops begin ------------------------------------------ */

typedef struct Head {
    bool load, persist, routing, timeout;
    List loads, persists;
    int *load_slots;
    Words *ops;
    int nops;
} Head;

static const char *head_load(Planner *pl, int *at, Head *h) {
    int64_t n;
    if (pl->argc - *at - 1 < 2) return "ERR missing arguments after LOAD keyword in DAG command";
    if (!slice_to_int(pl->argv[*at + 1], &n) || n <= 0) return "ERR invalid or negative value found in number of keys to LOAD";
    int left = pl->argc - *at - 2;
    h->loads = (List){ *at + 2, n < left ? (int)n : left };
    h->load_slots = arena_alloc(pl->arena, (size_t)h->loads.n * sizeof(int));
    for (int i = 0; i < h->loads.n; i++) {
        name_key(pl, h->loads.first + i, READS);
        h->load_slots[i] = new_slot(pl);
        if (!pl->world->tensor) continue;
        const char *error = NULL;
        Tensor *t = pl->world->tensor(pl->world->u, h->loads.first + i, &error);
        if (!t) return error;
        pl->plan->slots[h->load_slots[i]] = t;
    }
    if (n > left) return "ERR number of keys to LOAD into DAG does not match the number of given arguments";
    *at += 2 + (int)n;
    return NULL;
}

/* Names come from clients, who shall not be able to choose them so that they meet in the table: a keyed hash, its key the random bytes that
 * the kernel gave the process. */
static uint64_t mix(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash_name(Slice s) {
    uint64_t key[2] = { 0 }, h, eight;
    const void *random = (const void *)getauxval(AT_RANDOM);
    if (random) memcpy(key, random, sizeof(key));
    h = key[0] ^ s.n;
    for (size_t i = 0; i < s.n; i += sizeof(eight)) {
        eight = 0;
        memcpy(&eight, s.p + i, s.n - i < sizeof(eight) ? s.n - i : sizeof(eight));
        h = mix(h ^ eight, key[1] | 1);
    }
    return h;
}

/* A table for `n` names at most: entries are -1 while they are empty. */
static void make_names(Planner *pl, int n) {
    int room = 16;
    while (room < n * 2) room *= 2;
    pl->names = arena_alloc(pl->arena, (size_t)room * sizeof(Name));
    pl->names_mask = room - 1;
    for (int i = 0; i < room; i++) pl->names[i].slot = -1;
}

/* The entry of a name, empty (slot -1) when it is new. */
static Name *find_name(Planner *pl, Slice name) {
    for (uint64_t i = hash_name(name);; i++) {
        Name *n = &pl->names[i & (uint64_t)pl->names_mask];
        if (n->slot < 0) {
            n->name = name;
            return n;
        }
        if (n->name.n == name.n && memcmp(n->name.p, name.p, name.n) == 0) return n;
    }
}

static bool has_duplicates(Planner *pl, List l) {
    int room = 16;
    while (room < l.n * 2) room *= 2;
    int *table = arena_alloc(pl->arena, (size_t)room * sizeof(int));
    for (int k = 0; k < l.n; k++) {
        Slice name = pl->argv[l.first + k];
        for (uint64_t i = hash_name(name);; i++) {
            int *at = &table[i & (uint64_t)(room - 1)];
            if (!*at) {
                *at = l.first + k;
                break;
            }
            Slice other = pl->argv[*at];
            if (other.n == name.n && memcmp(other.p, name.p, name.n) == 0) return true;
        }
    }
    return false;
}

static const char *head_persist(Planner *pl, int *at, Head *h) {
    int64_t n;
    if (pl->read_only) return "ERR PERSIST cannot be specified in a read-only DAG";
    if (pl->argc - *at - 1 < 2) return "ERR missing arguments after PERSIST keyword in DAG command";
    if (!slice_to_int(pl->argv[*at + 1], &n) || n <= 0) return "ERR invalid or negative value found in number of keys to PERSIST";
    int left = pl->argc - *at - 2;
    h->persists = (List){ *at + 2, n < left ? (int)n : left };
    name_keys(pl, h->persists, WRITES);
    if (has_duplicates(pl, h->persists)) return "ERR PERSIST keys must be unique";
    if (n > left) return "ERR number of keys to PERSIST after DAG execution does not match the number of given arguments";
    *at += 2 + (int)n;
    return NULL;
}

static const char *head_routing(Planner *pl, int *at, Head *h) {
    (void)h;
    if (*at + 1 == pl->argc) return "ERR Missing ROUTING value";
    name_key(pl, *at + 1, KEY_NOT_KEY); /* a hint for the cluster, no access */
    *at += 2;
    return NULL;
}

static const char *head_timeout(Planner *pl, int *at, Head *h) {
    (void)h;
    int64_t ms;
    if (*at + 1 == pl->argc) return "ERR No value provided for TIMEOUT";
    if (!slice_to_int(pl->argv[*at + 1], &ms)) return "ERR Invalid value for TIMEOUT";
    pl->plan->timeout_ms = ms > 0 ? ms : 0; /* zero and less mean none, as in 1.2.7 */
    *at += 2;
    return NULL;
}

static void head_op(Planner *pl, int *at, Head *h) {
    int first = *at + 1, end = first;
    while (end < pl->argc && !slice_is(pl->argv[end], "|>")) end++;
    h->ops[h->nops++] = (Words){ pl, first, end - first };
    *at = end;
}

static int count_ops(const Planner *pl) {
    int n = 0;
    for (int at = 1; at < pl->argc; at++) n += slice_is(pl->argv[at], "|>");
    return n;
}

static const char *parse_head(Planner *pl, Head *h) {
    static const struct {
        const char *keyword;
        size_t seen;
        const char *(*parse)(Planner *pl, int *at, Head *h);
    } keywords[] = {
        { "LOAD", offsetof(Head, load), head_load },
        { "PERSIST", offsetof(Head, persist), head_persist },
        { "ROUTING", offsetof(Head, routing), head_routing },
        { "TIMEOUT", offsetof(Head, timeout), head_timeout },
    };
    h->ops = arena_alloc(pl->arena, (size_t)count_ops(pl) * sizeof(Words));
    for (int at = 1; at < pl->argc;) {
        Slice token = pl->argv[at];
        if (slice_is(token, "|>") && at + 1 < pl->argc) {
            head_op(pl, &at, h);
            continue;
        }
        size_t k = 0;
        while (k < 4 && !slice_is(token, keywords[k].keyword)) k++;
        bool *seen = k < 4 ? (bool *)((char *)h + keywords[k].seen) : NULL;
        if (!seen || *seen) return with_word(pl, "ERR Invalid DAG command. Unexpected argument:  ", token);
        *seen = true;
        const char *error = keywords[k].parse(pl, &at, h);
        if (error) return error;
    }
    return NULL;
}

/* ---- names to slots, ops to tracks ---------------------------------------------------------------------------------------- */

static const char *resolve_op(Planner *pl, Op *op) {
    for (int i = 0; i < op->nin; i++) {
        Name *n = find_name(pl, pl->argv[op->in[i]]);
        if (n->slot < 0) return "ERR INPUT key cannot be found in DAG";
        op->in[i] = n->slot;
    }
    bool set = op->kind == OP_TENSORSET && pl->world->tensorset;
    for (int i = 0; i < op->nout; i++) {
        Name *n = find_name(pl, pl->argv[op->out[i]]);
        op->out[i] = n->slot = set ? op->show : new_slot(pl);
    }
    return NULL;
}

static int count_names(const Plan *plan, const Head *h) {
    int n = h->loads.n + h->persists.n;
    for (int i = 0; i < plan->nops; i++) n += plan->ops[i].nin + plan->ops[i].nout;
    return n;
}

static const char *resolve_names(Planner *pl, Head *h) {
    make_names(pl, count_names(pl->plan, h));
    for (int i = 0; i < h->loads.n; i++) find_name(pl, pl->argv[h->loads.first + i])->slot = h->load_slots[i];
    for (int i = 0; i < pl->plan->nops; i++) {
        const char *error = resolve_op(pl, &pl->plan->ops[i]);
        if (error) return error;
    }
    pl->plan->noutputs = h->persists.n;
    pl->plan->outputs = arena_alloc(pl->arena, (size_t)h->persists.n * sizeof(Output));
    for (int i = 0; i < h->persists.n; i++) {
        Name *n = find_name(pl, pl->argv[h->persists.first + i]);
        if (n->slot < 0) return "ERR PERSIST key cannot be found in DAG";
        pl->plan->outputs[i] = (Output){ n->slot, h->persists.first + i };
    }
    return NULL;
}

static void lay_tracks(Planner *pl) {
    Plan *plan = pl->plan;
    plan->tracks = arena_alloc(pl->arena, (size_t)plan->nops * sizeof(Track));
    for (int i = 0; i < plan->nops; i++) {
        Op *op = &plan->ops[i];
        if (!op->program) continue;
        plan->has_script |= op->kind == OP_SCRIPT;
        int t = 0;
        while (t < plan->ntracks && plan->tracks[t].queue != op->program->queue) t++;
        Track *track = &plan->tracks[t];
        if (t == plan->ntracks) {
            plan->ntracks++;
            *track = (Track){ op->program->queue, op, op };
        } else {
            track->last->after = op;
            track->last = op;
        }
    }
}

static bool on_gpu(const Op *op) {
    const Program *p = op->program;
    return p && p->backend == BACKEND_TORCH && p->device && slice_is((Slice){ p->device, strnlen(p->device, 3) }, "GPU");
}

/* Which slots only torch ops of one GPU's queue read: a tensor that goes from one to the next need not pass through the host. */
static void mark_resident(Planner *pl) {
    Plan *plan = pl->plan;
    struct RunQueue **owner = NULL;
    for (int i = 0; i < plan->nops; i++) {
        Op *op = &plan->ops[i];
        if (!on_gpu(op)) continue;
        if (!owner) owner = arena_alloc(pl->arena, (size_t)plan->nslots * sizeof(*owner));
        for (int k = 0; k < op->nout; k++) owner[op->out[k]] = op->program->queue;
    }
    if (!owner) return;
    plan->resident = arena_alloc(pl->arena, (size_t)plan->nslots * sizeof(bool));
    for (int s = 0; s < plan->nslots; s++) plan->resident[s] = owner[s] != NULL;
    for (int i = 0; i < plan->nops; i++) {
        Op *op = &plan->ops[i];
        for (int k = 0; k < op->nin; k++)
            if (!on_gpu(op) || owner[op->in[k]] != op->program->queue) plan->resident[op->in[k]] = false;
    }
    for (int i = 0; i < plan->noutputs; i++) plan->resident[plan->outputs[i].slot] = false;
}

static const char *plan_dag(Planner *pl, const char *too_few, int least) {
    if (pl->argc < least) return too_few;
    Head head = { 0 };
    const char *error = parse_head(pl, &head);
    if (error) return error;
    if (!pl->deprecated && !head.load && !head.persist && !head.routing)
        return "ERR AI.DAGEXECUTE and AI.DAGEXECUTE_RO commands must contain at least one out of ROUTING, LOAD, PERSIST keywords";
    if (!head.nops) return "ERR DAG is empty";
    pl->plan->form = REPLY_PER_OP;
    pl->plan->ops = arena_alloc(pl->arena, (size_t)head.nops * sizeof(Op));
    for (int i = 0; i < head.nops; i++) {
        pl->plan->nops = i + 1; /* so that plan_release sees a reference the op took before its error */
        if ((error = parse_op(head.ops[i], &pl->plan->ops[i]))) return error;
    }
    if ((error = resolve_names(pl, &head))) return error;
    lay_tracks(pl);
    mark_resident(pl);
    return NULL;
}

/* ---- commands with one op --------------------------------------------------------------------------------------------------- */

static const char *load_inputs(Planner *pl, Op *op) {
    for (int i = 0; i < op->nin; i++) {
        int arg = op->in[i];
        op->in[i] = new_slot(pl);
        if (!pl->world->tensor) continue;
        const char *error = NULL;
        Tensor *t = pl->world->tensor(pl->world->u, arg, &error);
        if (!t) return error;
        pl->plan->slots[op->in[i]] = t;
    }
    return NULL;
}

static void bind_outputs(Planner *pl, Op *op) {
    pl->plan->noutputs = op->nout;
    pl->plan->outputs = arena_alloc(pl->arena, (size_t)op->nout * sizeof(Output));
    for (int i = 0; i < op->nout; i++) {
        int slot = new_slot(pl);
        pl->plan->outputs[i] = (Output){ slot, op->out[i] };
        op->out[i] = slot;
    }
}

static const char *plan_single(Planner *pl, const char *(*parse)(Words, Op *)) {
    Op *op = pl->plan->ops = arena_alloc(pl->arena, sizeof(Op));
    pl->plan->nops = 1;
    const char *error = parse((Words){ pl, 0, pl->argc }, op);
    if (error) return error;
    if ((error = load_inputs(pl, op))) return error;
    bind_outputs(pl, op);
    lay_tracks(pl);
    return NULL;
}

const char *plan_make(RunCommand command, const Slice *argv, int argc, const PlanWorld *world, Arena *arena, Plan *plan) {
    static const struct {
        const char *(*single)(Words, Op *);
        const char *too_few; /* DAGs */
        int least;
        bool deprecated, read_only;
        const char *enterprise; /* why Redis Enterprise refuses it; NULL = allowed */
    } commands[CMD_COUNT] = {
        [CMD_MODELEXECUTE] = { .single = parse_modelexecute },
        [CMD_MODELRUN] = { .single = parse_modelrun,
                           .enterprise = "ERR AI.MODELRUN command is deprecated and cannot be used in enterprise cluster, "
                                         "use AI.MODELEXECUTE instead" },
        [CMD_SCRIPTEXECUTE] = { .single = parse_scriptexecute },
        [CMD_SCRIPTRUN] = { .single = parse_scriptrun },
        [CMD_DAGEXECUTE] = { .too_few = "ERR missing arguments for 'AI.DAGEXECUTE' command", .least = 6 },
        [CMD_DAGEXECUTE_RO] = { .too_few = "ERR missing arguments for 'AI.DAGEXECUTE_RO' command", .least = 6, .read_only = true },
        [CMD_DAGRUN] = { .too_few = "ERR wrong number of arguments for 'AI.DAGRUN' command", .least = 4, .deprecated = true,
                         .enterprise = "ERR AI.DAGRUN command is deprecated and cannot be used in enterprise cluster, "
                                       "use AI.DAGEXECUTE instead" },
        [CMD_DAGRUN_RO] = { .too_few = "ERR wrong number of arguments for 'AI.DAGRUN_RO' command", .least = 4, .deprecated = true,
                            .read_only = true,
                            .enterprise = "ERR AI.DAGRUN_RO command is deprecated and cannot be used in enterprise cluster, "
                                          "use AI.DAGEXECUTE_RO instead" },
    };
    memset(plan, 0, sizeof(*plan));
    if (world->enterprise && commands[command].enterprise) return commands[command].enterprise;
    Planner pl = { .argv = argv, .argc = argc, .world = world, .arena = arena, .plan = plan, .dag = !commands[command].single,
                   .deprecated = commands[command].deprecated, .read_only = commands[command].read_only };
    return pl.dag ? plan_dag(&pl, commands[command].too_few, commands[command].least) : plan_single(&pl, commands[command].single);
}

void plan_release(Plan *plan) {
    for (int i = 0; i < plan->nslots; i++) tensor_unref(plan->slots[i]);
    for (int i = 0; i < plan->nops; i++) {
        if (plan->ops[i].program) program_unref(plan->ops[i].program);
        if (plan->ops[i].error) RedisModule_Free(plan->ops[i].error);
    }
    memset(plan, 0, sizeof(*plan));
}
