"""The sub-commands of `vlp-gym`: a function's signature defines the options, its docstring the help.

Heavy imports are inside the functions, so that `--help` is fast.
"""
