"""The fixed texts of docs/performance.md."""

from __future__ import annotations

HEAD = """\
# Performance

`make bench` runs the benchmarks, and `python -m tests.bench.page` writes this page from their results. The figures come
from one machine. On other machines only the ratios, which are taken within one run, are meaningful.

- `python -m tests.bench` compares this proxy with the official proxy on Hono and on Express, and with nginx. This proxy
  runs with everything on: session, input policy, rate limits, concurrency leases, quotas of three accounts in a durable
  ledger on SQLite, ownership, access log. The official proxy runs without any checks, and nginx only passes calls on.
  All stand in front of the same static upstream and take turns under the same load.
- `python -m tests.bench.limits` compares a submit and a run with every kind of limit on, and with all limits off.
  Sessions, input policy and ownership are on in both.
- `python -m tests.bench.endurance` measures runs in front of an upstream that takes 100 ms, stalls of the event loop,
  and the memory after many hung-up streams.
- `python -m tests.bench.uploads` compares one upload of 200 MiB at a time, with everything on, with nginx, which passes
  bytes on unbuffered and checks nothing.
- `python -m tests.bench.flame` samples the proxy under load, and draws where the time of a run goes.
- `python -m tests.bench.million` fills a database with a million jobs and two million sums of usage, and measures each
  report and page of the console. It fails if one takes longer than 300 ms, or if calls are more than 10 % slower than
  on an empty database. `python -m tests.bench.million_page` writes its section.

During its turn, each proxy has core 0 to itself. The load generator (wrk) and the static upstream share core 1, also
with PostgreSQL and Redis where they are used. Rates are per second of the proxy's own processor time in all its
threads. Ratios are the medians of the ratios of the rounds. The benchmark fails if an answer is an error.
"""
LEDGER = """\
A submit takes two steps of the ledger: it reserves quota before the proxy sends anything, and records the owner before
the caller learns the id. A run also takes two: it reserves, and it charges. Each step shares a transaction with all
others that arrive while the previous transaction is written. Therefore 32 callers cost far less than 32 commits.
"""


UPLOADS = """\
A file takes almost no memory, whatever its size: tests limit the memory for a file of 1 GiB to 16 MiB, and for fifty
files of 20 MiB at once to 64 MiB.
"""


SAVINGS = """\
## What saves work

These figures compare the program with and without one part, by its processor time in one run.

- A status poll that repeats an earlier one byte for byte is answered before it is parsed. In five rounds on a busy
  machine, the proxy answered 1.94 times as many polls, and 1.47 times as many whole jobs, per second of its processor
  time as when it parsed each poll and only then found it in the same memory. Where a poll has to wait, as for Redis, it
  is parsed. That memory alone makes a poll 1.70 times as fast, without sockets.
- Such a poll takes 28 % less since its answer is written once for each state of its job, and only its id and what is
  left of its limits are new (6.5 µs of Python became 4.0), and since what all connections write in one turn of the
  event loop is sent at its end: between two calls of the system for sending, other work would cool the caches and let
  the peers fall asleep. A whole job takes 14 % less by both.
- A whole job takes another 16 % less, since polls are answered at once also while the directory of tenants is read
  again. Under load such a reading takes up to a third of the two seconds between two of them, as its thread waits for
  the interpreter again and again; meanwhile, 5 of a job's 20 polls went the whole way.
- A whole job takes three steps of the ledger instead of four, since the reports of its stream and its result, which
  come in the same moment, are booked once.
- A request's log line takes 10 µs instead of 20 µs, as it goes to the program's log handler without a log record.
- Garbage collections look at new objects only. While a process remembers 60,000 jobs, none takes longer than 0.8 ms,
  where one took 82 ms, and all together take 45 ms instead of 109.
- With 600 runs at a time, collections take 8 µs of a run instead of 30: each looks at ten thousand new objects, most of
  whose calls are over by then, and not at two thousand; what is left is frozen at once, and not looked at again.
- The head of an answer is checked as a whole, with each name once: 16,000 instructions fewer than in uvicorn.
- A run and a submit take 10 % less, since a body that has arrived with its head is read without a timer, the record of
  a call is a tuple, and the accounts that the calls of a transaction share are looked at once each.
- A run takes 3 % less and a submit 4 %, since the scopes of a lease are put together once for each subject, the wishes
  of a caller are read from its headers as they came, and a lease is returned through fewer coroutines.
- Jobs that no caller watches are looked after one by one, 10 ms apart, and not a hundred at once each second. Beside
  50,000 of them, the 99th percentile of a run at half load is 5 to 6 ms instead of 16 to 31. With 110,000 of them, each
  round held the file for another 25 to 60 ms: SQLite looked for a hundred named jobs among all open ones.
- The hits of a rate limit that have ended are dropped at once. One by one, a hundred thousand of them, which a busy
  minute leaves behind, held up all calls for 60 to 110 ms.
- On SQLite, a run takes 4 to 7 % less at full load, and a tenth less beside a busy disk, since calls are written by the
  event loop also while the log is written into the file. A reader holds the log meanwhile, so that it cannot begin
  again, for which SQLite waits for the disk. Before, half of all transactions went to a thread on a busy disk.
- A whole job takes 7 to 10 % less, a native job 18 % less, and an open stream 27.0 KiB of memory instead of 33.9, since
  httptools' parser reads fal's event streams without objects of another library's, waits for news of a job have a
  timer instead of a timeout's context, and a native job's first events leave together.
- With PostgreSQL and Redis, a run takes 12 % less, since the commands to Redis of one turn of the event loop leave with
  one call of the system.
- A process is ready after 11 % less processor time and takes 9 MiB less. `serve` without options does not load the
  parser of the command line and the other commands (20 ms, 2 MiB). With connections to fal of its own, a start
  takes 40 ms less and an idle process 7 MiB less, and a call to a file store takes 27 % less.
- A file of 200 MiB takes a third less, since the rest of a large body is read past the parser, up to 1 MiB at once,
  into buffers that it is also written from. uvloop alone reads 250 KiB at once, which both it and the parser copy.
  Buffers of 256 KiB save a tenth only. To write 1 MiB at once too would save another 8 %, but a slow way to fal would
  then run into the timeout of a write four times as soon.
- With PostgreSQL and Redis, a run takes 1.33 times as long as with SQLite and memory, and took 2.09 times as long, on a
  busy machine. Most of the ledger's transactions are one statement: it is worked out from rows that the process wrote
  itself, and changes nothing if another process has changed one of them (1.54). Its values are one document a row, as
  the driver looks at each value of an array twice, and the connection stays out of the pool while it is in use (1.33).
  Of the rest, 0.15 are Redis.
"""


GOALS = """\
The figures that this program aims at. Those of one machine vary by the hour: in three runs of one day, a run was 2.26
to 2.74 times as fast as Hono's, a submit 2.21 to 2.96, a status 17 to 22, whole jobs 5.06 to 6.55. A native job took
464 to 512 µs, and a start 0.42 to 0.47 s. What is left of those that are not reached:

- A run and a submit are Python's own work, which no one place takes: a run makes 450 calls of Python's functions and
  650 of C's, and outside of SQLite and the calls of the system no function takes 2 % of it.
  [Where the time goes](#where-the-time-goes) shows it by packages.
- Whole jobs, native jobs and the start are near their goals, on one side or the other by the hour.
- A run before a slow upstream is the same work with 600 calls under way: each finds cold caches.
- Half load adds the wait for calls that came before: a run takes twice the processor time of full load then, as calls
  come alone. They find cold caches, and their transactions hold three operations instead of twenty. At a thousand calls
  a second, a fifth of full load, the median is 0.7 to 0.8 ms and the 99th percentile 2.2 to 3.2 ms.
- An open stream takes less than its goal at first. What 2,000 of them grow by in ten minutes are pages that SQLite
  keeps and gaps in the allocator's memory: the number and the size of Python's objects stay the same.
- The memory of an idle process is that of the interpreter and of libraries in the first place: of 85 MiB, the
  interpreter with asyncio and TLS takes 19, SQLAlchemy 18, pydantic 6, jsonschema-rs 5, uvicorn with uvloop 4, slowapi
  2, five others together 7, the modules of the proxy 14, and what it makes at its start 10. Of its 57 MiB that are no
  files, 4 are free, in pieces that the allocator cannot give back.
"""
TRIED = """\
## What was tried and left alone

To remember the routes of fixed paths saves 0.7 µs of a run, and a dictionary in place of cachetools' memory 0.2 µs.
Writing the log lines of one turn of the event loop at once saves less than 2 % of a run.

Compiling the modules that a call passes through was measured in pairs with the plain code, on Python 3.13 and a busy
machine, and left alone, as it saves less than 15 %. No module was rewritten for it. mypyc with 33 modules (limits,
ledger, admission, bodies) saves 3 to 5 % of a run and 1 to 5 % of a submit. With 120 modules, it saves 11 to 12 % of a
run, 5 to 7 % of a submit and nothing of a status poll, and an idle process takes 8 MiB more. It compiles no
asynchronous generators and no classes below those of uvicorn. Cython without types saves 2 to 4 % of a run and up to 5
% of a submit with 89 modules that have no coroutines, and takes 8 MiB; with 187 modules, coroutines among them, a run
takes 8 to 19 % longer, a submit 22 %, and an idle process 20 MiB more. Other allocators (mimalloc, jemalloc), huge
pages and one arena change a run and a submit by no more than rounds of the same code differ, 4 %; the allocators and
huge pages take 1 to 3 MiB more when idle.

Newer interpreters were measured in the same way, as Debian builds them. Python 3.14 is as fast as 3.13 (within 4 %);
its compiler (`PYTHON_JIT=1`) changes nothing of a run, and a submit takes 9 % longer with it. Python 3.15 saves 2 to 3
% of each call, and 8 to 9 % with its compiler, but an idle process takes 11 MiB more, and the official images of Python
have no compiler. Imports that are all put off (`PYTHON_LAZY_IMPORTS=all`) break SQLAlchemy.

The start is that of the interpreter and of libraries: SQLAlchemy takes 95 ms of processor time, pydantic 40, slowapi
12, the authorities that fal is verified against 20, and the modules of the proxy 160. What else was tried saves 1 % of
the start and 0.5 MiB at most: no search for plugins of pydantic, forms of requests that are built at their first use,
one arena of the allocator, huge pages, code without positions. Code without docstrings (`-OO`) saves 4.7 MiB, but also
removes what the program asserts. The validators of inputs save 5 MiB and 3 ms if they are made by the first call, which
would wait for them.

At half load, to wait for company does not help: if a small transaction first rests for 0.1 or 0.3 ms, or until 0.5 or
1 ms after the last one began, it holds up to four and a half operations, but a run takes the same processor time (332
to 340 µs), and the median grows by 0.1 to 1.2 ms. Four more turns of the event loop change nothing, nor does a busy
loop that keeps the processor from sleeping, nor a checkpoint of SQLite's log after 1,500 transactions instead of 200.
Half of what a transaction alone takes is SQLite's commit, at 4.6 µs a page; pages of 1, 2 or 8 KiB are no faster. A run
writes 13 pages; an index of fal's ids without the runs would save one of them, 1.5 % of a run.
"""
FLAME = """\
`python -m tests.bench.flame` samples the proxy under load. A package's time includes what libraries do for it; packages
below a hundredth are left out. In the flame graph, the width of a frame is its share of a run.
"""
BEFORE = """\
### Before and after

The version that came before the work on speed, beside this one, in turns and on the same interpreter. This one also
keeps tags, alerts, grants, prices that are learned, and sums of usage by the hour.

| calls a second of processor time | before | after | ratio |
| --- | ---: | ---: | ---: |
| submit | 3,688 | 5,321 | 1.43 |
| run | 3,522 | 5,078 | 1.44 |
| result | 21,717 | 22,868 | 1.05 |
| status | 30,464 | 97,036 | 3.18 |
| whole jobs | 634 | 896 | 1.46 |

| µs of a run | before | after |
| --- | ---: | ---: |
| proxy/upstream | 54 | 28 |
| proxy/stores | 54 | 42 |
| proxy/http | 48 | 16 |
| the event loop and the kernel | 37 | 14 |
| proxy/server | 24 | 17 |
| proxy/limits | 22 | 17 |
| all others | 37 | 37 |
| all | 276 | 171 |

The machine was slower during the first table than during the comparison above; in another run of the same two
versions, the ratios were 1.51 for a submit, 1.62 for a run, 3.00 for a status and 1.87 for whole jobs.
"""
