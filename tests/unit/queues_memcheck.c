/* queues_memcheck.c -- jobs, run queues and the timer under thousands of random steps, for valgrind (see plan_memcheck.c).
 *
 * Jobs of one to three ops come, their clients leave, batches are taken and finished, failed or split, models are opened or cannot be, time
 * passes. In the end everything is given back. Arguments: seed, steps. The status is 1 when a job or an allocation is left. */
#include "queues_driver.c"

static uint64_t state;
static unsigned pick(unsigned n) { /* xorshift */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 33) % n;
}

enum { PROGRAMS = 6, JOBS = 200, HELD = 4 };

static Program *programs[PROGRAMS];
static Worker *workers[2];
static Job *jobs[JOBS]; /* in flight */
static int njobs;
static Batch *held[HELD]; /* in the hands of workers */
static long replies;

/* Of one or two columns of numbers or of empty strings; sometimes a scalar. */
static Tensor *tensor_of(int rows) {
    static const char zeros[4 * 2 * sizeof(double)];
    int64_t dims[] = { rows, 1 + pick(2) };
    int ndim = pick(10) ? 2 : 0;
    bool strings = pick(8) == 0;
    size_t length = ndim ? (size_t)(dims[0] * dims[1]) : 1;
    return unit_tensor(strings ? T_STRING : T_DOUBLE, ndim, dims, zeros, strings ? length : length * sizeof(double));
}

/* Ops in a row, each reading what the one before it gave. */
static void arrive(void) {
    if (njobs == JOBS) return;
    int nops = 1 + (int)(pick(4) == 0) + (int)(pick(8) == 0);
    Job *job = unit_job(nops, nops + 1);
    for (int i = 0; i < nops; i++) {
        int in = i, out = i + 1;
        unit_op(job, i, programs[pick(PROGRAMS)], 1, &in, 1, &out);
    }
    unit_slot(job, 0, tensor_of(1 + (int)pick(4)));
    jobs[njobs++] = job;
    unit_run(job, pick(3) ? 0 : 1 + pick(20), pick(2));
}

static void leave(void) {
    if (njobs) unit_disconnect(jobs[pick((unsigned)njobs)]);
}

static void collect(void) {
    for (Job *job; (job = unit_ended()); replies++) {
        int at = 0;
        while (jobs[at] != job) at++;
        jobs[at] = jobs[--njobs];
        unit_free(job);
    }
}

static int free_hand(void) {
    int i = 0;
    while (i < HELD && held[i]) i++;
    return i;
}

static void take(void) {
    int hand = free_hand();
    int64_t look_again;
    unsigned queue = pick(2);
    if (hand < HELD) held[hand] = unit_take(programs[queue ? PROGRAMS - 1 : 0], workers[queue], &look_again);
}

static void finish(Batch *b) {
    Tensor *output = NULL;
    const char *error = batch_gather(b, 0, &output);
    if (error || pick(6) == 0) {
        tensor_unref(output);
        batch_fail(b, error ? error : "ERR no");
        return;
    }
    if (pick(8) == 0) { /* nothing was produced */
        tensor_unref(output);
        output = NULL;
    }
    batch_finish(b, &output, 1, 1);
}

static void give_back(void) {
    unsigned hand = pick(HELD);
    Batch *b = held[hand];
    if (!b) return;
    held[hand] = NULL;
    if (b->n == 1 || pick(3)) {
        finish(b);
        return;
    }
    int n = b->n;
    Batch **members = malloc((size_t)n * sizeof(*members));
    batch_split(b, members);
    for (int i = 0; i < n; i++) {
        batch_restart(members[i]);
        finish(members[i]);
    }
    free(members);
}

static void open_one(void) {
    if (!inbox_length()) return;
    Message *m = inbox_pop();
    Program *p = m->program;
    unit_opened(p, pick(2) ? NULL : "ERR cannot be opened");
    program_unref(p);
    RedisModule_Free(m);
}

static void pass(int64_t us) {
    int64_t next;
    clock_us += us;
    jobs_expire(clock_us, &next);
}

static void start(void) {
    static const struct {
        const char *device;
        int kind, state;
        int64_t batchsize, minbatchsize, minbatchtimeout;
    } rows[PROGRAMS] = {
        { "CPU", PROGRAM_MODEL, PROGRAM_OPEN, 0, 0, 0 },   { "CPU", PROGRAM_MODEL, PROGRAM_OPEN, 6, 0, 0 },
        { "CPU", PROGRAM_MODEL, PROGRAM_OPEN, 6, 4, 10 },  { "CPU", PROGRAM_MODEL, PROGRAM_UNOPENED, 6, 0, 0 },
        { "CPU", PROGRAM_SCRIPT, PROGRAM_OPEN, 0, 0, 0 },  { "GPU", PROGRAM_MODEL, PROGRAM_OPEN, 4, 3, 0 },
    };
    clock_us = 1000;
    unit_start();
    for (int i = 0; i < PROGRAMS; i++)
        programs[i] = unit_program(rows[i].device, rows[i].kind, rows[i].state, rows[i].batchsize, rows[i].minbatchsize,
                                   rows[i].minbatchtimeout);
    workers[0] = unit_worker(programs[0]);
    workers[1] = unit_worker(programs[PROGRAMS - 1]);
}

/* A model that is stored again: one that nobody has opened takes the place of one that may have failed. */
static void store_again(void) {
    if (pick(20)) return;
    unit_drop(programs[3], true);
    program_unref(programs[3]);
    programs[3] = unit_program("CPU", PROGRAM_MODEL, PROGRAM_UNOPENED, 6, 0, 0);
}

static void drain(void) {
    unit_pause(false);
    for (int i = 0; i < PROGRAMS; i++) unit_drop(programs[i], true);
    for (int turn = 0; njobs && turn < 100000; turn++) {
        open_one();
        take();
        give_back();
        collect();
    }
    while (inbox_length()) open_one();
    for (int i = 0; i < PROGRAMS; i++) program_unref(programs[i]);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    state = strtoull(argv[1], NULL, 10) | 1;
    long steps = strtol(argv[2], NULL, 10);
    start();
    /* Queues, workers, their names and the timer's heap stay. */
    int64_t before = unit_live() - PROGRAMS;
    for (long i = 0; i < steps; i++) {
        static void (*const rest[])(void) = { take, give_back, leave, open_one, store_again };
        unsigned n = pick(16);
        if (n < 6) arrive();
        else if (n < 15) rest[n < 9 ? 0 : n < 12 ? 1 : n - 10]();
        else pass(pick(30) * 1000);
        if (pick(50) == 0) unit_pause(pick(2));
        collect();
    }
    drain();
    int64_t left = unit_live() - before;
    printf("%ld jobs answered, %d left, %lld allocations not given back\n", replies, njobs, (long long)left);
    return njobs || left > 1;
}
