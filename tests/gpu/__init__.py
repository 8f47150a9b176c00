"""What can only be measured on a GPU; `python -m tests.gpu` runs it, and `tests/gpu/test_gpu.py` runs it small."""
