"""In place of a run's process: no PyTorch, and it does what its command line says."""

import signal
import time


def work(job, environment, threads, pipe):
    """argv: what to do ('finish', 'refuse', 'fail', 'die', 'save'), then seconds and a file that notes the start."""
    what, seconds, notes = job.argv
    received = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    with open(notes, "a") as f:
        f.write(f"{job.label} {threads} {environment.get('CUDA_VISIBLE_DEVICES', '')}".rstrip() + "\n")
    if what == "refuse":
        pipe.send(("refused", "no such data"))
        return
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end and not received:
        time.sleep(0.01)
        pipe.send(("share", 1 - (end - time.monotonic()) / float(seconds), "task 1/1"))
    if what == "die":
        signal.raise_signal(signal.SIGKILL)
    elif received:
        with open(notes, "a") as f:
            f.write(f"{job.label} saved {len(received)}\n")
        pipe.send(("stopped", 128 + received[0]))
    elif what == "fail":
        pipe.send(("failed", "loss is nan", ""))
    else:
        pipe.send(("finished", f"folder of {job.label}", True, {"class-il": {"acc": 50.0}}))
