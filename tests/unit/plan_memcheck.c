/* plan_memcheck.c -- plans thousands of commands, right and damaged ones, so that valgrind sees every byte that the planner reads.
 *
 * A sanitizer sees reads outside of what was allocated; only valgrind sees reads of what was allocated and never written. Each word of a
 * command is an allocation of exactly its length. Arguments: seed, commands. The status is 1 when something was not given back. */
#include "plan_driver.c"

#include <stdio.h>

static const char *const lines[] = {
    "AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 b",
    "AI.MODELEXECUTE m INPUTS 2 a b OUTPUTS 2 c d TIMEOUT 100",
    "AI.MODELRUN m TIMEOUT 5 INPUTS a OUTPUTS b",
    "AI.SCRIPTEXECUTE s f KEYS 1 k INPUTS 2 a b ARGS 1 x OUTPUTS 1 c TIMEOUT 7",
    "AI.SCRIPTRUN s f TIMEOUT 9 INPUTS a $ b OUTPUTS c",
    "AI.DAGEXECUTE LOAD 2 a b PERSIST 1 c ROUTING t TIMEOUT 9 |> AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 c |> AI.TENSORGET c VALUES",
    "AI.DAGEXECUTE PERSIST 1 t |> AI.TENSORSET t FLOAT 2 VALUES 1 2 |> AI.SCRIPTEXECUTE s f INPUTS 1 t OUTPUTS 1 u",
    "AI.DAGEXECUTE_RO LOAD 1 a |> AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 b |> AI.TENSORGET b META BLOB",
    "AI.DAGRUN LOAD 1 a |> AI.TENSORSET s STRING 2 VALUES x yz |> AI.MODELRUN m INPUTS a OUTPUTS b",
    "AI.DAGRUN_RO LOAD 1 a |> AI.TENSORGET a |> AI.TENSORSET b INT8 3 BLOB abc",
};
static const char *const words[] = { "INPUTS", "OUTPUTS", "KEYS", "ARGS", "LOAD", "PERSIST", "ROUTING", "TIMEOUT", "|>", "$", "AI.MODELEXECUTE",
                                     "AI.SCRIPTRUN", "AI.TENSORSET", "VALUES", "BLOB", "META", "0", "1", "2", "-1", "9223372036854775807",
                                     "99999999999999999999", "a", "none", "", "T", "TIMEOUTS", "STRING", "FLOAT" };
enum { LINES = sizeof lines / sizeof *lines, WORDS = sizeof words / sizeof *words, ROOM = 64 };

static uint64_t state;
static unsigned pick(unsigned n) { /* xorshift */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 33) % n;
}

/* ---- the world: names in `known`; everything else is not there ------------------------------------------------------------------- */

static const Slice *asked; /* the arguments of the command that is planned */
static Program *model, *script;
static Tensor *tensor;

static bool named(int arg, const char *known) { return asked[arg].n == 1 && strchr(known, asked[arg].p[0]); }

static Program *ask_program(int arg, int kind, const char **error) {
    *error = "ERR not there";
    if (!named(arg, kind == PROGRAM_MODEL ? "m" : "s")) return NULL;
    return program_ref(kind == PROGRAM_MODEL ? model : script);
}

static Tensor *ask_tensor(int arg, const char **error) {
    *error = "ERR not there";
    return named(arg, "abt") ? tensor_ref(tensor) : NULL;
}

static void ask_key(int arg, int access) {}

/* ---- commands --------------------------------------------------------------------------------------------------------------------- */

typedef struct Line {
    Slice word[ROOM];
    int n;
} Line;

static void split(const char *text, Line *line) {
    for (line->n = 0; *text; line->n++) {
        size_t n = strcspn(text, " ");
        line->word[line->n] = (Slice){ text, n };
        text += n + (text[n] == ' ');
    }
}

/* Changes, takes out or puts in one word, behind the command's name. */
static void damage(Line *line) {
    int at = 1 + (int)pick((unsigned)line->n - 1), how = (int)pick(3);
    const char *word = words[pick(WORDS)];
    if (how == 0 && line->n > 2) {
        memmove(line->word + at, line->word + at + 1, (size_t)(--line->n - at) * sizeof(Slice));
        return;
    }
    if (how == 1 && line->n < ROOM) {
        memmove(line->word + at + 1, line->word + at, (size_t)(line->n++ - at) * sizeof(Slice));
    }
    line->word[at] = (Slice){ word, strlen(word) };
}

static int command_of(Slice name) {
    static const char *const names[CMD_COUNT] = { "AI.MODELEXECUTE", "AI.MODELRUN", "AI.SCRIPTEXECUTE", "AI.SCRIPTRUN", "AI.DAGEXECUTE",
                                                  "AI.DAGEXECUTE_RO", "AI.DAGRUN", "AI.DAGRUN_RO" };
    int c = 0;
    while (!slice_is(name, names[c])) c++;
    return c;
}

/* Reads all that a plan holds, as those do who run it. */
static uint64_t look(const UnitPlan *p) {
    uint64_t sum = p->error ? strlen(p->error) : 0;
    for (int i = 0; !p->error && i < p->plan.nops; i++) {
        const Op *op = &p->plan.ops[i];
        for (int k = 0; k < op->nin; k++) sum += (unsigned)op->in[k];
        for (int k = 0; k < op->nout; k++) sum += (unsigned)op->out[k];
        for (int k = 0; k < op->nkeys; k++) sum += op->keys[k].n;
        sum += op->function.n + op->kind + op->state + (op->after != NULL);
    }
    for (int i = 0; i < p->plan.nslots; i++) sum += p->plan.slots[i] != NULL;
    for (int i = 0; !p->error && i < p->plan.noutputs; i++) sum += (unsigned)p->plan.outputs[i].slot;
    return sum;
}

static uint64_t plan_line(const Line *line) {
    size_t lengths[ROOM], total = 0;
    char bytes[ROOM * 24];
    for (int i = 0; i < line->n; i++) {
        lengths[i] = line->word[i].n;
        memcpy(bytes + total, line->word[i].p, line->word[i].n);
        total += line->word[i].n;
    }
    Slice *argv = unit_argv(bytes, lengths, line->n);
    uint64_t sum = 0;
    asked = argv;
    for (int how = RUN; how <= WALK_SILENTLY; how++) {
        UnitPlan *p = unit_plan(command_of(argv[0]), argv, line->n, how);
        sum += look(p);
        unit_plan_free(p);
    }
    unit_argv_free(argv, line->n);
    return sum;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    state = strtoull(argv[1], NULL, 10) | 1;
    long commands = strtol(argv[2], NULL, 10), planned = 0;
    static const int64_t dims[] = { 1, 1 };
    const char *error;
    unit_start(1 << 20);
    model = unit_program(0, -1, -1);
    script = unit_program(1, -1, -1);
    tensor = tensor_new(T_FLOAT, 2, dims, 0, &error);
    int64_t before = unit_live();
    uint64_t sum = 0;
    for (long i = 0; i < commands; i++) {
        Line line;
        split(lines[pick(LINES)], &line);
        for (unsigned times = pick(4); times; times--) damage(&line);
        sum += plan_line(&line);
        planned++;
    }
    printf("%ld commands planned, sum %llu, %lld allocations not given back\n", planned, (unsigned long long)sum,
           (long long)(unit_live() - before));
    return unit_live() != before;
}
