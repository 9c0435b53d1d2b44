"""Imported last by the process that workers are forked from: what it holds is never looked at by a collection again.

A collection writes to every object, so each worker would soon have a copy of most of what it shares: with two workers
170 MiB.
"""

import gc

gc.collect()
gc.freeze()
