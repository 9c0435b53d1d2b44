"""What libraries tell one another is kept off a terminal; what is wrong is not."""

import logging
import warnings

import pytest
from transformers.utils import logging as transformers_logging

from rankscope.models.silence import without_library_noise


def test_what_is_for_the_people_who_write_libraries_is_left_out(recwarn, capfd):
    with without_library_noise():
        warnings.warn("old name", FutureWarning, stacklevel=1)
        warnings.warn("old name", DeprecationWarning, stacklevel=1)
        logging.getLogger("bitsandbytes.backends").warning("could be faster")
        assert not transformers_logging.is_progress_bar_enabled()
    assert not recwarn.list and capfd.readouterr().err == ""
    assert transformers_logging.is_progress_bar_enabled()


def test_what_is_wrong_is_still_said(caplog):
    with without_library_noise(), pytest.warns(UserWarning, match="wrong"):
        warnings.warn("wrong", UserWarning, stacklevel=1)
        logging.getLogger("bitsandbytes").error("no library")
        logging.getLogger("transformers").warning("weights are missing")
    assert {record.message for record in caplog.records} == {"no library", "weights are missing"}


def test_bars_that_were_off_stay_off():
    transformers_logging.disable_progress_bar()
    try:
        with without_library_noise():
            pass
        assert not transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.enable_progress_bar()
