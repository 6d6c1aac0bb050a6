/* fault_points.c -- preloaded into a server: makes chosen allocations and starts of threads fail, as tests say in a file they share.
 *
 * 1. Only RM_TryAlloc called by the module may fail, because only it has an answer to that: Redis aborts where its own allocations fail.
 *    Who calls malloc is told by the stack: Redis's ztrymalloc, and above it redisai.so.
 * 2. The file is four ints, mapped by the test and by the server: see enum. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WATCH, CALLS, FAIL_AT, NO_THREADS, WORDS }; /* count calls of RM_TryAlloc; how many; which fails (from 1); no thread starts */

static volatile int *points;
static void *(*real_malloc)(size_t);
static int (*real_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
static __thread int inside;

__attribute__((constructor)) static void map_points(void) {
    int fd = open(getenv("FAULT_POINTS"), O_RDWR | O_CLOEXEC);
    void *address = mmap(NULL, WORDS * sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    points = address == MAP_FAILED ? NULL : address;
    close(fd);
}

static int is_the_modules_try(void) {
    void *frames[4] = {0};
    Dl_info callee = {0}, caller = {0};
    if (backtrace(frames, 4) < 4 || !dladdr(frames[2], &callee) || !dladdr(frames[3], &caller)) return 0;
    return callee.dli_sname && strncmp(callee.dli_sname, "ztrymalloc", 10) == 0 && caller.dli_fname && strstr(caller.dli_fname, "redisai.so");
}

__attribute__((noinline)) static int fails(void) {
    inside = 1;
    int now = is_the_modules_try() && __atomic_add_fetch(&points[CALLS], 1, __ATOMIC_SEQ_CST) == points[FAIL_AT];
    inside = 0;
    return now;
}

void *malloc(size_t n) {
    if (!real_malloc) *(void **)&real_malloc = dlsym(RTLD_NEXT, "malloc");
    if (points && points[WATCH] && !inside && fails()) return NULL;
    return real_malloc(n);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    if (!real_create) *(void **)&real_create = dlsym(RTLD_NEXT, "pthread_create");
    return points && points[NO_THREADS] ? EAGAIN : real_create(thread, attributes, start, argument);
}
