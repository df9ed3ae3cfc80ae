"""All work that needs a GPU, in one run of eight minutes: ``make gpu-session``, see docs/gpu.md.

From the outside in:

- `__main__` reads the command line and says what is going on.
- `session` runs the steps in the order of `steps`, within a time for all of them.
- `child` runs one step as a process that can't outlive its limit.
- `findings` reads what a step has found; `report` writes it down.
- `machine` is the step that says what card and which versions there are.
- `packages` fetches and installs the packages that the GPU machine lacks.
"""
