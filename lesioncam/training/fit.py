"""Fit: one stage on Ray Train, from its last checkpoint if there is one."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
import ray.train
import ray.train.torch
from pyarrow.fs import FileSelector

from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage.uris import open_store
from lesioncam.training.failures import MAX_FAILURES, FailurePolicy, stage_error
from lesioncam.training.progress import EpochReport, stage_name
from lesioncam.training.stage import StageJob, StageState, read_state, train_stage


def fit(job: StageJob, checkpoint_dir: str, record: Callable[[EpochReport], None]) -> StageState:
    """Run one stage on Ray Train.

    Args:
        job: the stage; one with the same fingerprint resumes from its last checkpoint.
        checkpoint_dir: where checkpoints go.
        record: takes the metrics of every epoch.

    Raises:
        RunFailedError: workers failed too often, another run has the bundle's lease, or a GPU has
            too little memory.
        InputError: the loss is not a finite number.
        Exception: a bug in a worker, its traceback in a note.
    """
    # Ray Train's controller collects reports at its health checks only, by default every 2 s, and
    # the workers wait for it. An epoch of a small network is shorter than that.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    workers, board = job.setup.workers, job.setup.board
    filesystem, path = open_store(checkpoint_dir).arrow()
    trainer = ray.train.torch.TorchTrainer(
        train_stage,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpu,
            placement_strategy="SPREAD",
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=f"{job.stage}-{job.fingerprint}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[FailurePolicy(job.stage, board)],
        ),
    )
    try:
        with board.logged(job.stage, record), _own_interrupts():
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise stage_error(job.stage, error) from error
    if result.checkpoint is None:
        raise RunFailedError(
            f"{stage_name(job.stage)} ended without a checkpoint; run the same command again"
        )
    state = read_state(result.checkpoint)
    # The last epoch's report may be lost with the board's node.
    record(EpochReport(job.stage, job.epochs, state.history, seconds_remaining=0.0))
    if state.diverged:
        setting = "learning_rate" if job.stage == "stage1" else "stage2_learning_rate"
        raise InputError(
            f"{stage_name(job.stage)} diverged: the loss of epoch {state.epoch} is not a number; "
            f"set a lower {setting} with --config"
        )
    return state


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Restore this program's Ctrl-C handler, which Ray Train replaces and never restores."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:  # how Ray Train's handler ends the program
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, before)


def remove_checkpoints(checkpoint_dir: str) -> None:
    """Remove the stages' checkpoints: a bundle that is removed later is trained from the start.

    The directory goes too, unless it holds something else.
    """
    filesystem, path = open_store(checkpoint_dir).arrow()
    found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    ours = [entry for entry in found if entry.base_name.startswith(("stage1-", "stage2-"))]
    for entry in ours:
        filesystem.delete_dir(entry.path)
    if ours and len(ours) == len(found):
        filesystem.delete_dir(path)
