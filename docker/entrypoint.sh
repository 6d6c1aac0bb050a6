#!/bin/sh
# Starts the server with the module. Arguments go to the server, a configuration file first; REDISAI_ARGS are the module's load arguments.
#
#   docker run redisai-server --appendonly yes
#   docker run -e REDISAI_ARGS='THREADS_PER_QUEUE 2' -v ./redis.conf:/redis.conf redisai-server /redis.conf
#   docker run redisai-server redis-cli -h somewhere          any other program of the image
set -eu

case "${1:-}" in
    -* | "")
        # No configuration file: the container's network decides who may come in, and a password is the user's to set.
        set -- --dir /data --bind '* -::*' --protected-mode no "$@"
        ;;
    *)
        if [ ! -f "$1" ]; then
            exec "$@"
        fi
        ;;
esac
exec redisai serve --load-args "${REDISAI_ARGS:-}" -- "$@"
