"""Fit: one stage on Ray Train, from its last checkpoint if there is one."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.train
import ray.train.torch
from pyarrow.fs import FileSelector

from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage.uris import open_store
from lesioncam.training.failures import WORKER_DEATHS, FailurePolicy, what_ended
from lesioncam.training.predict import Workers
from lesioncam.training.progress import EpochReport
from lesioncam.training.record import Record
from lesioncam.training.stage import StageJob, StageState, read_state, train_stage


def fit(
    job: StageJob,
    run_id: str,
    storage: str,
    compute: Workers,
    record: Record,
) -> StageState:
    """Run one stage on Ray Train, from its last checkpoint if there is one.

    Args:
        job: what the workers are told.
        run_id: a run of the same id goes on where that one broke off.
        storage: where checkpoints go.
        compute: how many workers of what size.
        record: keeps the metrics of every epoch.

    Raises:
        RunFailedError: workers died too often, another run has the bundle's lease, or a GPU has too
            little memory.
        InputError: the loss is not a number any more.
        Exception: a worker's own mistake, its traceback in a note.
    """
    # Ray Train's controller collects reports at its health checks only, by default every 2 s, and
    # the workers wait for it; an epoch of a small network is shorter than that.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    filesystem, path = open_store(storage).arrow()
    trainer = ray.train.torch.TorchTrainer(
        train_stage,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.actors,
            use_gpu=compute.gpu,
            placement_strategy="SPREAD",
            resources_per_worker={"CPU": compute.cpus} | ({"GPU": 1} if compute.gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=f"{job.stage}-{run_id}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=WORKER_DEATHS),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[FailurePolicy(job.stage, job.board)],
        ),
    )
    try:
        with job.board.logged(job.stage, record.take), _own_interrupts():
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise what_ended(job.stage, error) from error
    if result.checkpoint is None:
        raise RunFailedError(f"{job.stage} ended without a checkpoint; run the same command again")
    state = read_state(result.checkpoint)
    record.take(
        EpochReport(job.stage, job.epochs, state.history, left=0.0)
    )  # its last post may be lost
    if state.diverged:
        raise InputError(
            f"--config: {job.stage} diverged, its loss in epoch {state.epoch} is not a number; "
            f"lower the stage's learning rate"
        )
    return state


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Give Ctrl-C back to this program: Ray Train's handler stays, and eats it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:  # how Ray Train's handler ends the program
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, ours)


def remove_checkpoints(storage: str) -> None:
    """A finished bundle needs none; and one that is removed is trained anew, not resumed."""
    filesystem, path = open_store(storage).arrow()
    for entry in filesystem.get_file_info(FileSelector(path, allow_not_found=True)):
        if entry.base_name.startswith(("stage1-", "stage2-")):
            filesystem.delete_dir(entry.path)
