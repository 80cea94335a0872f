"""The modules that are trained together, as one object, before and after their training.

`modules` joins DMD with the two GD-Units of its objective and chooses a backend for them; `fallback` leaves Triton
where one of its kernels cannot run. `system` is what a training holds: those modules, the keys of their dropout, and
their pass as a CUDA graph (`cuda_graph`) where there is one. Its weights may lie in one tensor (`joined_weights`), and
its terms do (`pass_terms`). `trained_model` is what evaluation, prediction, export and report hold: the same modules
with trained weights, checked against what they declare (`declared`). It needs neither DeepSpeed nor Ray.
"""
