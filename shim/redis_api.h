/* redis_api.h -- the part of the Redis module API that we use, declared by ourselves.
 *
 * One table, API_FUNCTIONS, lists every function once: whether the module can live without it, its return type, name and
 * arguments. redis_api.c looks each up by name when the module loads, so that one binary serves Redis 6.2 to 8 and Valkey:
 * an optional function is NULL on a server that lacks it, and its caller tests for that. Numbers are those of the published
 * API, which never change meaning. */
#ifndef REDIS_API_H
#define REDIS_API_H

#include <stddef.h>
#include <stdint.h>

typedef struct RedisModuleCtx RedisModuleCtx;
typedef struct RedisModuleKey RedisModuleKey;
typedef struct RedisModuleString RedisModuleString;
typedef struct RedisModuleCallReply RedisModuleCallReply;
typedef struct RedisModuleIO RedisModuleIO;
typedef struct RedisModuleType RedisModuleType;
typedef struct RedisModuleDigest RedisModuleDigest;
typedef struct RedisModuleBlockedClient RedisModuleBlockedClient;
typedef struct RedisModuleInfoCtx RedisModuleInfoCtx;
typedef struct RedisModuleUser RedisModuleUser;
typedef struct RedisModuleDefragCtx RedisModuleDefragCtx;
typedef struct RedisModuleKeyOptCtx RedisModuleKeyOptCtx;
typedef struct RedisModuleCommand RedisModuleCommand;
typedef uint64_t RedisModuleTimerID;

typedef struct RedisModuleEvent {
    uint64_t id, dataver;
} RedisModuleEvent;

typedef struct RedisModuleFlushInfo {
    uint64_t version;
    int32_t sync, dbnum; /* -1: all databases */
} RedisModuleFlushInfo;

typedef int (*RedisModuleCmdFunc)(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
typedef void (*RedisModuleDisconnectFunc)(RedisModuleCtx *ctx, RedisModuleBlockedClient *bc);
typedef void (*RedisModuleInfoFunc)(RedisModuleInfoCtx *ctx, int for_crash_report);
typedef void (*RedisModuleEventCallback)(RedisModuleCtx *ctx, RedisModuleEvent eid, uint64_t subevent, void *data);
typedef void (*RedisModuleTimerProc)(RedisModuleCtx *ctx, void *data);
typedef int (*RedisModuleNotificationFunc)(RedisModuleCtx *ctx, int type, const char *event, RedisModuleString *key);

/* Version 5 of the type methods; a server reads as many fields as the version it knows. */
typedef struct RedisModuleTypeMethods {
    uint64_t version;
    void *(*rdb_load)(RedisModuleIO *rdb, int encver);
    void (*rdb_save)(RedisModuleIO *rdb, void *value);
    void (*aof_rewrite)(RedisModuleIO *aof, RedisModuleString *key, void *value);
    size_t (*mem_usage)(const void *value);
    void (*digest)(RedisModuleDigest *digest, void *value);
    void (*free)(void *value);
    int (*aux_load)(RedisModuleIO *rdb, int encver, int when);
    void (*aux_save)(RedisModuleIO *rdb, int when);
    int aux_save_triggers;
    size_t (*free_effort)(RedisModuleString *key, const void *value);
    void (*unlink)(RedisModuleString *key, const void *value);
    void *(*copy)(RedisModuleString *fromkey, RedisModuleString *tokey, const void *value);
    int (*defrag)(RedisModuleDefragCtx *ctx, RedisModuleString *key, void **value);
    size_t (*mem_usage2)(RedisModuleKeyOptCtx *ctx, const void *value, size_t sample_size);
    size_t (*free_effort2)(RedisModuleKeyOptCtx *ctx, const void *value);
    void (*unlink2)(RedisModuleKeyOptCtx *ctx, const void *value);
    void *(*copy2)(RedisModuleKeyOptCtx *ctx, const void *value);
    void (*aux_save2)(RedisModuleIO *rdb, int when);
} RedisModuleTypeMethods;

/* What RM_SetCommandInfo takes. A server reads arrays by the sizes in the version, and stops at an entry whose first field of meaning is 0. */
typedef struct RedisModuleCommandArg {
    const char *name;
    int type; /* ARG_* */
    int key_spec_index;
    const char *token, *summary, *since;
    int flags; /* ARG_OPTIONAL ... */
    const char *deprecated_since;
    const struct RedisModuleCommandArg *subargs;
    const char *display_text;
} RedisModuleCommandArg;

typedef struct RedisModuleCommandHistoryEntry {
    const char *since, *changes;
} RedisModuleCommandHistoryEntry;

typedef struct RedisModuleCommandKeySpec {
    const char *notes;
    uint64_t flags;        /* KEY_* */
    int begin_search_type; /* BEGIN_* */
    union {
        struct {
            int pos;
        } index;
        struct {
            const char *keyword;
            int startfrom;
        } keyword;
    } bs;
    int find_keys_type; /* FIND_* */
    union {
        struct {
            int lastkey, keystep, limit;
        } range;
        struct {
            int keynumidx, firstkey, keystep;
        } keynum;
    } fk;
} RedisModuleCommandKeySpec;

typedef struct RedisModuleCommandInfo {
    const struct RedisModuleCommandInfoVersion {
        int version;
        size_t sizeof_historyentry, sizeof_keyspec, sizeof_arg;
    } *version;
    const char *summary, *complexity, *since;
    const RedisModuleCommandHistoryEntry *history;
    const char *tips;
    int arity;
    const RedisModuleCommandKeySpec *key_specs;
    const RedisModuleCommandArg *args;
} RedisModuleCommandInfo;

/* What the functions that register a configuration parameter take. */
typedef int (*RedisModuleConfigApplyFunc)(RedisModuleCtx *ctx, void *u, RedisModuleString **error);
typedef RedisModuleString *(*RedisModuleConfigGetStringFunc)(const char *name, void *u);
typedef int (*RedisModuleConfigSetStringFunc)(const char *name, RedisModuleString *value, void *u, RedisModuleString **error);
typedef long long (*RedisModuleConfigGetNumericFunc)(const char *name, void *u);
typedef int (*RedisModuleConfigSetNumericFunc)(const char *name, long long value, void *u, RedisModuleString **error);
typedef int (*RedisModuleConfigGetIntFunc)(const char *name, void *u); /* yes and no, and enumerations */
typedef int (*RedisModuleConfigSetIntFunc)(const char *name, int value, void *u, RedisModuleString **error);

enum { REDISMODULE_OK = 0, REDISMODULE_ERR = 1 };
enum { REDISMODULE_READ = 1, REDISMODULE_WRITE = 2, REDISMODULE_OPEN_KEY_NOTOUCH = 1 << 16 };
enum { REDISMODULE_KEYTYPE_EMPTY = 0, REDISMODULE_KEYTYPE_MODULE = 6 };
#define REDISMODULE_NO_EXPIRE (-1)
#define REDISMODULE_POSTPONED_ARRAY_LEN (-1)
#define REDISMODULE_ERRORMSG_WRONGTYPE "WRONGTYPE Operation against a key holding the wrong kind of value"

enum {
    CTX_LUA = 1 << 0,
    CTX_MULTI = 1 << 1,
    CTX_MASTER = 1 << 2,
    CTX_SLAVE = 1 << 3,
    CTX_READONLY = 1 << 4,
    CTX_CLUSTER = 1 << 5,
    CTX_EVICT = 1 << 9,
    CTX_OOM = 1 << 10,
    CTX_REPLICATED = 1 << 12,
    CTX_LOADING = 1 << 13,
    CTX_DENY_BLOCKING = 1 << 21,
    CTX_RESP3 = 1 << 22,
};

enum { OPTION_HANDLE_IO_ERRORS = 1 << 0, OPTION_NO_IMPLICIT_SIGNAL_MODIFIED = 1 << 1, OPTION_HANDLE_REPL_ASYNC_LOAD = 1 << 2 };
enum { OPTION_HANDLE_ATOMIC_SLOT_MIGRATION = 1 << 5 }; /* Valkey 9 */

enum { KEY_RO = 1 << 0, KEY_RW = 1 << 1, KEY_OW = 1 << 2, KEY_RM = 1 << 3, KEY_ACCESS = 1 << 4, KEY_UPDATE = 1 << 5,
       KEY_INSERT = 1 << 6, KEY_DELETE = 1 << 7, KEY_NOT_KEY = 1 << 8, KEY_INCOMPLETE = 1 << 9, KEY_VARIABLE_FLAGS = 1 << 10 };
enum { BEGIN_UNKNOWN = 1, BEGIN_INDEX, BEGIN_KEYWORD };
enum { FIND_UNKNOWN = 1, FIND_RANGE, FIND_KEYNUM };
enum { ARG_STRING, ARG_INTEGER, ARG_DOUBLE, ARG_KEY, ARG_PATTERN, ARG_UNIX_TIME, ARG_PURE_TOKEN, ARG_ONEOF, ARG_BLOCK };
enum { ARG_OPTIONAL = 1 << 0, ARG_MULTIPLE = 1 << 1, ARG_MULTIPLE_TOKEN = 1 << 2 };

enum { CONFIG_IMMUTABLE = 1 << 0, CONFIG_MEMORY = 1 << 7, CONFIG_BITFLAGS = 1 << 8 };

enum { REPLY_UNKNOWN = -1, REPLY_STRING, REPLY_ERROR, REPLY_INTEGER, REPLY_ARRAY, REPLY_NULL, REPLY_MAP, REPLY_SET,
       REPLY_BOOL, REPLY_DOUBLE, REPLY_BIG_NUMBER, REPLY_VERBATIM };

enum { EVENT_ROLE_CHANGED = 0, EVENT_FLUSHDB = 2, EVENT_LOADING = 3, EVENT_SHUTDOWN = 5, EVENT_CRON_LOOP = 8, EVENT_FORK_CHILD = 13, EVENT_EVENTLOOP = 15 };
enum { FORK_CHILD_BORN = 0 };
enum { NOTIFY_GENERIC = 1 << 2, NOTIFY_EXPIRED = 1 << 8, NOTIFY_EVICTED = 1 << 9, NOTIFY_MODULE = 1 << 13 };
/* Every class from generic events to streams, and modules': not misses, new keys, and keys that are loaded. */
enum { NOTIFY_CHANGES = 0x7FC | NOTIFY_MODULE };
enum { FLUSHDB_START = 0 };
enum { LOADING_ENDED = 3, LOADING_FAILED = 4 };
enum { ROLE_NOW_MASTER = 0, ROLE_NOW_REPLICA = 1 };
enum { EVENTLOOP_BEFORE_SLEEP = 0 };

/* R = required on every supported server, O = optional (NULL where missing). */
#define API_FUNCTIONS(R, O) \
    R(void, SetModuleAttribs_, (RedisModuleCtx *, const char *, int, int), "SetModuleAttribs") \
    R(int, IsModuleNameBusy, (const char *), "IsModuleNameBusy") \
    R(void *, Alloc, (size_t), "Alloc") \
    O(void *, TryAlloc, (size_t), "TryAlloc") \
    R(void *, Calloc, (size_t, size_t), "Calloc") \
    R(void *, Realloc, (void *, size_t), "Realloc") \
    R(void, Free, (void *), "Free") \
    R(char *, Strdup, (const char *), "Strdup") \
    O(size_t, MallocSize, (void *), "MallocSize") \
    R(int, CreateCommand, (RedisModuleCtx *, const char *, RedisModuleCmdFunc, const char *, int, int, int), "CreateCommand") \
    O(RedisModuleCommand *, GetCommand, (RedisModuleCtx *, const char *), "GetCommand") \
    O(int, SetCommandInfo, (RedisModuleCommand *, const RedisModuleCommandInfo *), "SetCommandInfo") \
    O(int, SetCommandACLCategories, (RedisModuleCommand *, const char *), "SetCommandACLCategories") \
    O(int, AddACLCategory, (RedisModuleCtx *, const char *), "AddACLCategory") \
    R(void, SetModuleOptions, (RedisModuleCtx *, int), "SetModuleOptions") \
    R(void, Log, (RedisModuleCtx *, const char *, const char *, ...), "Log") \
    R(void, LogIOError, (RedisModuleIO *, const char *, const char *, ...), "LogIOError") \
    R(int, WrongArity, (RedisModuleCtx *), "WrongArity") \
    R(int, ReplyWithLongLong, (RedisModuleCtx *, long long), "ReplyWithLongLong") \
    R(int, ReplyWithError, (RedisModuleCtx *, const char *), "ReplyWithError") \
    R(int, ReplyWithSimpleString, (RedisModuleCtx *, const char *), "ReplyWithSimpleString") \
    R(int, ReplyWithArray, (RedisModuleCtx *, long), "ReplyWithArray") \
    R(void, ReplySetArrayLength, (RedisModuleCtx *, long), "ReplySetArrayLength") \
    R(int, ReplyWithStringBuffer, (RedisModuleCtx *, const char *, size_t), "ReplyWithStringBuffer") \
    R(int, ReplyWithString, (RedisModuleCtx *, RedisModuleString *), "ReplyWithString") \
    R(int, ReplyWithNull, (RedisModuleCtx *), "ReplyWithNull") \
    R(int, ReplyWithDouble, (RedisModuleCtx *, double), "ReplyWithDouble") \
    R(void *, OpenKey, (RedisModuleCtx *, RedisModuleString *, int), "OpenKey") \
    R(void, CloseKey, (RedisModuleKey *), "CloseKey") \
    R(int, SignalModifiedKey, (RedisModuleCtx *, RedisModuleString *), "SignalModifiedKey") \
    R(int, KeyType, (RedisModuleKey *), "KeyType") \
    R(int, DeleteKey, (RedisModuleKey *), "DeleteKey") \
    R(long long, GetExpire, (RedisModuleKey *), "GetExpire") \
    R(int, SetExpire, (RedisModuleKey *, long long), "SetExpire") \
    R(RedisModuleType *, CreateDataType, (RedisModuleCtx *, const char *, int, RedisModuleTypeMethods *), "CreateDataType") \
    R(int, ModuleTypeSetValue, (RedisModuleKey *, RedisModuleType *, void *), "ModuleTypeSetValue") \
    R(int, ModuleTypeReplaceValue, (RedisModuleKey *, RedisModuleType *, void *, void **), "ModuleTypeReplaceValue") \
    R(RedisModuleType *, ModuleTypeGetType, (RedisModuleKey *), "ModuleTypeGetType") \
    R(void *, ModuleTypeGetValue, (RedisModuleKey *), "ModuleTypeGetValue") \
    R(void, SaveUnsigned, (RedisModuleIO *, uint64_t), "SaveUnsigned") \
    R(uint64_t, LoadUnsigned, (RedisModuleIO *), "LoadUnsigned") \
    R(void, SaveStringBuffer, (RedisModuleIO *, const char *, size_t), "SaveStringBuffer") \
    R(char *, LoadStringBuffer, (RedisModuleIO *, size_t *), "LoadStringBuffer") \
    R(int, IsIOError, (RedisModuleIO *), "IsIOError") \
    R(void, EmitAOF, (RedisModuleIO *, const char *, const char *, ...), "EmitAOF") \
    O(int, GetTypeMethodVersion, (void), "GetTypeMethodVersion") \
    O(const RedisModuleString *, GetKeyNameFromIO, (RedisModuleIO *), "GetKeyNameFromIO") \
    O(int, GetDbIdFromIO, (RedisModuleIO *), "GetDbIdFromIO") \
    O(const RedisModuleString *, GetToKeyNameFromOptCtx, (RedisModuleKeyOptCtx *), "GetToKeyNameFromOptCtx") \
    O(int, GetToDbIdFromOptCtx, (RedisModuleKeyOptCtx *), "GetToDbIdFromOptCtx") \
    R(void, DigestAddStringBuffer, (RedisModuleDigest *, const char *, size_t), "DigestAddStringBuffer") \
    R(void, DigestAddLongLong, (RedisModuleDigest *, long long), "DigestAddLongLong") \
    R(void, DigestEndSequence, (RedisModuleDigest *), "DigestEndSequence") \
    O(void *, DefragAlloc, (RedisModuleDefragCtx *, void *), "DefragAlloc") \
    R(const char *, StringPtrLen, (const RedisModuleString *, size_t *), "StringPtrLen") \
    R(int, StringToLongLong, (const RedisModuleString *, long long *), "StringToLongLong") \
    R(int, StringToDouble, (const RedisModuleString *, double *), "StringToDouble") \
    R(RedisModuleString *, CreateString, (RedisModuleCtx *, const char *, size_t), "CreateString") \
    R(void, FreeString, (RedisModuleCtx *, RedisModuleString *), "FreeString") \
    R(void, RetainString, (RedisModuleCtx *, RedisModuleString *), "RetainString") \
    O(RedisModuleString *, HoldString, (RedisModuleCtx *, RedisModuleString *), "HoldString") \
    O(void, TrimStringAllocation, (RedisModuleString *), "TrimStringAllocation") \
    R(int, GetSelectedDb, (RedisModuleCtx *), "GetSelectedDb") \
    R(int, SelectDb, (RedisModuleCtx *, int), "SelectDb") \
    R(int, GetContextFlags, (RedisModuleCtx *), "GetContextFlags") \
    R(uint64_t, GetClientId, (RedisModuleCtx *), "GetClientId") \
    R(int, IsKeysPositionRequest, (RedisModuleCtx *), "IsKeysPositionRequest") \
    R(void, KeyAtPos, (RedisModuleCtx *, int), "KeyAtPos") \
    O(void, KeyAtPosWithFlags, (RedisModuleCtx *, int, int), "KeyAtPosWithFlags") \
    R(RedisModuleBlockedClient *, BlockClient, \
      (RedisModuleCtx *, RedisModuleCmdFunc, RedisModuleCmdFunc, void (*)(RedisModuleCtx *, void *), long long), "BlockClient") \
    R(int, UnblockClient, (RedisModuleBlockedClient *, void *), "UnblockClient") \
    R(void *, GetBlockedClientPrivateData, (RedisModuleCtx *), "GetBlockedClientPrivateData") \
    R(void, SetDisconnectCallback, (RedisModuleBlockedClient *, RedisModuleDisconnectFunc), "SetDisconnectCallback") \
    O(int, BlockedClientMeasureTimeStart, (RedisModuleBlockedClient *), "BlockedClientMeasureTimeStart") \
    O(int, BlockedClientMeasureTimeEnd, (RedisModuleBlockedClient *), "BlockedClientMeasureTimeEnd") \
    R(RedisModuleCtx *, GetThreadSafeContext, (RedisModuleBlockedClient *), "GetThreadSafeContext") \
    O(RedisModuleCtx *, GetDetachedThreadSafeContext, (RedisModuleCtx *), "GetDetachedThreadSafeContext") \
    R(void, FreeThreadSafeContext, (RedisModuleCtx *), "FreeThreadSafeContext") \
    R(void, ThreadSafeContextLock, (RedisModuleCtx *), "ThreadSafeContextLock") \
    R(int, ThreadSafeContextTryLock, (RedisModuleCtx *), "ThreadSafeContextTryLock") \
    R(void, ThreadSafeContextUnlock, (RedisModuleCtx *), "ThreadSafeContextUnlock") \
    R(int, Replicate, (RedisModuleCtx *, const char *, const char *, ...), "Replicate") \
    R(int, ReplicateVerbatim, (RedisModuleCtx *), "ReplicateVerbatim") \
    R(RedisModuleCallReply *, Call, (RedisModuleCtx *, const char *, const char *, ...), "Call") \
    R(int, CallReplyType, (RedisModuleCallReply *), "CallReplyType") \
    R(size_t, CallReplyLength, (RedisModuleCallReply *), "CallReplyLength") \
    R(RedisModuleCallReply *, CallReplyArrayElement, (RedisModuleCallReply *, size_t), "CallReplyArrayElement") \
    R(long long, CallReplyInteger, (RedisModuleCallReply *), "CallReplyInteger") \
    R(const char *, CallReplyStringPtr, (RedisModuleCallReply *, size_t *), "CallReplyStringPtr") \
    R(const char *, CallReplyProto, (RedisModuleCallReply *, size_t *), "CallReplyProto") \
    R(void, FreeCallReply, (RedisModuleCallReply *), "FreeCallReply") \
    R(int, RegisterInfoFunc, (RedisModuleCtx *, RedisModuleInfoFunc), "RegisterInfoFunc") \
    R(int, InfoAddSection, (RedisModuleInfoCtx *, const char *), "InfoAddSection") \
    R(int, InfoAddFieldCString, (RedisModuleInfoCtx *, const char *, const char *), "InfoAddFieldCString") \
    R(int, InfoAddFieldLongLong, (RedisModuleInfoCtx *, const char *, long long), "InfoAddFieldLongLong") \
    R(int, SubscribeToServerEvent, (RedisModuleCtx *, RedisModuleEvent, RedisModuleEventCallback), "SubscribeToServerEvent") \
    R(int, SubscribeToKeyspaceEvents, (RedisModuleCtx *, int, RedisModuleNotificationFunc), "SubscribeToKeyspaceEvents") \
    R(int, NotifyKeyspaceEvent, (RedisModuleCtx *, int, const char *, RedisModuleString *), "NotifyKeyspaceEvent") \
    R(int, AvoidReplicaTraffic, (void), "AvoidReplicaTraffic") \
    R(RedisModuleTimerID, CreateTimer, (RedisModuleCtx *, long long, RedisModuleTimerProc, void *), "CreateTimer") \
    O(RedisModuleString *, GetCurrentUserName, (RedisModuleCtx *), "GetCurrentUserName") \
    O(RedisModuleString *, GetClientUserNameById, (RedisModuleCtx *, uint64_t), "GetClientUserNameById") \
    O(RedisModuleUser *, GetModuleUserFromUserName, (RedisModuleString *), "GetModuleUserFromUserName") \
    O(void, FreeModuleUser, (RedisModuleUser *), "FreeModuleUser") \
    O(int, ACLCheckCommandPermissions, (RedisModuleUser *, RedisModuleString **, int), "ACLCheckCommandPermissions") \
    O(int, ACLCheckKeyPermissions, (RedisModuleUser *, RedisModuleString *, int), "ACLCheckKeyPermissions") \
    O(int, RegisterNumericConfig, \
      (RedisModuleCtx *, const char *, long long, unsigned, long long, long long, RedisModuleConfigGetNumericFunc, \
       RedisModuleConfigSetNumericFunc, RedisModuleConfigApplyFunc, void *), "RegisterNumericConfig") \
    O(int, RegisterStringConfig, \
      (RedisModuleCtx *, const char *, const char *, unsigned, RedisModuleConfigGetStringFunc, RedisModuleConfigSetStringFunc, \
       RedisModuleConfigApplyFunc, void *), "RegisterStringConfig") \
    O(int, RegisterBoolConfig, \
      (RedisModuleCtx *, const char *, int, unsigned, RedisModuleConfigGetIntFunc, RedisModuleConfigSetIntFunc, \
       RedisModuleConfigApplyFunc, void *), "RegisterBoolConfig") \
    O(int, RegisterEnumConfig, \
      (RedisModuleCtx *, const char *, int, unsigned, const char **, const int *, int, RedisModuleConfigGetIntFunc, \
       RedisModuleConfigSetIntFunc, RedisModuleConfigApplyFunc, void *), "RegisterEnumConfig") \
    O(int, LoadConfigs, (RedisModuleCtx *), "LoadConfigs") \
    O(int, GetServerVersion, (void), "GetServerVersion") \
    R(int, ExportSharedAPI, (RedisModuleCtx *, const char *, void *), "ExportSharedAPI") \
    O(void *, GetSharedAPI, (RedisModuleCtx *, const char *), "GetSharedAPI")

#define API_DECLARE(ret, name, args, wire) extern ret(*RedisModule_##name) args;
API_FUNCTIONS(API_DECLARE, API_DECLARE)
#undef API_DECLARE

/* Looks up the whole table. NULL when it is complete, else the name of the first required function this server lacks. */
const char *redis_api_load(RedisModuleCtx *ctx);

/* Name of the i-th optional function that this server lacks, NULL past the last: shown by INFO and `redisai doctor`. */
const char *redis_api_missing(int i);

#endif
