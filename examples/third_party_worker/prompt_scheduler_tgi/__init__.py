"""A model worker of prompt-scheduler for Hugging Face's Text Generation Inference (TGI)."""

from prompt_scheduler_tgi.worker import TgiWorker

__all__ = ["TgiWorker"]
