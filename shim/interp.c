/* interp.c -- finds Python, starts it on a thread of its own, and hands it the shim's functions.
 *
 * redisai.so links no Python. libpython is opened here, when the server loads the module, with RTLD_GLOBAL: Redis opens modules
 * with RTLD_LOCAL, and numpy's extension modules would not find Python's symbols. So one redisai.so serves any server, and a missing
 * Python is a line in the log, not a failed load of the library.
 *
 * Which Python: (1) the load argument PYTHON; (2) the environment this file was installed into, found from its own path; (3) what the
 * file redisai.python beside it names (written by a build in a checkout). Its version must be the one we were built with.
 *
 * The interpreter gets an isolated configuration: no PYTHON* variables, no user site, no current directory, no signal handlers. It is
 * never finalized: libraries with threads of their own do not survive that. The holder of the Redis lock waits for it once, here. */
#include "py.h"

#include "ai.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

const char *ai_git_sha = RAI_GIT_SHA;
char python_version[64] = "none";

/* ---- the functions of libpython that are used ---------------------------------------------------------------------------------- */

#define PYTHON_FUNCTIONS(X) \
    X(const char *, Py_GetVersion, (void)) \
    X(void, PyConfig_InitIsolatedConfig, (PyConfig *)) \
    X(PyStatus, PyConfig_SetBytesString, (PyConfig *, wchar_t **, const char *)) \
    X(PyStatus, Py_InitializeFromConfig, (const PyConfig *)) \
    X(void, PyConfig_Clear, (PyConfig *)) \
    X(int, PyStatus_Exception, (PyStatus)) \
    X(PyObject *, PyImport_ImportModule, (const char *)) \
    X(PyObject *, PyCapsule_New, (void *, const char *, PyCapsule_Destructor)) \
    X(PyObject *, PyObject_CallMethod, (PyObject *, const char *, const char *, ...)) \
    X(void, PyErr_Fetch, (PyObject **, PyObject **, PyObject **)) \
    X(void, PyErr_NormalizeException, (PyObject **, PyObject **, PyObject **)) \
    X(PyObject *, PyObject_Str, (PyObject *)) \
    X(const char *, PyUnicode_AsUTF8, (PyObject *)) \
    X(PyThreadState *, PyEval_SaveThread, (void))
#define PYTHON_DECLARE(ret, name, args) static ret(*call_##name) args;
PYTHON_FUNCTIONS(PYTHON_DECLARE)

static char *look_up_functions(void *library) {
#define PYTHON_FIND(ret, name, args) \
    if (!(*(void **)&call_##name = dlsym(library, #name))) return text("libpython has no function " #name);
    PYTHON_FUNCTIONS(PYTHON_FIND)
    return NULL;
}

/* ---- which Python --------------------------------------------------------------------------------------------------------------- */

typedef struct Path {
    char s[PATH_MAX];
} Path;

static bool exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

static bool path_set(Path *p, const char *format, const char *a, const char *b) {
    int n = snprintf(p->s, sizeof(p->s), format, a, b);
    return n > 0 && n < (int)sizeof(p->s);
}

static void cut_last(Path *p) {
    char *slash = strrchr(p->s, '/');
    if (slash) *slash = 0;
}

/* Directory of redisai.so, links resolved. */
static bool own_directory(Path *dir) {
    Dl_info found;
    if (!dladdr((void *)own_directory, &found) || !realpath(found.dli_fname, dir->s)) return false;
    cut_last(dir);
    return true;
}

static bool python_of_prefix(const Path *prefix, Path *python) {
    return path_set(python, "%s/bin/python%s", prefix->s, "") && exists(python->s);
}

/* <prefix>/lib/pythonX.Y/site-packages/redisai_py/redisai.so */
static bool python_of_installation(const Path *dir, Path *python) {
    Path prefix = *dir;
    for (int i = 0; i < 4; i++) cut_last(&prefix);
    return strstr(dir->s, "/site-packages/") && python_of_prefix(&prefix, python);
}

static bool python_of_file(const Path *dir, Path *python) {
    Path file;
    if (!path_set(&file, "%s/%s", dir->s, "redisai.python")) return false;
    FILE *f = fopen(file.s, "re");
    if (!f) return false;
    bool read = fgets(python->s, sizeof(python->s), f) != NULL;
    fclose(f);
    if (read) python->s[strcspn(python->s, "\r\n")] = 0;
    return read && exists(python->s);
}

static char *find_python(Path *python) {
    Path dir;
    if (config.python) {
        if (path_set(python, "%s%s", config.python, "") && exists(python->s)) return NULL;
        return text("load argument PYTHON: there is no file %s", config.python);
    }
    if (!own_directory(&dir)) return text("cannot tell where redisai.so lies");
    if (python_of_installation(&dir, python) || python_of_file(&dir, python)) return NULL;
    return text("no Python found for %s/redisai.so: install the package with pip in a virtual environment, or give the load argument "
                "PYTHON /path/to/venv/bin/python", dir.s);
}

/* ---- its library ------------------------------------------------------------------------------------------------------------------ */

/* Directory that holds the base installation's bin/: a virtual environment names it in pyvenv.cfg. */
static void home_of(const Path *python, Path *home) {
    Path cfg = *python;
    cut_last(&cfg);
    cut_last(&cfg);
    strncat(cfg.s, "/pyvenv.cfg", sizeof(cfg.s) - strlen(cfg.s) - 1);
    if (!realpath(python->s, home->s)) *home = *python;
    cut_last(home);
    FILE *f = fopen(cfg.s, "re");
    char line[PATH_MAX + 16];
    while (f && fgets(line, sizeof(line), f)) {
        char *value = strchr(line, '=');
        if (strncmp(line, "home", 4) != 0 || !value) continue;
        value += 1 + strspn(value + 1, " \t");
        value[strcspn(value, "\r\n")] = 0;
        path_set(home, "%s%s", value, "");
    }
    if (f) fclose(f);
}

static void *open_library(const Path *python) {
    Path home, candidate;
    static const char *const below[] = { "/../lib/" RAI_LIBPYTHON_SONAME, "/../lib64/" RAI_LIBPYTHON_SONAME };
    home_of(python, &home);
    for (size_t i = 0; i < sizeof(below) / sizeof(below[0]); i++)
        if (path_set(&candidate, "%s%s", home.s, below[i]) && exists(candidate.s)) return dlopen(candidate.s, RTLD_NOW | RTLD_GLOBAL);
    if (exists(RAI_LIBPYTHON_DIR "/" RAI_LIBPYTHON_SONAME)) return dlopen(RAI_LIBPYTHON_DIR "/" RAI_LIBPYTHON_SONAME, RTLD_NOW | RTLD_GLOBAL);
    return dlopen(RAI_LIBPYTHON_SONAME, RTLD_NOW | RTLD_GLOBAL);
}

static char *load_library(const Path *python) {
    void *library = open_library(python);
    if (!library)
        return text("cannot open " RAI_LIBPYTHON_SONAME " for %s: %s. On Debian and Ubuntu: apt-get install libpython" RAI_PYTHON_VERSION,
                    python->s, dlerror());
    char *error = look_up_functions(library);
    if (error) return error;
    const char *version = call_Py_GetVersion();
    size_t n = strlen(RAI_PYTHON_VERSION);
    if (strncmp(version, RAI_PYTHON_VERSION, n) != 0 || version[n] != '.')
        return text("the module was built for Python " RAI_PYTHON_VERSION " but found %.10s: build it again with that Python", version);
    snprintf(python_version, sizeof(python_version), "%.*s", (int)strcspn(version, " "), version);
    return NULL;
}

/* ---- start ------------------------------------------------------------------------------------------------------------------------ */

typedef struct Start {
    Path python;
    sem_t done;
    char *error;
} Start;

static char *initialize(const Path *python) {
    PyConfig c;
    call_PyConfig_InitIsolatedConfig(&c);
    c.install_signal_handlers = 0;
    c.parse_argv = 0;
    c.write_bytecode = 0;
    PyStatus s = call_PyConfig_SetBytesString(&c, &c.executable, python->s);
    if (!call_PyStatus_Exception(s)) s = call_Py_InitializeFromConfig(&c);
    call_PyConfig_Clear(&c);
    return call_PyStatus_Exception(s) ? text("Python did not start: %s", s.err_msg ? s.err_msg : "no reason given") : NULL;
}

static char *python_error(const char *what) {
    PyObject *type, *value, *trace;
    call_PyErr_Fetch(&type, &value, &trace);
    call_PyErr_NormalizeException(&type, &value, &trace);
    PyObject *line = value ? call_PyObject_Str(value) : NULL;
    const char *words = line ? call_PyUnicode_AsUTF8(line) : NULL;
    return text("%s: %s", what, words ? words : "unknown error");
}

static char *start_engine(void) {
    PyObject *engine = call_PyImport_ImportModule("redisai_py.engine");
    if (!engine) return python_error("cannot import redisai_py (is it installed in this Python?)");
    PyObject *capsule = call_PyCapsule_New((void *)&shim_table, "redisai_py.shim", NULL);
    if (!capsule || !call_PyObject_CallMethod(engine, "start", "O", capsule)) return python_error("cannot start redisai_py");
    return NULL;
}

/* Becomes Python's main thread. It has nothing to do once the engine's threads run, but must not end. */
static void *interpreter_main(void *argument) {
    Start *start = argument;
    char *error = initialize(&start->python);
    bool running = !error;
    if (!error) error = start_engine();
    if (running) call_PyEval_SaveThread();
    start->error = error;
    sem_post(&start->done);
    for (;;) pause();
    return NULL;
}

/* Before numpy and torch load: OpenBLAS's own threads hang fork(), and spinning OpenMP threads cost a busy machine 5 to 25 times the
 * time of a run. The operator's own settings win. */
static void set_environment(void) {
    setenv("OPENBLAS_NUM_THREADS", "1", 0);
    setenv("OMP_WAIT_POLICY", "PASSIVE", 0);
    setenv("GOMP_SPINCOUNT", "0", 0);
    setenv("TF_CPP_MIN_LOG_LEVEL", "3", 0);
}

char *interp_start(RedisModuleCtx *ctx) {
    static Start start; /* outlives this call: the thread keeps a pointer */
    static bool begun;
    char *error = find_python(&start.python);
    if (!error) error = load_library(&start.python);
    if (error) return error;
    if (begun) return text("an earlier load failed after Python had started: the server has to be restarted");
    begun = true;
    set_environment();
    sem_init(&start.done, 0, 0);
    int failed = thread_start("ai-python", 16 << 20, interpreter_main, &start); /* libraries recurse; the server's limit may be small */
    if (failed) return text("cannot start a thread for Python: %s", strerror(failed));
    while (sem_wait(&start.done) != 0 && errno == EINTR) {}
    if (!start.error) RedisModule_Log(ctx, "notice", "Python %s runs from %s", python_version, start.python.s);
    return start.error;
}
