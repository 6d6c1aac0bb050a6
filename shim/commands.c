/* commands.c -- the one table of commands. A row is everything that a server, a client or a reader of the documentation is told about a
 * command; registration, COMMAND INFO and COMMAND DOCS, ACL categories and the heads of the pages in docs/commands all come from it.
 *
 * 1. Names are lower case: servers from 7.0 on put them as they are into the arity error, where clients know them so.
 * 2. The registered arity is -1 and RM_SetCommandInfo does not set it: a server that knew more would refuse a short command itself, with a
 *    text of its own, and abort a transaction over it. Commands check, with the texts of 1.2.7.
 * 3. Where keys are at fixed places the key spec says so with its kind of access, and nothing else is asked. A run command's keys are
 *    found by planning it (plan.c), which a server asks for only when some spec of the command is marked VARIABLE_FLAGS: without that
 *    mark it trusts the specs, and every key that they do not show escapes access control.
 * 4. first, last and step are those of 1.2.7, for clients that route by them. A server computes them anew from the specs that are a fixed
 *    range: hence the first spec of each run command, at the place that they name. */
#include "ai.h"

#include <stdio.h>

typedef RedisModuleCommandArg Arg;
typedef RedisModuleCommandKeySpec KeySpec;

typedef struct Command {
    const char *name;
    RedisModuleCmdFunc run;
    const char *flags;
    int first, last, step;
    const char *summary, *complexity, *tips;
    const KeySpec *keys; /* ends with a zeroed one; NULL = none */
    const Arg *args;     /* likewise */
} Command;

#define RUN(name, command) \
    static int name(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) { return cmd_run(ctx, argv, argc, command); }
RUN(cmd_modelexecute, CMD_MODELEXECUTE)
RUN(cmd_modelrun, CMD_MODELRUN)
RUN(cmd_scriptexecute, CMD_SCRIPTEXECUTE)
RUN(cmd_scriptrun, CMD_SCRIPTRUN)
RUN(cmd_dagexecute, CMD_DAGEXECUTE)
RUN(cmd_dagexecute_ro, CMD_DAGEXECUTE_RO)
RUN(cmd_dagrun, CMD_DAGRUN)
RUN(cmd_dagrun_ro, CMD_DAGRUN_RO)

/* ---- keys ----------------------------------------------------------------------------------------------------------- */

enum {
    READS = KEY_RO | KEY_ACCESS,
    WRITES = KEY_OW | KEY_UPDATE,
    READS_AND_WRITES = KEY_RW | KEY_ACCESS | KEY_UPDATE,
    DELETES = KEY_RM | KEY_DELETE,
    ASK = KEY_VARIABLE_FLAGS | KEY_INCOMPLETE, /* the command itself knows better */
};

/* One key at a fixed place; a list after a keyword and its count; a list after a keyword, up to the end; keys that no spec can describe. */
#define KEY_AT(position, access, ...) \
    {.flags = access, .begin_search_type = BEGIN_INDEX, .bs.index.pos = position, .find_keys_type = FIND_RANGE, \
     .fk.range = {0, 1, 0}, __VA_ARGS__}
#define COUNTED(word, from, access) \
    {.flags = access, .begin_search_type = BEGIN_KEYWORD, .bs.keyword = {word, from}, .find_keys_type = FIND_KEYNUM, .fk.keynum = {0, 1, 1}}
#define TO_THE_END(word, from, access) \
    {.flags = access, .begin_search_type = BEGIN_KEYWORD, .bs.keyword = {word, from}, .find_keys_type = FIND_RANGE, .fk.range = {-1, 1, 0}}
#define SOMEWHERE(why, access) \
    {.flags = (access) | KEY_INCOMPLETE, .notes = why, .begin_search_type = BEGIN_UNKNOWN, .find_keys_type = FIND_UNKNOWN}
#define NO_MORE {0}

static const KeySpec reads_key[] = {KEY_AT(1, READS), NO_MORE};
static const KeySpec writes_key[] = {KEY_AT(1, WRITES), NO_MORE};
static const KeySpec deletes_key[] = {KEY_AT(1, DELETES), NO_MORE};

/* Specs are numbered from 0: arguments that are keys refer to them. */
enum { RUN_PROGRAM = 1, RUN_INPUTS = 2, RUN_OUTPUTS = 3, RUN_KEYS = 4 };
enum { DAG_LOAD = 1, DAG_PERSIST = 2 };

#define CALLBACK_KNOWS .notes = "where the keys are depends on the arguments: ask COMMAND GETKEYS"

static const KeySpec modelexecute_keys[] = {
    KEY_AT(4, READS | ASK, CALLBACK_KNOWS),
    KEY_AT(1, READS),
    COUNTED("INPUTS", 2, READS),
    COUNTED("OUTPUTS", 4, WRITES | KEY_INCOMPLETE),
    NO_MORE,
};
static const KeySpec modelrun_keys[] = {
    KEY_AT(3, READS | ASK, CALLBACK_KNOWS),
    KEY_AT(1, READS),
    SOMEWHERE("between INPUTS and OUTPUTS", READS),
    TO_THE_END("OUTPUTS", 3, WRITES | KEY_INCOMPLETE),
    NO_MORE,
};
static const KeySpec scriptexecute_keys[] = {
    KEY_AT(5, READS_AND_WRITES | ASK, CALLBACK_KNOWS),
    KEY_AT(1, READS),
    COUNTED("INPUTS", 3, READS | KEY_INCOMPLETE),
    COUNTED("OUTPUTS", 5, WRITES | KEY_INCOMPLETE),
    COUNTED("KEYS", 3, READS_AND_WRITES | KEY_INCOMPLETE),
    NO_MORE,
};
static const KeySpec scriptrun_keys[] = {
    KEY_AT(4, READS | ASK, CALLBACK_KNOWS),
    KEY_AT(1, READS),
    SOMEWHERE("between INPUTS and OUTPUTS", READS),
    TO_THE_END("OUTPUTS", 4, WRITES | KEY_INCOMPLETE),
    NO_MORE,
};
#define DAG_KEYS(...) \
    { \
        KEY_AT(3, READS | ASK, CALLBACK_KNOWS), COUNTED("LOAD", 1, READS | KEY_INCOMPLETE), __VA_ARGS__, \
            SOMEWHERE("models and scripts of the operations, and KEYS of scripts", READS_AND_WRITES), NO_MORE \
    }
static const KeySpec dag_keys[] = DAG_KEYS(COUNTED("PERSIST", 1, WRITES | KEY_INCOMPLETE));
static const KeySpec dag_ro_keys[] = {
    KEY_AT(3, READS | ASK, CALLBACK_KNOWS),
    COUNTED("LOAD", 1, READS | KEY_INCOMPLETE),
    SOMEWHERE("models of the operations", READS),
    NO_MORE,
};

/* ---- arguments ------------------------------------------------------------------------------------------------------ */

#define ARG(what, kind, ...) {.name = what, .type = ARG_##kind, __VA_ARGS__}
#define TOKEN(what, word, ...) {.name = what, .type = ARG_PURE_TOKEN, .token = word, __VA_ARGS__}
#define KEY(what, spec, ...) {.name = what, .type = ARG_KEY, .key_spec_index = spec, __VA_ARGS__}
#define OPTIONAL .flags = ARG_OPTIONAL
#define LIST .flags = ARG_MULTIPLE
#define LIST_OR_NONE .flags = ARG_MULTIPLE | ARG_OPTIONAL
#define OF(...) .subargs = (const Arg[]){__VA_ARGS__, NO_MORE}

#define OPTIONAL_TAG ARG("tag", STRING, .token = "TAG", OPTIONAL)
#define OPTIONAL_TIMEOUT ARG("milliseconds", INTEGER, .token = "TIMEOUT", OPTIONAL)
#define BACKEND ARG("backend", ONEOF, OF(TOKEN("tf", "TF"), TOKEN("tflite", "TFLITE"), TOKEN("torch", "TORCH"), TOKEN("onnx", "ONNX")))
#define BATCHING \
    ARG("batchsize", INTEGER, .token = "BATCHSIZE", OPTIONAL), ARG("minbatchsize", INTEGER, .token = "MINBATCHSIZE", OPTIONAL), \
        ARG("minbatchtimeout", INTEGER, .token = "MINBATCHTIMEOUT", OPTIONAL)
#define BLOB_CHUNKS ARG("chunk", STRING, .token = "BLOB", LIST)
#define COUNTED_KEYS(word, what, spec) ARG("count", INTEGER, .token = word), KEY(what, spec, LIST)

static const Arg only_key[] = {KEY("key", 0), NO_MORE};

static const Arg tensorset_args[] = {
    KEY("key", 0),
    ARG("dtype", ONEOF,
        OF(TOKEN("float", "FLOAT"), TOKEN("double", "DOUBLE"), TOKEN("int8", "INT8"), TOKEN("int16", "INT16"), TOKEN("int32", "INT32"),
           TOKEN("int64", "INT64"), TOKEN("uint8", "UINT8"), TOKEN("uint16", "UINT16"), TOKEN("bool", "BOOL"),
           TOKEN("string", "STRING"))),
    ARG("dim", INTEGER, LIST_OR_NONE),
    ARG("data", ONEOF, OPTIONAL, OF(ARG("blob", STRING, .token = "BLOB"), ARG("value", STRING, .token = "VALUES", LIST))),
    NO_MORE,
};
static const Arg tensorget_args[] = {
    KEY("key", 0),
    TOKEN("meta", "META", OPTIONAL),
    ARG("format", ONEOF, OPTIONAL, OF(TOKEN("blob", "BLOB"), TOKEN("values", "VALUES"))),
    NO_MORE,
};
static const Arg modelstore_args[] = {
    KEY("key", 0),
    BACKEND,
    ARG("device", STRING),
    OPTIONAL_TAG,
    BATCHING,
    ARG("names", BLOCK, OPTIONAL,
        OF(ARG("count", INTEGER, .token = "INPUTS"), ARG("input", STRING, LIST), ARG("count", INTEGER, .token = "OUTPUTS"),
           ARG("output", STRING, LIST))),
    BLOB_CHUNKS,
    NO_MORE,
};
static const Arg modelset_args[] = {
    KEY("key", 0),
    BACKEND,
    ARG("device", STRING),
    OPTIONAL_TAG,
    BATCHING,
    ARG("names", BLOCK, OPTIONAL, OF(ARG("input", STRING, .token = "INPUTS", LIST), ARG("output", STRING, .token = "OUTPUTS", LIST))),
    BLOB_CHUNKS,
    NO_MORE,
};
static const Arg modelget_args[] = {KEY("key", 0), TOKEN("meta", "META", OPTIONAL), TOKEN("blob", "BLOB", OPTIONAL), NO_MORE};
static const Arg scriptstore_args[] = {
    KEY("key", 0),
    ARG("device", STRING),
    OPTIONAL_TAG,
    ARG("count", INTEGER, .token = "ENTRY_POINTS"),
    ARG("function", STRING, LIST_OR_NONE),
    ARG("source", STRING, .token = "SOURCE"),
    NO_MORE,
};
static const Arg scriptset_args[] = {
    KEY("key", 0), ARG("device", STRING), OPTIONAL_TAG, ARG("source", STRING, .token = "SOURCE"), NO_MORE};
static const Arg scriptget_args[] = {KEY("key", 0), TOKEN("meta", "META", OPTIONAL), TOKEN("source", "SOURCE", OPTIONAL), NO_MORE};
static const Arg info_args[] = {
    KEY("key", 0), ARG("what", ONEOF, OPTIONAL, OF(TOKEN("resetstat", "RESETSTAT"), TOKEN("stats", "STATS"))), NO_MORE};
static const Arg config_args[] = {
    ARG("subcommand", ONEOF,
        OF(ARG("loadbackend", BLOCK, OF(TOKEN("loadbackend", "LOADBACKEND"), BACKEND, ARG("path", STRING))),
           ARG("path", STRING, .token = "BACKENDSPATH"), ARG("bytes", INTEGER, .token = "MODEL_CHUNK_SIZE"),
           ARG("parameter", STRING, .token = "GET"))),
    NO_MORE,
};
static const Arg modelexecute_args[] = {
    KEY("key", RUN_PROGRAM),
    COUNTED_KEYS("INPUTS", "input", RUN_INPUTS),
    COUNTED_KEYS("OUTPUTS", "output", RUN_OUTPUTS),
    OPTIONAL_TIMEOUT,
    NO_MORE,
};
static const Arg modelrun_args[] = {
    KEY("key", RUN_PROGRAM),
    OPTIONAL_TIMEOUT,
    KEY("input", RUN_INPUTS, .token = "INPUTS", LIST),
    KEY("output", RUN_OUTPUTS, .token = "OUTPUTS", LIST),
    NO_MORE,
};
static const Arg scriptexecute_args[] = {
    KEY("key", RUN_PROGRAM),
    ARG("function", STRING),
    ARG("keys", BLOCK, OPTIONAL, OF(COUNTED_KEYS("KEYS", "rediskey", RUN_KEYS))),
    ARG("inputs", BLOCK, OPTIONAL, OF(COUNTED_KEYS("INPUTS", "input", RUN_INPUTS))),
    ARG("args", BLOCK, OPTIONAL, OF(ARG("count", INTEGER, .token = "ARGS"), ARG("arg", STRING, LIST))),
    ARG("outputs", BLOCK, OPTIONAL, OF(COUNTED_KEYS("OUTPUTS", "output", RUN_OUTPUTS))),
    OPTIONAL_TIMEOUT,
    NO_MORE,
};
static const Arg scriptrun_args[] = {
    KEY("key", RUN_PROGRAM),
    ARG("function", STRING),
    OPTIONAL_TIMEOUT,
    KEY("input", RUN_INPUTS, .token = "INPUTS", LIST_OR_NONE),
    KEY("list", RUN_INPUTS, .token = "$", LIST_OR_NONE),
    KEY("output", RUN_OUTPUTS, .token = "OUTPUTS", LIST_OR_NONE),
    NO_MORE,
};
#define DAG_LOADS ARG("load", BLOCK, OPTIONAL, OF(COUNTED_KEYS("LOAD", "input", DAG_LOAD)))
#define DAG_PERSISTS ARG("persist", BLOCK, OPTIONAL, OF(COUNTED_KEYS("PERSIST", "output", DAG_PERSIST)))
#define DAG_ROUTING ARG("tag", STRING, .token = "ROUTING", OPTIONAL)
#define DAG_OPS ARG("command", STRING, .token = "|>", .flags = ARG_MULTIPLE | ARG_MULTIPLE_TOKEN)
static const Arg dag_args[] = {DAG_ROUTING, DAG_LOADS, DAG_PERSISTS, OPTIONAL_TIMEOUT, DAG_OPS, NO_MORE};
static const Arg dag_ro_args[] = {DAG_ROUTING, DAG_LOADS, OPTIONAL_TIMEOUT, DAG_OPS, NO_MORE};

static const Arg pyexecute_args[] = {
    ARG("source", STRING),
    TOKEN("unblocking", "UNBLOCKING", OPTIONAL),
    ARG("requirement", STRING, .token = "REQUIREMENTS", LIST_OR_NONE),
    NO_MORE,
};
static const Arg trigger_args[] = {ARG("trigger", STRING), ARG("arg", STRING, LIST_OR_NONE), NO_MORE};
static const Arg unregister_args[] = {ARG("id", STRING), NO_MORE};

/* ---- the table ------------------------------------------------------------------------------------------------------ */

#define BY_BYTES "O(N), N being the bytes of the tensor"
#define BY_MODEL "O(N), N being the bytes of the model, and the time that its library takes to open it"
#define BY_SOURCE "O(N), N being the length of the source, and the time that compiling it takes"
#define BY_RUN "the time that the model takes; O(N) on the main thread, N being the number of keys"
#define BY_SCRIPT_RUN "the time that the function takes; O(N) on the main thread, N being the number of arguments"
#define BY_DAG_RUN "the time that the operations take; O(N) on the main thread, N being the number of arguments"
#define BY_ENTRIES "O(N), N being the number of models or scripts on the server"

static const Command commands[] = {
    {"ai.tensorset", cmd_tensorset, "write deny-oom", 1, 1, 1, "Stores a tensor under a key.", BY_BYTES, NULL, writes_key, tensorset_args},
    {"ai.tensorget", cmd_tensorget, "readonly", 1, 1, 1, "Returns a tensor: its dtype, its shape, its data.", BY_BYTES, NULL, reads_key,
     tensorget_args},
    {"ai.modelset", cmd_modelset, "write deny-oom", 1, 1, 1, "Stores a model under a key. Deprecated: AI.MODELSTORE replaces it.", BY_MODEL,
     NULL, writes_key, modelset_args},
    {"ai.modelstore", cmd_modelstore, "write deny-oom", 1, 1, 1, "Opens a model on a backend and a device and stores it under a key.",
     BY_MODEL, NULL, writes_key, modelstore_args},
    {"ai.modelget", cmd_modelget, "readonly", 1, 1, 1, "Returns a model: what it was stored with, its bytes.",
     "O(N), N being the bytes of the model", NULL, reads_key, modelget_args},
    {"ai.modeldel", cmd_modeldel, "write", 1, 1, 1, "Deletes a model.", "O(1)", NULL, deletes_key, only_key},
    {"ai.modelrun", cmd_modelrun, "write deny-oom getkeys-api", 3, 3, 1, "Runs a model on tensors. Deprecated: AI.MODELEXECUTE replaces it.",
     BY_RUN, NULL, modelrun_keys, modelrun_args},
    {"ai.modelexecute", cmd_modelexecute, "write deny-oom getkeys-api", 4, 4, 1, "Runs a model on tensors and stores what it returns.", BY_RUN,
     NULL, modelexecute_keys, modelexecute_args},
    {"ai._modelscan", cmd_modelscan, "readonly", 0, 0, 0, "Lists the models that the user may read, with their tags. Experimental.", BY_ENTRIES,
     "nondeterministic_output request_policy:all_shards", NULL, NULL},
    {"ai.scriptset", cmd_scriptset, "write deny-oom", 1, 1, 1, "Stores a script under a key. Deprecated: AI.SCRIPTSTORE replaces it.",
     BY_SOURCE, NULL, writes_key, scriptset_args},
    {"ai.scriptstore", cmd_scriptstore, "write deny-oom", 1, 1, 1, "Compiles a TorchScript source and stores it under a key.", BY_SOURCE, NULL,
     writes_key, scriptstore_args},
    {"ai.scriptget", cmd_scriptget, "readonly", 1, 1, 1, "Returns a script: what it was stored with, its source.",
     "O(N), N being the length of the source", NULL, reads_key, scriptget_args},
    {"ai.scriptdel", cmd_scriptdel, "write", 1, 1, 1, "Deletes a script.", "O(1)", NULL, deletes_key, only_key},
    {"ai.scriptrun", cmd_scriptrun, "write deny-oom getkeys-api", 4, 4, 1,
     "Calls a function of a script on tensors. Deprecated: AI.SCRIPTEXECUTE replaces it.", BY_SCRIPT_RUN, NULL, scriptrun_keys,
     scriptrun_args},
    {"ai.scriptexecute", cmd_scriptexecute, "write deny-oom getkeys-api", 5, 5, 1,
     "Calls a function of a script on tensors and stores what it returns.", BY_SCRIPT_RUN, NULL, scriptexecute_keys, scriptexecute_args},
    {"ai._scriptscan", cmd_scriptscan, "readonly", 0, 0, 0, "Lists the scripts that the user may read, with their tags. Experimental.",
     BY_ENTRIES, "nondeterministic_output request_policy:all_shards", NULL, NULL},
    {"ai.info", cmd_info, "readonly", 1, 1, 1, "Returns the counters of a model or script, or sets them to zero.", "O(1)",
     "nondeterministic_output", reads_key, info_args},
    {"ai.config", cmd_config, "write", 0, 0, 0, "Loads a backend; sets and shows parameters.",
     "O(1); LOADBACKEND takes the time of importing the library", "request_policy:all_nodes", NULL, config_args},
    {"ai.dagrun", cmd_dagrun, "write deny-oom getkeys-api", 3, 3, 1, "Runs operations that hand tensors on. Deprecated: AI.DAGEXECUTE replaces it.",
     BY_DAG_RUN, NULL, dag_keys, dag_args},
    {"ai.dagexecute", cmd_dagexecute, "write deny-oom getkeys-api", 3, 3, 1, "Runs operations that hand tensors on, in one round trip.",
     BY_DAG_RUN, NULL, dag_keys, dag_args},
    {"ai.dagrun_ro", cmd_dagrun_ro, "readonly getkeys-api", 3, 3, 1, "As AI.DAGRUN, writing nothing. Deprecated: AI.DAGEXECUTE_RO replaces it.",
     BY_DAG_RUN, NULL, dag_ro_keys, dag_ro_args},
    {"ai.dagexecute_ro", cmd_dagexecute_ro, "readonly getkeys-api", 3, 3, 1, "As AI.DAGEXECUTE, writing nothing: for replicas, too.",
     BY_DAG_RUN, NULL, dag_ro_keys, dag_ro_args},
};

/* AI flows, with FLOWS yes. Those marked admin are in @admin and @dangerous on every server: a source is code that runs in the server. */
static const Command flow_commands[] = {
    {"rg.pyexecute", cmd_rg_pyexecute, "write deny-oom deny-script admin", 0, 0, 0, "Executes Python in the server, to register flows.",
     "the time that the source takes", NULL, NULL, pyexecute_args},
    {"rg.trigger", cmd_rg_trigger, "write deny-oom", 0, 0, 0, "Runs the flow that was registered with a trigger.",
     "the time that the flow takes", "nondeterministic_output", NULL, trigger_args},
    {"rg.dumpregistrations", cmd_rg_dumpregistrations, "readonly admin", 0, 0, 0, "Lists the registered flows, with counters.",
     "O(N), N being the number of registered flows", "nondeterministic_output", NULL, NULL},
    {"rg.unregister", cmd_rg_unregister, "write admin", 0, 0, 0, "Removes a registered flow.", "O(N), N being the number of registered flows",
     NULL, NULL, unregister_args},
};

/* ---- registration --------------------------------------------------------------------------------------------------- */

static bool describe(const Command *c, RedisModuleCommand *command) {
    static const struct RedisModuleCommandInfoVersion version = {1, sizeof(RedisModuleCommandHistoryEntry), sizeof(KeySpec), sizeof(Arg)};
    RedisModuleCommandInfo info = {
        .version = &version,
        .summary = c->summary,
        .complexity = c->complexity,
        .since = AI_VERSION_TEXT,
        .tips = c->tips,
        .key_specs = c->keys,
        .args = c->args,
    };
    return RedisModule_SetCommandInfo(command, &info) == REDISMODULE_OK;
}

/* The categories that a server without this function derives from the flags, and our own where it may be added: of AI.* none is
 * @dangerous or @admin, not even AI.CONFIG, which ordinary clients ask for MODEL_CHUNK_SIZE before each store. */
static bool categorize(const Command *c, RedisModuleCommand *command, bool own) {
    char categories[64];
    snprintf(categories, sizeof categories, "%s slow%s%s", strstr(c->flags, "write") ? "write" : "read",
             strstr(c->flags, "admin") ? " admin dangerous" : "", own ? " ai" : "");
    return RedisModule_SetCommandACLCategories(command, categories) == REDISMODULE_OK;
}

/* A server that does not take what it is told beside the registration (6.2 cannot be told) still asks the planner for keys. */
static bool register_one(RedisModuleCtx *ctx, const Command *c, bool own) {
    if (RedisModule_CreateCommand(ctx, c->name, c->run, c->flags, c->first, c->last, c->step) != REDISMODULE_OK) return false;
    RedisModuleCommand *command = RedisModule_GetCommand ? RedisModule_GetCommand(ctx, c->name) : NULL;
    if (!command) return true;
    if (RedisModule_SetCommandACLCategories && !categorize(c, command, own)) ai_log("warning", "%s is in no ACL category", c->name);
    if (RedisModule_SetCommandInfo && !describe(c, command)) ai_log("warning", "%s is not in COMMAND DOCS", c->name);
    return true;
}

static bool own_category; /* the server has @ai */

static int register_all(RedisModuleCtx *ctx, const Command *table, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (register_one(ctx, &table[i], own_category)) continue;
        ai_log("warning", "could not register command %s", table[i].name);
        return REDISMODULE_ERR;
    }
    return REDISMODULE_OK;
}

int commands_register(RedisModuleCtx *ctx) {
    own_category = RedisModule_AddACLCategory && RedisModule_AddACLCategory(ctx, "ai") == REDISMODULE_OK;
    return register_all(ctx, commands, sizeof commands / sizeof *commands);
}

int commands_register_flows(RedisModuleCtx *ctx) { return register_all(ctx, flow_commands, sizeof flow_commands / sizeof *flow_commands); }
