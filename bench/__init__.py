"""Benchmarks that a sceptic can rerun. In the order in which a figure comes about:

cases.py       what is timed, as data
task.py        a case with weights and inputs in it
contenders.py  who is timed (peers.py: other packages); model.py is what a contender makes of a task
program.py     forward, backward, a training step, generation: a model as something to call
guard.py       both sides compute the same, and ours is not theirs under another name
limit.py       the matmuls alone; roofline.py, a model of a GPU
timing.py      side by side, on a clock that waits for the device; profile.py, what ran and what it took
duel.py        all of that for one case and contender: a row
provenance.py  where a row comes from; results_file.py, reading rows back; report.py and pictures.py, what people read

Commands: `pytest bench` and `python -m bench.report`; bench.charlm, layers, presets, compile, roofline; and for a GPU
bench.cudnn, stress and tune, which gpu.sh runs.
"""
