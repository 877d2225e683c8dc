"""Ranks of `torch.distributed` as processes of this machine, for tests."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., None], *args: Any, ranks: int = 2) -> None:
    """Call `function(rank, *args)` on every rank of a gloo group; an error shows what each rank printed.

    The processes are forked from a server that has imported torch, and leave without finalising their interpreter:
    threads of the process group may still be running then, and one that asks for the interpreter would abort the rank
    after its work is done.

    Args:
        function: a function of an importable module.
        args: its further arguments.
        ranks: how many processes.

    Raises:
        AssertionError: a rank raised or died.
    """
    # Of the whole interpreter, but it only has an effect before the first server is started.
    multiprocessing.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.start_processes(_rank, (function, folder, ranks, args), nprocs=ranks, start_method="forkserver")
        except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
            printed = (f"rank {rank}: {path.read_text()}" for rank, path in enumerate(_logs(folder, ranks)))
            raise AssertionError("\n".join([str(error), *printed])) from error


def _logs(folder: str, ranks: int) -> list[Path]:
    return [Path(folder, f"{rank}.log") for rank in range(ranks)]


def _rank(rank: int, function: Callable[..., None], folder: str, ranks: int, args: tuple[Any, ...]) -> None:
    log = os.open(_logs(folder, ranks)[rank], os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    function(rank, *args)
    # No rank takes its connections down while another is inside a collective, or with wrapped models still alive.
    store.set(f"done {rank}", "")
    store.wait([f"done {other}" for other in range(ranks)])
    gc.collect()
    dist.destroy_process_group()
