"""Full fine-tuning or LoRA, at which rank, and what will the model forget? An experiment that answers."""

from rankscope.results import load_results
from rankscope.spec import Study
from rankscope.study_file import load_study

__all__ = ["Study", "load_results", "load_study"]
