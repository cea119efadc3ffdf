"""Makes `table` and `oracles` importable from every folder of tests, and keeps torch to one thread: the toys are tiny."""

import logging

import torch

torch.set_num_threads(1)
# torch logs every step of an export; pytest would format and keep all of it, which makes exporting twenty times slower
trace = logging.getLogger("torch.__trace")
trace.propagate = False
trace.setLevel(logging.CRITICAL)
