"""`redisai exporter`: a server's figures for Prometheus, over HTTP.

A process of its own beside the server: each scrape asks the server and adds nothing up, so that a restart of either loses nothing and two
exporters agree. A server that does not answer is a scrape with redisai_up 0, not a failed scrape.

The table METRICS says what each metric is; the functions below it only fill them.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import redis

from .address import Address, address, address_options
from .client import connect, explained
from .figures import (
    BOUNDS_US,
    RUN_COMMANDS,
    STORE_COMMANDS,
    TENSOR_COMMANDS,
    Command,
    Names,
    Program,
    queues,
    read_commands,
    read_info,
    read_programs,
)
from .output import write

if TYPE_CHECKING:
    from prometheus_client.core import Metric

DEFAULT_LISTEN = "127.0.0.1:9797"
SCRAPE_SECONDS = 5.0
COMMANDS = (*RUN_COMMANDS, *STORE_COMMANDS, *TENSOR_COMMANDS)
MILLION = 1e6

PER_KEY = ("key", "type", "backend", "device", "tag")
#: name -> (kind, what it says, labels). Times are seconds, memory bytes; a counter's name gains _total.
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "redisai_up": ("gauge", "1 when the server answered with the module loaded, else 0", ()),
    "redisai_scrape_duration_seconds": ("gauge", "Time that asking the server took", ()),
    "redisai_server": ("info", "Versions of the server, the module and the loaded libraries", ()),
    # per model or script
    "redisai_calls": ("counter", "Runs that ended, failed ones included", PER_KEY),
    "redisai_errors": ("counter", "Runs that failed", PER_KEY),
    "redisai_run_seconds": ("counter", "Time of runs in the library; each request of a batch counts the whole run", PER_KEY),
    "redisai_samples": ("counter", "Rows that went through a model", PER_KEY),
    "redisai_queue_wait_seconds": ("counter", "Time that requests waited before their run", PER_KEY),
    "redisai_batched_requests": ("counter", "Requests whose batch ran", PER_KEY),
    "redisai_batch_requests": ("histogram", "Requests that ran together", ("key",)),
    "redisai_value_bytes": ("gauge", "MEMORY USAGE of the key", PER_KEY),
    # per command
    "redisai_command_seconds": ("histogram", "Time of commands, waiting included; buckets as in LATENCY HISTOGRAM", ("command",)),
    "redisai_command_failures": ("counter", "Commands refused or ended with an error", ("command",)),
    # per queue
    "redisai_queue_length": ("gauge", "Requests in a run queue", ("device",)),
    "redisai_queue_opening": ("gauge", "Requests that wait until their model or script is open; not counted in the length", ("device",)),
    "redisai_workers": ("gauge", "Threads of a run queue", ("device",)),
    "redisai_workers_idle": ("gauge", "Threads of a run queue without work", ("device",)),
    "redisai_worker_cpu_seconds": ("counter", "Processor time of a worker thread", ("device", "worker")),
    # per backend
    "redisai_sessions": ("gauge", "Opened models or scripts", ("backend",)),
    "redisai_session_bytes": ("gauge", "Estimated memory of opened models or scripts", ("backend",)),
    # the whole server
    "redisai_jobs_in_flight": ("gauge", "Runs that have not been answered", ()),
    "redisai_jobs_timed_out": ("counter", "Runs that reached their TIMEOUT", ()),
    "redisai_jobs_disconnected": ("counter", "Runs whose client left", ()),
    "redisai_loads_in_progress": ("gauge", "Models and scripts that wait to be opened or are being opened", ()),
    "redisai_loads": ("counter", "Models and scripts opened", ("result",)),
    "redisai_helpers": ("gauge", "Helper processes that run models, with ISOLATION process", ()),
    "redisai_helpers_ended": ("counter", "Helper processes that ended: crashed, or were ended for a run that took too long", ()),
    "redisai_flow_registrations": ("gauge", "Registered AI flows, with FLOWS yes", ()),
    "redisai_flows_triggered": ("counter", "Triggers and events of AI flows", ()),
    "redisai_flows_failed": ("counter", "Runs of AI flows that failed", ()),
    "redisai_flow_events_dropped": ("counter", "Events that found the queue of AI flows full", ()),
    "redisai_flows_in_flight": ("gauge", "Sources, triggers and events of AI flows that wait or run", ()),
    "redisai_all_calls": ("counter", "Runs since the server started, of keys that are gone too", ()),
    "redisai_all_errors": ("counter", "Failed runs since the server started, of keys that are gone too", ()),
    "redisai_memory_used_bytes": ("gauge", "Memory of the server's data (used_memory)", ()),
    "redisai_memory_resident_bytes": ("gauge", "Memory of the server's process (used_memory_rss)", ()),
}

#: metric -> field of INFO, for those that are one field and a factor
FIELDS: dict[str, str] = {
    "redisai_jobs_in_flight": "ai_jobs_in_flight",
    "redisai_jobs_timed_out": "ai_jobs_timed_out",
    "redisai_jobs_disconnected": "ai_jobs_disconnected",
    "redisai_loads_in_progress": "ai_loads_in_progress",
    "redisai_helpers": "ai_helpers",
    "redisai_helpers_ended": "ai_helpers_ended",
    "redisai_flow_registrations": "ai_flow_registrations",
    "redisai_flows_triggered": "ai_flows_triggered",
    "redisai_flows_failed": "ai_flows_failed",
    "redisai_flow_events_dropped": "ai_flow_events_dropped",
    "redisai_flows_in_flight": "ai_flows_in_flight",
    "redisai_all_calls": "ai_calls",
    "redisai_all_errors": "ai_errors",
    "redisai_memory_used_bytes": "used_memory",
    "redisai_memory_resident_bytes": "used_memory_rss",
}
#: label of redisai_server_info -> fields of INFO, the first that is there
VERSIONS = {
    "server": ("valkey_version", "redis_version"),
    "module": ("ai_RedisAI_version",),
    "python": ("ai_python_version",),
    "torch": ("ai_Torch_version",),
    "tensorflow": ("ai_TensorFlow_version",),
    "tflite": ("ai_TensorFlowLite_version",),
    "onnxruntime": ("ai_onnxruntime_version",),
    "role": ("role",),
}
KINDS = ("TF", "TFLITE", "TORCH", "ONNX", "SCRIPT")
BATCH_BOUNDS = tuple(2 ** (i + 1) - 1 for i in range(12))  # a batch counted under 2^i holds up to 2^(i+1) - 1 requests

Sample = tuple[str, tuple[str, ...], Any]  # metric, label values, number (a histogram: [(bound, cumulative count)], sum)


# ---- samples -----------------------------------------------------------------------------------------------------------------------


def scraped(info: Mapping[str, str], programs: Sequence[Program], commands: Mapping[str, Command]) -> Iterator[Sample]:
    for program in programs:
        yield from program_samples(program)
    for command in commands.values():
        yield from command_samples(command)
    yield from server_samples(info)


def program_samples(program: Program) -> Iterator[Sample]:
    labels = (program.key, program.type.lower(), program.backend, program.device, program.tag)
    yield "redisai_calls", labels, program.calls
    yield "redisai_errors", labels, program.errors
    yield "redisai_run_seconds", labels, program.duration_us / MILLION
    yield "redisai_queue_wait_seconds", labels, program.wait_us / MILLION
    yield "redisai_batched_requests", labels, program.batched_requests
    if program.samples is not None:
        yield "redisai_samples", labels, program.samples
    if program.memory is not None:
        yield "redisai_value_bytes", labels, program.memory
    yield "redisai_batch_requests", (program.key,), batch_buckets(program)


def batch_buckets(program: Program) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts of batches by their size."""
    found, total = [], 0
    for bound in BATCH_BOUNDS:
        total += program.batch_sizes.get((bound + 1) // 2, 0)
        found.append((str(bound), float(total)))
    return [*found, ("+Inf", float(program.batches))], float(program.batched_requests)


def command_samples(command: Command) -> Iterator[Sample]:
    yield "redisai_command_failures", (command.name,), command.failed
    buckets = [(str(bound / MILLION), float(count)) for bound, count in zip(BOUNDS_US, command.within, strict=False)]
    # A server before 7 has no buckets, but their count and sum. The buckets are read after the count, and may be ahead of it.
    buckets.append(("+Inf", float(max(command.calls, *command.within, 0))))
    yield "redisai_command_seconds", (command.name,), (buckets, command.usec / MILLION)


def server_samples(info: Mapping[str, str]) -> Iterator[Sample]:
    for metric, name in FIELDS.items():
        if name in info:
            yield metric, (), int(info[name])
    for result in ("done", "failed"):
        yield "redisai_loads", (result,), int(info[f"ai_loads_{result}"])
    for kind in KINDS:
        yield "redisai_sessions", (kind,), int(info[f"ai_{kind}_sessions"])
        yield "redisai_session_bytes", (kind,), int(info[f"ai_{kind}_memory_estimate"])
    for device, told in queues(info).items():
        for metric, what in QUEUE_FIELDS.items():
            yield metric, (device,), told[what]
    for name, value in info.items():
        device, found, rest = name.removeprefix("ai_queue_").rpartition("_bthread_n")
        if found:
            yield "redisai_worker_cpu_seconds", (device, rest.removesuffix("_used_cpu_total")), float(value)


QUEUE_FIELDS = {
    "redisai_queue_length": "length",
    "redisai_queue_opening": "waiting",
    "redisai_workers": "workers",
    "redisai_workers_idle": "idle_workers",
}


def versions(info: Mapping[str, str]) -> dict[str, str]:
    return {label: next((info[name] for name in names if name in info), "") for label, names in VERSIONS.items()}


# ---- as Prometheus has them --------------------------------------------------------------------------------------------------------


class Collector:
    """What prometheus_client asks at each scrape; one scrape at a time, because they share a connection."""

    def __init__(self, where: Address):
        self.where = where
        self.client = connect(where, SCRAPE_SECONDS)
        self.names = Names()
        self.lock = threading.Lock()
        self.complained = ""

    def describe(self) -> list[Metric]:
        """Nothing: registering must not need a server."""
        return []

    def collect(self) -> list[Metric]:
        with self.lock:
            start = time.perf_counter()
            try:
                info = read_info(self.client)
                programs = read_programs(self.client, self.names.read(self.client, info))
                samples = list(scraped(info, programs, read_commands(self.client, info, COMMANDS)))
            except redis.RedisError as error:
                self.complain(explained(error, self.where))
                return families([("redisai_up", (), 0)], {})
            self.complained = ""
            took = time.perf_counter() - start
            return families([("redisai_up", (), 1), ("redisai_scrape_duration_seconds", (), took), *samples], versions(info))

    def complain(self, text: str) -> None:
        """Once, not at every scrape."""
        if text != self.complained:
            click.echo(text, err=True)
        self.complained = text


def families(samples: Sequence[Sample], server: Mapping[str, str]) -> list[Metric]:
    """Samples grouped by their metric, in the order of METRICS."""
    from prometheus_client import core

    makers: dict[str, Any] = {
        "gauge": core.GaugeMetricFamily,
        "counter": core.CounterMetricFamily,
        "histogram": core.HistogramMetricFamily,
    }
    found: dict[str, Any] = {}
    for name, (kind, text, labels) in METRICS.items():
        if kind == "info":
            if server:
                found[name] = core.InfoMetricFamily(name, text, value=dict(server))
        elif any(sample[0] == name for sample in samples):
            found[name] = makers[kind](name, text, labels=labels)
    for name, values, number in samples:
        if METRICS[name][0] == "histogram":
            buckets, total = number
            found[name].add_metric(values, buckets, total)
        else:
            found[name].add_metric(values, number)
    return list(found.values())


# ---- the command -------------------------------------------------------------------------------------------------------------------


def parse_listen(context: click.Context, parameter: click.Parameter, given: str) -> tuple[str, int]:
    host, _, port = given.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise click.BadParameter("write HOST:PORT or PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


@click.command("exporter")
@click.option(
    "--listen", default=DEFAULT_LISTEN, show_default=True, callback=parse_listen, metavar="HOST:PORT", help="Where to serve /metrics."
)
@click.option("--once", is_flag=True, help="Print the metrics and end.")
@address_options
def command(listen: tuple[str, int], once: bool, **where: Any) -> int:
    """Serve the figures of a server to Prometheus. Models and scripts are those of the selected database.

    \b
    redisai exporter -h redis.example -p 6379 --listen 0.0.0.0:9797
    redisai exporter --once | grep redisai_queue
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest, start_http_server
    except ModuleNotFoundError:
        raise click.ClickException("the exporter needs prometheus_client: pip install 'redisai-server[exporter]'") from None
    collector = Collector(address(**where))
    registry = CollectorRegistry()
    registry.register(collector)
    if once:
        write(generate_latest(registry))
        return int(bool(collector.complained))
    try:
        server, _ = start_http_server(listen[1], listen[0], registry)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror}") from None
    click.echo(f"metrics of {collector.where} at http://{listen[0]}:{server.server_port}/metrics", err=True)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    server.shutdown()
    return 0
