"""Who computes the operators of `ops/operators.py`, one module a kind of device.

Every module of this folder is imported, and registers its kernels with [`hf_bitdistill.ops.operators.implement`]: a device is added by
adding a file. `default.py` has, in plain torch, what every device computes that has no kernel of its own.
"""

import importlib
import pkgutil


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
