"""Breaks workers of a test on purpose: Python imports this module by itself where its folder is on PYTHONPATH.

`RAISE_AT` and `DIE_AT` are learning rates; a run that trains at one raises an exception, or is killed. With `NOISE` a
step warns, logs and prints as careless libraries do.
"""

import logging
import os
import signal
import sys
import warnings

if any("spawn_main" in argument or "forkserver" in argument for argument in sys.orig_argv):
    import torch

    _step = torch.optim.AdamW.step

    def _broken(self, *arguments, **options):
        rate = self.param_groups[0]["lr"]
        if rate == float(os.environ.get("RAISE_AT", "nan")):
            raise ArithmeticError("planted: this rate is cursed")
        if rate == float(os.environ.get("DIE_AT", "nan")):
            os.kill(os.getpid(), signal.SIGKILL)
        if "NOISE" in os.environ:
            warnings.warn("planted warning: a library is worried", stacklevel=1)
            logging.getLogger("planted").warning("planted log: a library is worried")
            print("planted print: a library is talkative")
        return _step(self, *arguments, **options)

    torch.optim.AdamW.step = _broken
