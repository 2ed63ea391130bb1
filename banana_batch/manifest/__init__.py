"""Prompt files to planned jobs: formats, job files, matrices, validation, names and identity."""

from .jobfile import JobFile, read_job_file
from .loader import Manifests, open_manifests, plan_jobs, run_settings

__all__ = ["JobFile", "Manifests", "open_manifests", "plan_jobs", "read_job_file", "run_settings"]
