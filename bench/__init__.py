"""Benchmarks that a sceptic can rerun. In the order in which a figure comes about:

cases/    what is measured
  case.py          a cell, a mode and a shape, as data
  task.py          a case with weights and inputs in it
  contenders.py    who is timed (peers.py: other packages); model.py is what a contender makes of a task
  compile_cases.py, downstream_cases.py, downstream_packages.py   what bench.compile and bench.downstream run
measure/  how it is measured
  program.py       forward, backward, a training step, generation: a model as something to call
  guard.py         both sides compute the same, and ours is not theirs under another name
  limit.py         the matmuls alone; roofline.py, a model of a GPU
  timing.py        side by side, on a clock that waits for the device; profile.py, what ran and what it took
  duel.py          all of that for one case and contender: a row
  provenance.py    where a row comes from; results_file.py, reading rows back; pictures.py
  downstream_swap.py  another package's code, with our classes in torch.nn's place

The commands are the modules here: `pytest bench` and `python -m bench.report`; bench.charlm, layers, presets, matmul,
soak, compile, roofline, downstream; and for a GPU bench.device, cudnn, stress and tune, which gpu.sh runs.
"""
