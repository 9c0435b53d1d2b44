"""Keeping off a person's terminal what libraries say while models are loaded there; what fails is raised, and shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rankscope.data.quiet import quiet


@contextmanager
def without_library_noise() -> Iterator[None]:
    """Without progress bars of loading, and what libraries say to the people who write libraries.

    To be entered before torch, transformers or PEFT is imported: bitsandbytes speaks while PEFT imports it.
    """
    with quiet("bitsandbytes"), warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        from transformers.utils import logging

        was_shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            if was_shown:
                logging.enable_progress_bar()
