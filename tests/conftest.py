"""Makes `table` and `oracles` importable from every folder of tests, and keeps torch to one thread: the toys are tiny."""

import logging

import torch

torch.set_num_threads(1)
# torch logs every step of an export; pytest would format and keep all of it, which makes exporting twenty times slower
logging.getLogger("torch.__trace").propagate = False
