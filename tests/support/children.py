"""Runs commands in forked processes that can get a signal at an exact moment of their training."""

import multiprocessing
import os
import pathlib
import signal
import sys
import time

import quick_tensorflow

# A process that has only imported TensorFlow can be forked, which saves the seconds of the import in each test.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["trainer.main", "trainer.training.train", "trainer.report"])


class Child:
    """A process that runs `function(*arguments)` and writes its stdout and stderr to the file `output`."""

    def __init__(self, output, function, *arguments):
        self._output = pathlib.Path(output)
        self._output.unlink(missing_ok=True)
        self._process = _CONTEXT.Process(
            target=_call, args=(str(output), quick_tensorflow.installed, function, arguments)
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def lines(self):
        return self._output.read_text().splitlines() if self._output.exists() else []

    @property
    def is_alive(self):
        return self._process.exitcode is None

    def send(self, number):
        os.kill(self.pid, number)

    def wait(self, seconds=300):
        """Returns the exit status, which is negative after a signal."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {seconds} s: {self.lines}")
        return self._process.exitcode

    def wait_until(self, condition, seconds=300):
        """Waits until the condition holds or the process has ended; returns whether it is still alive."""
        end = time.monotonic() + seconds
        while self.is_alive and not condition():
            assert time.monotonic() < end, self.lines
            time.sleep(0.002)
        return self.is_alive


def is_stopped(pid):
    """Returns whether SIGSTOP has stopped a process."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def lengthwise(output, *arguments, spot=None, number=1, hit_by=signal.SIGKILL, pause=0.0):
    """Starts `lengthwise` in a child that sends itself a signal at a spot and pauses after each update.

    Args:
        spot: See `hit_at`; None: no signal.
        hit_by: The signal.
        pause: Seconds.
    """
    return Child(output, _lengthwise, [str(argument) for argument in arguments], spot, number, int(hit_by), pause)


def _call(output, is_quick, function, arguments):
    if is_quick:  # the parent is too: both must compute the same bits
        quick_tensorflow.install()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(function(*arguments))


def _lengthwise(arguments, spot, number, hit_by, pause):
    import lengthwise
    from trainer.training.journal import EpochJournal

    if spot is not None:
        hit_at(spot, number, hit_by)
    if pause:
        _wrap(EpochJournal, "add", lambda *every: True, lambda: time.sleep(pause), after=True)
    return lengthwise.main(arguments)


def _note_sigterm():
    """Returns a list that gets an entry after the handler of SIGTERM has run."""
    handled, handler = [], signal.getsignal(signal.SIGTERM)

    def handle(number, frame):
        handler(number, frame)
        handled.append(number)

    signal.signal(signal.SIGTERM, handle)
    return handled


def hit_at(spot, number, hit_by):
    """Sends a signal to this process when it reaches a spot for the `number`-th time; or after update `number`."""
    from tensorflow.python.checkpoint import checkpoint_management, functional_saver
    from tensorflow.python.lib.io import file_io

    from trainer.evaluation.evaluate import Evaluator
    from trainer.runs.checkpoints import Checkpoints
    from trainer.runs.metrics_log import MetricsLog
    from trainer.runs.run import Run
    from trainer.training import loop
    from trainer.training.checkpoint_policy import CheckpointPolicy
    from trainer.training.journal import EpochJournal

    def hit():
        handled = _note_sigterm() if hit_by == signal.SIGSTOP else []
        os.kill(os.getpid(), hit_by)
        if hit_by == signal.SIGSTOP:
            # Any thread may take a SIGTERM that came while all were stopped. This one does not go on before its handler
            # has run.
            for _ in range(500):
                if handled:
                    break
                time.sleep(0.01)

    def nth(count, arguments, options):
        return count == number

    def nth_of_two(count, arguments, options):  # for calls that occur twice in a save
        return count == 2 * number - 1

    def of_update(count, arguments, options):
        return arguments[2] == number

    def of_epoch(count, arguments, options):
        return "best" in options

    if spot == "half a line":
        _cut_line(MetricsLog, number, hit)
        return
    if spot == "validation":
        _hit_in_validation(Evaluator, number, hit)
        return
    owner, name, when, after = {
        "update": (EpochJournal, "add", of_update, True),
        "probe": (loop, "probe_largest", nth, False),
        # The line of the epoch is written, its checkpoint is not.
        "end of an epoch": (CheckpointPolicy, "save", of_epoch, False),
        "before a save": (Checkpoints, "save", nth, False),
        "data written": (functional_saver.gen_io_ops, "merge_v2_checkpoints", nth, False),
        "index written": (functional_saver.gen_io_ops, "merge_v2_checkpoints", nth, True),
        "state written": (file_io, "rename", nth_of_two, False),
        "state named": (file_io, "rename", nth_of_two, True),
        "index removed": (checkpoint_management, "_delete_file_if_exists", nth_of_two, True),
        "after a save": (Checkpoints, "save", nth, True),
        "file renamed": (Run, "write", nth, True),
    }[spot]
    _wrap(owner, name, when, hit, after=after)


def _wrap(owner, name, when, act, *, after):
    """Calls `act()` before or after those calls of a function for which `when` is true."""
    function, count = getattr(owner, name), 0

    def wrapped(*arguments, **options):
        nonlocal count
        count += 1
        now = when(count, arguments, options)
        if now and not after:
            act()
        found = function(*arguments, **options)
        if now and after:
            act()
        return found

    setattr(owner, name, wrapped)


def _cut_line(log_class, number, hit):
    """Cuts off the end of the line that metrics.jsonl gets the `number`-th time, then calls `hit()`."""
    count = 0
    append = log_class.append

    def cut(log, lines):
        nonlocal count
        count += 1
        append(log, lines)
        if count == number:
            path = log._run.file("metrics.jsonl")
            os.truncate(path, os.path.getsize(path) - 20)
            hit()

    log_class.append = cut


def _hit_in_validation(evaluator_class, number, hit):
    """Calls `hit()` within the `number`-th validation."""
    count = 0
    measure = evaluator_class.measure

    def measure_hit(evaluator, *arguments, after_batch, **options):
        nonlocal count
        count += 1
        now = count == number

        def hit_once():
            nonlocal now
            if now:
                now = False
                hit()
            after_batch()

        return measure(evaluator, *arguments, after_batch=hit_once, **options)

    evaluator_class.measure = measure_hit
