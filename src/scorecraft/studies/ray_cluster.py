"""Trials on a Ray cluster: one task each, given back as they finish.

joblib's Ray backend gives results back only when all are there, and a finished trial has to be on disk at once; so the
tasks are Ray's own. A task whose worker dies is run again by Ray, and a trial depends on nothing but its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from scorecraft.integrations.optional import require

_Outcome = TypeVar("_Outcome")

RETRIES = 3
"""How often Ray runs a trial again whose worker died."""


def on_ray(
    run: Callable[..., _Outcome], tasks: Iterable[tuple[Any, ...]], workers: int | None
) -> Generator[_Outcome, None, None]:
    """`run(*task)` for every task, in the order in which they finish; closing the generator cancels the rest.

    The cluster is the one of the environment (`ray start`, `RAY_ADDRESS`), or one of this machine's cores, on the
    loopback address, that ends with the run. The package has to be installed on its nodes.

    Args:
        run: a module's function.
        tasks: its arguments; taken only as workers become free.
        workers: tasks at the same time; default: one per core of the cluster.

    Raises:
        ImportError: Ray is not installed; the line installs it.
        ValueError: the cluster has fewer cores than `workers`.
    """
    ray = require("ray", "cluster")
    ours = not ray.is_initialized()
    if ours:
        _connect(ray)
    try:
        cores = int(ray.cluster_resources().get("CPU", 0))
        if workers is not None and workers > cores:
            raise ValueError(f"argument `jobs`: expected at most {cores}, the cores of the cluster, got {workers}")
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(run)
        waiting = iter(tasks)
        running: list[Any] = []
        try:
            while True:
                while len(running) < (workers or cores) and (task := next(waiting, None)) is not None:
                    running.append(remote.remote(*task))
                if not running:
                    return
                (done, *_), running = ray.wait(running, num_returns=1)
                yield ray.get(done)
        finally:
            for task in running:
                ray.cancel(task, force=True)
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any) -> None:
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:  # there is none: begin one of this machine alone
        ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
