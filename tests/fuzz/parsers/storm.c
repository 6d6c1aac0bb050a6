/* storm.c -- runs a target on as many changed inputs as a core can take: no coverage is counted, so it is some ten times libFuzzer's pace.
 *
 *     storm SEED COUNT ARTIFACT file...
 *
 * Each input is one of the files, changed in one to eight places: a bit, a byte, a number at which C breaks, a piece cut out, doubled or taken
 * from another file. libFuzzer finds the ways through the code (the files are what it found); this one goes them with every kind of
 * number. The input in hand is written to ARTIFACT when a sanitizer ends the process. The same seed makes the same inputs. */
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

enum { LONGEST = 512, CHANGES = 8 };

typedef struct Input {
    uint8_t data[LONGEST];
    size_t n;
} Input;

static const char *artifact;
static Input now; /* the input in hand */

static void write_artifact(void) {
    FILE *file = fopen(artifact, "wb");
    if (!file) return;
    fwrite(now.data, 1, now.n, file);
    fclose(file);
}

static void on_abort(int signal_number) {
    write_artifact();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

/* xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled" (2016). */
static uint64_t state;
static uint64_t draw(uint64_t below) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 0x2545F4914F6CDD1DULL >> 11) % below;
}

/* Opens a gap of n bytes at `at`, as far as there is room; returns how many. */
static size_t open_gap(size_t at, size_t n) {
    if (n > LONGEST - now.n) n = LONGEST - now.n;
    memmove(now.data + at + n, now.data + at, now.n - at);
    now.n += n;
    return n;
}

static void flip(const Input *other) {
    if (now.n) now.data[draw(now.n)] ^= (uint8_t)(1 << draw(8));
}

static void byte(const Input *other) {
    if (now.n) now.data[draw(now.n)] = (uint8_t)draw(256);
}

static void cut(const Input *other) {
    if (!now.n) return;
    size_t at = draw(now.n), n = 1 + draw(now.n - at);
    if (n > 16 && draw(4)) n = 1 + draw(16);
    memmove(now.data + at, now.data + at + n, now.n - at - n);
    now.n -= n;
}

static void twice(const Input *other) {
    if (!now.n) return;
    uint8_t piece[LONGEST];
    size_t from = draw(now.n), n = 1 + draw(now.n - from);
    memcpy(piece, now.data + from, n);
    size_t at = draw(now.n + 1);
    memcpy(now.data + at, piece, open_gap(at, n));
}

static void splice(const Input *other) {
    if (!other->n) return;
    size_t from = draw(other->n), at = draw(now.n + 1);
    memcpy(now.data + at, other->data + from, open_gap(at, 1 + draw(other->n - from)));
}

/* As text and as the eight bytes of a number, in either order. */
static void number(const Input *other) {
    static const int64_t breaking[] = {0, -1, 1, 127, 255, 256, 32767, 65535, INT32_MAX, INT32_MIN, UINT32_MAX, 1LL << 32, INT64_MAX, INT64_MIN};
    uint64_t value = (uint64_t)breaking[draw(sizeof breaking / sizeof *breaking)] + draw(3) - 1;
    char piece[32];
    size_t n = 8;
    int form = (int)draw(3);
    if (form == 0) n = (size_t)snprintf(piece, sizeof piece, "%lld", (long long)value);
    if (form == 1) memcpy(piece, &value, 8);
    if (form == 2)
        for (int i = 0; i < 8; i++) piece[i] = (char)(value >> 8 * (7 - i));
    size_t at = draw(now.n + 1);
    bool over = draw(2) && now.n - at >= n;
    memcpy(now.data + at, piece, over ? n : open_gap(at, n));
}

static void (*const changes[])(const Input *other) = {flip, byte, cut, twice, splice, number};

static Input *read_inputs(char **paths, int n) {
    Input *inputs = calloc((size_t)n, sizeof *inputs);
    for (int i = 0; i < n; i++) {
        FILE *file = fopen(paths[i], "rb");
        if (!file) perror(paths[i]), exit(1);
        inputs[i].n = fread(inputs[i].data, 1, LONGEST, file);
        fclose(file);
    }
    return inputs;
}

int main(int argc, char **argv) {
    if (argc < 5) return fprintf(stderr, "storm SEED COUNT ARTIFACT file...\n"), 1;
    LLVMFuzzerInitialize(&argc, &argv);
    state = strtoull(argv[1], NULL, 10) * 2 + 1;
    uint64_t count = strtoull(argv[2], NULL, 10);
    artifact = argv[3];
    int n = argc - 4;
    Input *inputs = read_inputs(argv + 4, n);
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(write_artifact);
    signal(SIGABRT, on_abort);
    for (uint64_t i = 0; i < count; i++) {
        now = inputs[draw((uint64_t)n)];
        for (uint64_t times = 1 + draw(CHANGES); times; times--) changes[draw(sizeof changes / sizeof *changes)](&inputs[draw((uint64_t)n)]);
        uint8_t *exact = malloc(now.n ? now.n : 1); /* so that a byte read past the end is seen */
        memcpy(exact, now.data, now.n);
        LLVMFuzzerTestOneInput(exact, now.n);
        free(exact);
    }
    free(inputs);
    printf("%llu\n", (unsigned long long)count);
    return 0;
}
