"""The settings of a server, its command line, and where their values come from."""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kserve.predictor_config import PredictorConfig

# 64 MiB, as the limit on bodies that are not compressed; Triton's is the same. A body of 64 KiB can
# become that much.
DEFAULT_MAX_DECOMPRESSED_BYTES: Final = 64 << 20

# 64 MiB, as Triton's limit on HTTP bodies; KServe's SDK has 8 MiB over gRPC and none over REST.
DEFAULT_MAX_REQUEST_BYTES: Final = 64 << 20

# A head is sent at once, so this is for the worst of lines; nginx gives it 60 s, Apache 20 s.
DEFAULT_HEADER_TIMEOUT_S: Final = 10.0

# TCP sends a lost segment again after 0.2, 0.4, 0.8 s and so on: 30 s of silence are seven losses
# in a row. nginx gives 60 s, and holds the body in a file where we hold it in memory.
DEFAULT_BODY_TIMEOUT_S: Final = 30.0

# As nginx' send_timeout: a phone that changes its network reads again after some seconds.
DEFAULT_SEND_TIMEOUT_S: Final = 60.0

EVENT_LOOPS: Final = ("auto", "asyncio", "uvloop")

# 64 MiB, as the limit on requests.
DEFAULT_MAX_GRPC_MESSAGE_BYTES: Final = 64 << 20

# Mosec's limit too; TEI has 512. A thousand requests are more than one process answers in the
# second after which clients are told to come back, so more of them would only wait longer.
DEFAULT_MAX_INFLIGHT_REQUESTS: Final = 1024

# With scikit-learn on one core, twice as many rows in a batch are 10 to 50 % more rows a second up
# to here, and 1 to 38 % from here on, while the batch takes 1 to 7 ms.
DEFAULT_MAX_BATCH_SIZE: Final = 512

# As many as the requests in flight would be at 128 rows each.
DEFAULT_MAX_QUEUED_ROWS: Final = 1 << 17

# The text of yes and no on the command line, as KServe's manifests write them.
_TRUE: Final = frozenset({"y", "yes", "t", "true", "on", "1"})
_FALSE: Final = frozenset({"n", "no", "f", "false", "off", "0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudEventConfig:
    """What the events say that answer events.

    Attributes:
        type: Their `type`.
        source: Their `source`; None is `io.kserve.inference.` and the name of the model.
        merge: Whether they take over the attributes of the request's event, except `id`, `time`
            and those of its data's type.
    """

    type: str = "io.kserve.inference.response"
    source: str | None = None
    merge: bool = False

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "CloudEventConfig":
        """Give the settings of an environment, `CE_TYPE`, `CE_SOURCE` and `CE_MERGE`.

        Args:
            env: The environment; that of this process if None.
        """
        env = os.environ if env is None else env
        return cls(
            type=env.get("CE_TYPE", cls().type),
            source=env.get("CE_SOURCE"),
            merge=env.get("CE_MERGE", "").lower() in _TRUE,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The settings of one server.

    Attributes:
        host: The address that is bound; all of the pod's by default.
        http_port: The REST port, 0 to 65535; 0 takes a free one.
        grpc_port: The gRPC port; 0 takes a free one.
        enable_grpc: Whether gRPC is served.
        grpc_max_send_message_length: Bytes of the largest response over gRPC.
        grpc_max_receive_message_length: Bytes of the largest request over gRPC; None is
            `max_request_bytes`.
        grpc_max_concurrent_rpcs: Calls over gRPC at the same time, health checks included; further
            ones are refused. None is no limit.
        grpc_keepalive_time_s: Seconds after which the peer of a silent gRPC connection is pinged.
        grpc_keepalive_timeout_s: Seconds that it has to answer before the connection is closed.
        grpc_min_ping_interval_s: Seconds between the pings of a gRPC client below which the server
            takes them for abuse and closes the connection.
        workers: How many processes serve; KServe's controller may pass 0.
        max_concurrent_predicts: How many plain handlers of one model run at a time, 1 or more; None
            is what the model says, or 1.
        max_inflight_requests: How many requests of one model may be in flight, 1 or more; further
            ones are refused.
        max_batch_size: Rows of requests that run together, 1 or more; a larger request runs alone.
        max_batch_delay_ms: Milliseconds that a free model waits for a batch to fill.
        max_queued_rows: Rows that may wait for one model, 1 or more; further ones are refused.
        request_timeout_s: Seconds after which a request is given up; 0 is no limit.
        hang_timeout_s: Seconds after which a plain handler is taken to have hung; 0 is no limit.
        max_asyncio_workers: Threads of the event loop's default pool; None is Python's default.
        event_loop: `auto` (uvloop where it is installed), `asyncio` or `uvloop`.
        timeout_keep_alive_s: Seconds after which an idle connection is closed. More than the 60 s
            of common proxies, so that the proxy closes first and never meets a closed connection.
        listen_early: Whether the ports are bound before the models given at start are loaded.
        drain_delay_s: Seconds for which new work is still taken after SIGTERM, of the grace period
            and at most half of it.
        grace_period_s: Seconds from the signal until the end: the delay, then requests in flight
            finish and models stop in what is left.
        max_request_bytes: What a request body may have, 1 or more.
        max_inflight_bytes: What all bodies and messages in flight may have, 1 or more; None
            is a quarter of the memory limit.
        header_timeout_s: Seconds from the first byte of a request over REST to the end of its
            head, or from the start of a gRPC connection to its settings, above 0.
        body_timeout_s: Seconds for which a request body or message may not come on, above 0.
        send_timeout_s: Seconds for which a client may read nothing of an answer, above 0.
        max_decompressed_bytes: What a compressed request body may become.
        cloudevents: What the events say that answer events.
        enable_latency_logging: Whether each inference request leaves a line in the log.
        configure_logging: Whether the server configures logging.
        log_config_file: A logging configuration; see `kserve.logging.configure_logging`.
        log_format: `text` or `json`.
        model_name: The name to serve a single model under.
        predictor: The predictor behind a transformer; None without `--predictor_host`.
        repository_api: Whether clients may list, load and unload models; None for yes where models
            can be loaded by name, as with a directory of several.
        watch: Whether changes of the model directory are followed.
        watch_interval_s: Seconds between two looks at it, above 0.
    """

    # The pod's own address is not known before.
    host: str = "0.0.0.0"
    http_port: int = 8080
    grpc_port: int = 8081
    enable_grpc: bool = True
    grpc_max_send_message_length: int = DEFAULT_MAX_GRPC_MESSAGE_BYTES
    grpc_max_receive_message_length: int | None = None
    grpc_max_concurrent_rpcs: int | None = None
    # gRPC's own two hours outlive what load balancers remember of an idle connection: AWS' 350 s
    # is the shortest of the common ones.
    grpc_keepalive_time_s: int = 300
    # gRPC's own default.
    grpc_keepalive_timeout_s: int = 20
    # Clients in Go ping no faster; gRPC's own default, 300 s, disconnects those that ping at all.
    grpc_min_ping_interval_s: int = 10
    workers: int = 1
    max_concurrent_predicts: int | None = None
    max_inflight_requests: int = DEFAULT_MAX_INFLIGHT_REQUESTS
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    max_batch_delay_ms: float = 0.0
    max_queued_rows: int = DEFAULT_MAX_QUEUED_ROWS
    # What Knative gives a request by default.
    request_timeout_s: float = 300.0
    # Twice that: no client waits any more, and a load or a very large batch is long over.
    hang_timeout_s: float = 600.0
    max_asyncio_workers: int | None = None
    event_loop: str = "auto"
    timeout_keep_alive_s: int = 65
    # KServe injects a TCP probe where a manifest has none, and a port that is bound passes it.
    listen_early: bool = False
    # kube-proxy and ingress controllers learn only seconds later that a pod ends.
    drain_delay_s: float = 5.0
    # Kubernetes kills 30 s after it has asked for the end.
    grace_period_s: int = 25
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES
    max_inflight_bytes: int | None = None
    header_timeout_s: float = DEFAULT_HEADER_TIMEOUT_S
    body_timeout_s: float = DEFAULT_BODY_TIMEOUT_S
    send_timeout_s: float = DEFAULT_SEND_TIMEOUT_S
    max_decompressed_bytes: int = DEFAULT_MAX_DECOMPRESSED_BYTES
    cloudevents: CloudEventConfig = CloudEventConfig()
    enable_latency_logging: bool = True
    configure_logging: bool = True
    log_config_file: str | None = None
    log_format: str = "text"
    model_name: str = "model"
    predictor: PredictorConfig | None = None
    repository_api: bool | None = None
    watch: bool = False
    # Two looks make a change: Triton looks every 15 s, TensorFlow Serving every second.
    watch_interval_s: float = 5.0

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "ServerConfig":
        """Give the settings of a parsed command line."""
        return cls(
            host=args.host,
            http_port=args.http_port,
            grpc_port=args.grpc_port,
            enable_grpc=args.enable_grpc,
            grpc_max_send_message_length=args.grpc_max_send_message_length,
            grpc_max_receive_message_length=args.grpc_max_receive_message_length,
            grpc_max_concurrent_rpcs=args.grpc_max_concurrent_rpcs,
            grpc_keepalive_time_s=args.grpc_keepalive_time_s,
            grpc_keepalive_timeout_s=args.grpc_keepalive_timeout_s,
            grpc_min_ping_interval_s=args.grpc_min_ping_interval_s,
            workers=args.workers,
            max_concurrent_predicts=args.max_concurrent_predicts,
            max_inflight_requests=args.max_inflight_requests,
            max_batch_size=args.max_batch_size,
            max_batch_delay_ms=args.max_batch_delay_ms,
            max_queued_rows=args.max_queued_rows,
            request_timeout_s=args.request_timeout_s,
            hang_timeout_s=args.hang_timeout_s,
            max_asyncio_workers=args.max_asyncio_workers,
            event_loop=args.event_loop,
            timeout_keep_alive_s=args.timeout_keep_alive,
            listen_early=args.listen_early,
            drain_delay_s=args.drain_delay_s,
            grace_period_s=args.grace_period_s,
            max_request_bytes=args.max_request_bytes,
            max_inflight_bytes=args.max_inflight_bytes,
            header_timeout_s=args.header_timeout_s,
            body_timeout_s=args.body_timeout_s,
            send_timeout_s=args.send_timeout_s,
            max_decompressed_bytes=args.max_decompressed_bytes,
            cloudevents=CloudEventConfig.from_env(),
            enable_latency_logging=args.enable_latency_logging,
            configure_logging=args.configure_logging,
            log_config_file=args.log_config_file,
            log_format=args.log_format,
            model_name=args.model_name,
            predictor=_predictor(args),
            repository_api=args.repository_api,
            watch=args.watch,
            watch_interval_s=args.watch_interval_s,
        )

    @classmethod
    def from_argv(cls, argv: Sequence[str] | None = None) -> "ServerConfig":
        """Give the settings of a command line that may hold flags of the program's own too."""
        args, _ = make_parser().parse_known_args(sys.argv[1:] if argv is None else argv)
        return cls.from_args(args)


def make_parser() -> argparse.ArgumentParser:
    """Give a new parser of the flags that every server has, to use as a parent.

    It has no `--help` of its own, as argparse wants of a parent.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add = parser.add_argument
    default = ServerConfig()
    add("--host", default=default.host, help="address to bind (%(default)s)")
    add("--http_port", type=port, default=8080, help="REST port, 0 for a free one (%(default)s)")
    add("--grpc_port", type=port, default=8081, help="gRPC port, 0 for a free one (%(default)s)")
    add(
        "--model_name",
        type=non_empty,
        default="model",
        help="name to serve the model under (%(default)s)",
    )
    add(
        "--workers",
        type=count,
        default=1,
        help="processes (%(default)s); other values warn and run one process",
    )
    add(
        "--max_concurrent_predicts",
        type=positive,
        help="plain handlers of one model that run at the same time (what the model says, or 1)",
    )
    add("--max_asyncio_workers", type=positive, help="threads of the loop's default pool")
    add("--event-loop", "--event_loop", choices=EVENT_LOOPS, default="auto")
    add(
        "--timeout-keep-alive",
        "--timeout_keep_alive",
        type=count,
        default=default.timeout_keep_alive_s,
        help="seconds until an idle connection is closed (%(default)s)",
    )
    add(
        "--listen_early",
        type=boolean,
        nargs="?",
        const=True,
        default=default.listen_early,
        help="answer probes while models load (%(default)s)",
    )
    add(
        "--drain_delay_s",
        type=timeout,
        default=default.drain_delay_s,
        help="seconds for which new work is still taken after SIGTERM (%(default)s)",
    )
    add(
        "--grace_period_s",
        "--grace_period",
        type=count,
        default=default.grace_period_s,
        help="seconds from the signal until the end, the delay included (%(default)s)",
    )
    add(
        "--max_decompressed_bytes",
        type=positive,
        default=default.max_decompressed_bytes,
        help="what a compressed request body may become (%(default)s)",
    )
    _add_intake(parser)
    _add_batching(parser)
    _add_logging(parser)
    _add_grpc(parser)
    _add_predictor(parser)
    _add_repository(parser)
    return parser


def _add_intake(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    default = ServerConfig()
    add(
        "--max_request_bytes",
        type=positive,
        default=default.max_request_bytes,
        help="what a request body may have (%(default)s)",
    )
    add(
        "--max_inflight_bytes",
        type=positive,
        help="what all requests in flight may have (a quarter of the memory limit)",
    )
    add(
        "--header_timeout_s",
        type=seconds,
        default=default.header_timeout_s,
        help="seconds from the first byte of a REST request to the end of its head (%(default)s)",
    )
    add(
        "--body_timeout_s",
        type=seconds,
        default=default.body_timeout_s,
        help="seconds for which a request may not come on (%(default)s)",
    )
    add(
        "--send_timeout_s",
        type=seconds,
        default=default.send_timeout_s,
        help="seconds for which a client may read nothing of an answer (%(default)s)",
    )


def _add_batching(parser: argparse.ArgumentParser) -> None:
    default = ServerConfig()
    for flag, type_, help_text in (
        ("max_inflight_requests", positive, "requests of one model in flight; more are refused"),
        ("max_batch_size", positive, "rows of requests that run together"),
        ("max_batch_delay_ms", timeout, "ms that a free model waits for a batch to fill"),
        ("max_queued_rows", positive, "rows that may wait for one model; more are refused"),
        ("request_timeout_s", timeout, "seconds until a request is given up, 0 for no limit"),
        ("hang_timeout_s", timeout, "seconds until a handler has hung, 0 for no limit"),
    ):
        parser.add_argument(
            f"--{flag}",
            type=type_,
            default=getattr(default, flag),
            help=f"{help_text} (%(default)s)",
        )


def _add_logging(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--enable_latency_logging",
        type=boolean,
        default=True,
        help="one log line per inference request (%(default)s)",
    )
    add("--configure_logging", type=boolean, default=True, help="configure logging (%(default)s)")
    add("--log_config_file", help="logging configuration: .json, .yaml, .yml or ini")
    add("--log_format", choices=("text", "json"), default="text", help="(%(default)s)")
    add("--access_log_format", help="accepted for KServe's manifests; has no effect")
    add(
        "--enable_docs_url",
        type=boolean,
        default=False,
        help="accepted for KServe's manifests; has no effect",
    )


def _add_grpc(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--enable_grpc", type=boolean, default=True, help="serve gRPC (%(default)s)")
    add("--max_threads", type=count, default=4, help="accepted for KServe's manifests")
    default = ServerConfig()
    for flag, help_text in (
        ("grpc_max_send_message_length", "bytes of the largest response over gRPC"),
        ("grpc_keepalive_time_s", "seconds until a silent gRPC peer is pinged"),
        ("grpc_keepalive_timeout_s", "seconds that it has to answer"),
        ("grpc_min_ping_interval_s", "seconds between a gRPC client's pings, at least"),
    ):
        add(
            f"--{flag}",
            type=positive,
            default=getattr(default, flag),
            help=f"{help_text} (%(default)s)",
        )
    add(
        "--grpc_max_receive_message_length",
        type=positive,
        help="bytes of the largest request over gRPC (that of --max_request_bytes)",
    )
    add("--grpc_max_concurrent_rpcs", type=positive, help="calls over gRPC at the same time")


def _add_predictor(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--predictor_host", help="the predictor behind a transformer")
    add("--protocol", default="v1", help="accepted for KServe's manifests; has no effect")
    add("--predictor_protocol", choices=("v1", "v2", "grpc-v2"), default="v1")
    add("--predictor_use_ssl", type=boolean, default=False)
    add("--predictor_request_timeout_seconds", type=positive, default=600)
    add("--predictor_request_retries", type=count, default=0)
    add("--enable_predictor_health_check", action="store_true")


def _add_repository(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--repository_api",
        type=boolean,
        help="let clients list, load and unload models (true with a directory of several models)",
    )
    add(
        "--watch",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        help="load what changes in the model directory (%(default)s)",
    )
    add(
        "--watch_interval_s",
        type=seconds,
        default=ServerConfig().watch_interval_s,
        help="seconds between two looks at the model directory (%(default)s)",
    )


def _predictor(args: argparse.Namespace) -> PredictorConfig | None:
    if not args.predictor_host:
        return None
    return PredictorConfig(
        predictor_host=args.predictor_host,
        predictor_protocol=args.predictor_protocol,
        predictor_use_ssl=args.predictor_use_ssl,
        predictor_request_timeout_seconds=args.predictor_request_timeout_seconds,
        predictor_request_retries=args.predictor_request_retries,
        predictor_health_check=args.enable_predictor_health_check,
    )


def boolean(text: str) -> bool:
    """Read a yes or a no.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    lowered = text.lower()
    if lowered not in _TRUE | _FALSE:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return lowered in _TRUE


def non_empty(text: str) -> str:
    """Read a text of at least one character.

    Raises:
        argparse.ArgumentTypeError: It is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("expected a text, got an empty one")
    return text


def count(text: str) -> int:
    """Read an integer of 0 or more."""
    return _integer(text, 0)


def positive(text: str) -> int:
    """Read an integer of 1 or more."""
    return _integer(text, 1)


def seconds(text: str) -> float:
    """Read a number of seconds above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")
    return value


def timeout(text: str) -> float:
    """Read a number of seconds, 0 for none."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text!r}")
    return value


def count_or_all(text: str) -> int | None:
    """Read an integer of 1 or more, or `all`, which is None."""
    return None if text == "all" else positive(text)


def threads(text: str) -> int:
    """Read a number of threads, an integer of 1 or more, or -1; see `kserve.cpu.thread_count`."""
    return -1 if text == "-1" else positive(text)


def is_set(variable: str) -> bool:
    """Say whether a variable of the environment says `true`."""
    return os.environ.get(variable, "").strip().lower() == "true"


def port(text: str) -> int:
    """Read a port number."""
    return _integer(text, 0, 65535)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _integer(text: str, least: int, most: int | None = None) -> int:
    try:
        value: Any = int(text)
    except ValueError:
        value = None
    if value is None or value < least or (most is not None and value > most):
        limit = f"{least} to {most}" if most is not None else f"{least} or more"
        raise argparse.ArgumentTypeError(f"expected an integer, {limit}, got {text!r}")
    return int(value)
