/* coverage.c -- gives libFuzzer, made for clang, the coverage that gcc has.
 *
 * gcc calls one function from every edge (-fsanitize-coverage=trace-pc); libFuzzer wants a counter of 8 bits for each. The counter is found
 * by the caller's address: the code of a target is smaller than the table, so that edges share no counter but by the rounding of 4 bytes.
 * This file is compiled without the option, or it would call itself. */
#include <stdint.h>

enum { COUNTERS = 1 << 16 };
static uint8_t counters[COUNTERS];

void __sanitizer_cov_8bit_counters_init(uint8_t *start, uint8_t *stop);
int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*run)(const uint8_t *data, uint64_t size));
int LLVMFuzzerTestOneInput(const uint8_t *data, uint64_t size);

void __sanitizer_cov_trace_pc(void) { counters[(uintptr_t)__builtin_return_address(0) >> 2 & (COUNTERS - 1)]++; }

/* Comparisons of floating point numbers: libFuzzer has no use for them. */
void __sanitizer_cov_trace_cmpf(float a, float b) {}
void __sanitizer_cov_trace_cmpd(double a, double b) {}

int main(int argc, char **argv) {
    __sanitizer_cov_8bit_counters_init(counters, counters + COUNTERS);
    return LLVMFuzzerRunDriver(&argc, &argv, LLVMFuzzerTestOneInput);
}
