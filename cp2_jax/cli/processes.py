"""Runs of several processes, from the command line: the options that say who takes part, and joining them."""

import argparse
import logging
import os
import sys

from cp2_jax.cli.command import path, place, switch, whole


def add_options(made: argparse.ArgumentParser) -> None:
    """Add the options of a command that several processes may run together."""
    group = made.add_argument_group(
        "several processes", "Slurm, Open MPI, Cloud TPU and GKE need none of these (docs/launch_local.md)."
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--num-processes", metavar="N", type=whole(1), help="number of processes, with --coordinator")
    group.add_argument("--process-id", metavar="I", type=whole(0), help="which of them this is, from 0 on")
    group.add_argument(
        "--heartbeat-timeout",
        metavar="S",
        type=whole(5),
        default=60,
        help="seconds until a silent process is taken for dead (%(default)s)",
    )
    group.add_argument(
        "--stall-timeout",
        metavar="S",
        type=float,
        default=1800.0,
        help="seconds without a finished step until all stop; 0: never (%(default)g)",
    )


def add_training_options(made: argparse.ArgumentParser) -> None:
    """Add what all commands that train have: the work directory, the start, profiling, and several processes."""
    place(made, "workdir", "where checkpoints, logs and pictures go")
    help = "start from this: a run, or somebody's weights (init.checkpoint)"
    made.add_argument("--checkpoint", metavar="PATH", type=path, help=help)
    switch(made, "--profile", False, "trace a few steps, print where their time goes, end")
    add_options(made)


def join(arguments: argparse.Namespace) -> None:
    """Find the other processes of the run, if there are any. From then on only process 0 prints; errors come from all.

    Args:
      arguments: of a command with the options above. To be called before JAX is asked for its devices.

    Raises:
      ConfigError: see `runs.distributed.initialize`.
    """
    import jax

    from cp2_jax.runs import distributed

    distributed.initialize(
        arguments.coordinator,
        arguments.num_processes,
        arguments.process_id,
        heartbeat_timeout=arguments.heartbeat_timeout,
    )
    if distributed.several() and jax.process_index():
        sys.stdout = open(os.devnull, "w")
        logging.getLogger().setLevel(logging.ERROR)
        logging.getLogger("absl").setLevel(logging.ERROR)
