"""Several processes behind one port: `convserve serve --workers N`.

    supervisor ──socket pair── worker 1   gRPC server, models, threads ─┐
        │      ──socket pair── worker 2                                 ├─ one port (SO_REUSEPORT)
        │      ──socket pair── worker 3                                 ┘
        └── the metrics port: sums over workers, /healthz, /readyz

supervisor.py   starts, watches, restarts and drains the processes
process.py      a worker as the supervisor sees it
state.py        what all workers hold alike, for those that come later; all change it, or none
totals.py       counters summed over workers, also those that have died
pages.py        the metrics of all processes
worker.py       a worker's end: follows, leads, reports
pieces.py       what they hold alike, as bytes and open files
peer.py         requests and answers over a socket pair, with file descriptors
parent.py       a worker's end when the supervisor dies
address.py      a port that stays ours while workers come and go

One worker leads: it reads models from disk and carries out control calls, whichever worker got
them. It sends each change to the supervisor, which has every other worker prepare it before any
switches. When the leader dies another takes over. The supervisor imports neither gRPC nor NumPy,
and never computes, so that hardly anything can end it.
"""
