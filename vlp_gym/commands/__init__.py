"""The sub-commands of `vlp-gym`: each function's signature is its options, its docstring the help.

Everything heavy is imported inside the functions, so that `--help` answers at once.
"""
