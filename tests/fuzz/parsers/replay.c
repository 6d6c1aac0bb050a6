/* replay.c -- runs a target on the files it is given, where there is no libFuzzer to do so. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LONGEST = 1 << 20 };

int main(int argc, char **argv) {
    LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        uint8_t *data = malloc(LONGEST);
        size_t n = file ? fread(data, 1, LONGEST, file) : 0;
        if (!file) return perror(argv[i]), 1;
        fclose(file);
        uint8_t *exact = realloc(data, n ? n : 1); /* so that a byte read past the end is seen */
        printf("%s\n", argv[i]);
        fflush(stdout);
        LLVMFuzzerTestOneInput(exact, n);
        free(exact);
    }
    return 0;
}
