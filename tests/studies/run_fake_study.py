"""Runs the made-up study at desk scale in a process of its own: `run_fake_study.py FOLDER JOBS`."""

import sys

from fake_study import STUDY

from scorecraft.studies.runner import RunInterrupted, run_study
from scorecraft.studies.study import StudyError

if __name__ == "__main__":
    folder, jobs = sys.argv[1:]
    try:
        run_study(STUDY, scale="desk", folder=folder, jobs=int(jobs))
    except StudyError as error:
        sys.exit(f"error: {error}")
    except RunInterrupted as stop:
        print(f"interrupted: {stop}", file=sys.stderr)
        sys.exit(130)
