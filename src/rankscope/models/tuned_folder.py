"""A tuned model from its folder, for running it: the base with an adapter on it, or a whole model."""

from __future__ import annotations

import warnings
from pathlib import Path

from peft import PeftModel
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel

from rankscope.errors import UserError, first_line
from rankscope.models.loading import load_model

_MEND = "load it in PEFT and save it again with save_pretrained, so that the names are PEFT's own"


def load_tuned_folder(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The tuned model in the base's precision; of an adapter, the base itself with its layers in place.

    Args:
        base: The base; it is used up.
        folder: A PEFT folder or a Hugging Face folder.

    Raises:
        UserError: PEFT cannot put this adapter on this base, or does not find all of its tensors.
    """
    if not (folder / CONFIG_NAME).is_file():
        return load_model(folder, base.dtype, str(base.device))
    try:
        with warnings.catch_warnings():
            # What PEFT does not find in the file would stay untrained, and only a warning says so.
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            wrapped = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
    except (RuntimeError, ValueError, UserWarning) as error:
        raise UserError(f"PEFT cannot load it: {first_line(error)[:200]}", where=folder, mend=_MEND) from None
    return wrapped.eval().base_model.model
