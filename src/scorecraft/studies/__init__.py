"""One study per paper: its claim, run against its own baseline, judged with statistics; and the machinery for it.

study.py               what a study is
registry.py            which there are: slugs(), find(slug)
runner.py              run_study(study): every trial, in parallel, resumable
run_folder.py          where a run is kept, and how it survives whatever stops it
fingerprint.py         which code and configuration a run belongs to
provenance.py          versions, hardware, command, date
statistics.py          paired intervals, Holm's correction, the rule of the verdict
result.py              the outcome as data and as JSON
report.py, plots.py, wording.py    the outcome for people
worlds.py, embedding_training.py   data and training shared by the metric-learning studies
<slug>.py              a paper's study, `STUDY`
"""
