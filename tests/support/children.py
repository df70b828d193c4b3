"""Runs commands in forked processes, each of which a signal may hit at an exact moment of its training."""

import multiprocessing
import os
import pathlib
import signal
import sys
import time

# A process that has imported TensorFlow and run none of it may be forked: each test saves the seconds of the import.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["trainer.main", "trainer.training.train", "trainer.report"])


class Child:
    """A process that runs `function(*arguments)`; what it says goes to the file `told`."""

    def __init__(self, told, function, *arguments):
        self._told = pathlib.Path(told)
        self._told.unlink(missing_ok=True)
        self._process = _CONTEXT.Process(target=_call, args=(str(told), function, arguments))
        self._process.start()
        self.pid = self._process.pid

    @property
    def lines(self):
        return self._told.read_text().splitlines() if self._told.exists() else []

    @property
    def is_alive(self):
        return self._process.exitcode is None

    def send(self, number):
        os.kill(self.pid, number)

    def wait(self, seconds=300):
        """Its exit status; that of a signal is below 0."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"not ended after {seconds} s: {self.lines}")
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


def lengthwise(told, *arguments, spot=None, number=1, hit_by=signal.SIGKILL, pause=0.0):
    """Starts `lengthwise` in a child that sends itself a signal at a spot, and sleeps so long after each update."""
    return Child(told, _lengthwise, [str(argument) for argument in arguments], spot, number, int(hit_by), pause)


def _call(told, function, arguments):
    descriptor = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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


def hit_at(spot, number, hit_by):
    """Lets a signal hit this process at the `number`-th time that it comes to a spot; of updates, after that update."""
    from tensorflow.python.checkpoint import checkpoint_management, functional_saver
    from tensorflow.python.lib.io import file_io

    from trainer.evaluation.evaluate import Evaluator
    from trainer.runs.checkpoints import Checkpoints
    from trainer.runs.run import Run
    from trainer.training import loop
    from trainer.training.checkpoint_policy import CheckpointPolicy
    from trainer.training.journal import EpochJournal

    def hit():
        os.kill(os.getpid(), hit_by)

    def nth(count, arguments, options):
        return count == number

    def nth_of_two(count, arguments, options):  # what is done twice a save
        return count == 2 * number - 1

    def of_update(count, arguments, options):
        return arguments[2] == number

    def of_epoch(count, arguments, options):
        return "best" in options

    if spot == "half a line":
        _cut_line(Run, number, hit)
        return
    if spot == "validation":
        _between(Evaluator, number, hit)
        return
    owner, name, when, after = {
        "update": (EpochJournal, "add", of_update, True),
        "probe": (loop, "probe_largest", nth, False),
        # The line of the epoch is written, its checkpoint not.
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
    """Lets `act()` happen before or after those calls of a function of which `when` is true."""
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


def _cut_line(run_class, number, hit):
    """The `number`-th time that metrics.jsonl grows, it grows by half."""
    count = 0
    append = run_class.append_metrics

    def cut(run, lines):
        nonlocal count
        count += 1
        append(run, lines)
        if count == number:
            size = os.path.getsize(run.file("metrics.jsonl"))
            os.truncate(run.file("metrics.jsonl"), size - 20)
            hit()

    run_class.append_metrics = cut


def _between(evaluator_class, number, hit):
    """Amid the `number`-th validation pass."""
    count = 0
    measure = evaluator_class.measure

    def measure_hit(evaluator, *arguments, after_batch, **options):
        nonlocal count
        count += 1
        now = count == number

        def told():
            nonlocal now
            if now:
                now = False
                hit()
            after_batch()

        return measure(evaluator, *arguments, after_batch=told, **options)

    evaluator_class.measure = measure_hit
