"""A tuned model from its folder, for running it: the base with an adapter on it, or a whole model."""

from __future__ import annotations

from pathlib import Path

from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel

from rankscope.models.loading import load_model
from rankscope.models.opening import read_adapter


def load_tuned_folder(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The tuned model in the base's precision; of an adapter, the base itself with its layers in place.

    Args:
        base: The base; it is used up.
        folder: A PEFT folder or a Hugging Face folder.

    Raises:
        UserError: As for `read_adapter`.
    """
    if not (folder / CONFIG_NAME).is_file():
        return load_model(folder, base.dtype, str(base.device))
    return read_adapter(base, folder).base_model.model
