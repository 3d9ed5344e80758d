"""Text generation: many requests share each forward of the model.

`interface` says what an engine takes and gives. `engine` runs one on a thread of its own;
`scheduler` decides what each step computes; `executors` compute it.
"""
